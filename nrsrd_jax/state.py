"""What training changes from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """step: int32, steps done; params and batch_stats: the model's variables; opt_state: the optimiser's memory."""

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
