"""The train step as it runs: compiled once, its memory looked at before it is used."""

import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from .errors import InputError
from .sharding import replicated
from .state import TrainState


class CompiledStep:
    """Callable: (state, batch) -> (state, metrics), compiled at the first call; the state given is used up.

    InputError, before the first step, if the devices have too little memory. With `debug_nans` the state is kept, and a
    step whose loss or gradient is not finite is done again, operation by operation: FloatingPointError, with its
    traceback, at the first that gives NaN.
    """

    def __init__(
        self, step: Callable, shardings: TrainState, mesh: Mesh, teacher_variables: dict | None, debug_nans: bool
    ):
        self._step, self._teacher_variables, self._debug_nans = step, teacher_variables, debug_nans
        donated = () if debug_nans else (0,)  # what is donated cannot be computed again
        self._jitted = jax.jit(step, donate_argnums=donated, out_shardings=(shardings, replicated(mesh)))
        self._executable = None

    def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        arguments = state, batch, self._teacher_variables
        if self._executable is None:
            self._executable = self._jitted.lower(*arguments).compile()
            check_memory(self._executable.memory_analysis(), memory_limit())
        result = self._executable(*arguments)
        if self._debug_nans and not is_finite(result[1]):
            with jax.disable_jit(), jax.debug_nans(True):
                self._step(*arguments)
        return result


def is_finite(metrics: dict) -> bool:
    """Whether a step's loss and gradient are; waits for it."""
    return math.isfinite(float(metrics["loss"])) and math.isfinite(float(metrics["gradient_norm"]))


def memory_limit() -> int | None:
    """Bytes that a device of this process gives to programs; None where it does not tell, as a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def check_memory(analysis, limit: int | None) -> None:
    """InputError if a compiled program, by its memory analysis, takes more bytes of a device than the limit."""
    if analysis is None or limit is None:
        return
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    needed = kept + analysis.temp_size_in_bytes
    if needed > limit:
        raise InputError(
            f"a training step takes {needed / 2**30:.1f} GiB of each device, which has {limit / 2**30:.1f}: lower "
            "train.batch_size, show the program more devices, or raise train.model_parallel"
        )
