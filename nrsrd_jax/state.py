"""Hold the values that training changes in each step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Hold the values that a training step reads and returns.

    Attributes:
        step: the number of steps done, int32.
        params: the parameters of the model, a tree of arrays.
        batch_stats: the running statistics of the model's normalisations.
        opt_state: the state of the optimiser.
    """

    step: jax.Array
    params: Any
    batch_stats: dict
    opt_state: optax.OptState

    @classmethod
    def create(cls, variables: dict, optimizer: optax.GradientTransformation) -> "TrainState":
        params = variables["params"]
        return cls(jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(params))

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}
