"""The train step as it runs: compiled once, its memory looked at before it is used."""

import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from .data.images import cache_folder
from .errors import InputError
from .precision import one_order
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
        self._jitted = jax.jit(
            step,
            donate_argnums=donated,
            out_shardings=(shardings, replicated(mesh)),
            compiler_options=one_order(),
        )
        self._executable = None

    def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        arguments = state, batch, self._teacher_variables
        if self._executable is None:
            self._executable = self._jitted.lower(*arguments).compile()
            check_memory(self._executable.memory_analysis(), free_memory())
        result = self._executable(*arguments)
        if self._debug_nans and not is_finite(result[1]):
            with jax.disable_jit(), jax.debug_nans(True):
                self._step(*arguments)
        return result


def keep_compiled() -> None:
    """What is compiled for an accelerator is kept: in ~/.cache/nrsrd_jax, or JAX_COMPILATION_CACHE_DIR.

    Not for a CPU: there it compiles in seconds, and a program may fail on another machine's CPU.
    """
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if jax.default_backend() != "cpu" and not chosen:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("") / "compiled"))


def is_finite(metrics: dict) -> bool:
    """Whether a step's loss and gradient are; waits for it."""
    return math.isfinite(float(metrics["loss"])) and math.isfinite(float(metrics["gradient_norm"]))


def free_memory() -> int | None:
    """Bytes of a device of this process that are free; None where it does not tell, as a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if {"bytes_limit", "bytes_in_use"} <= stats.keys() else None


def check_memory(analysis, free: int | None) -> None:
    """InputError if a compiled program, by its memory analysis, takes more than is free beside its arguments."""
    if analysis is None or free is None:
        return
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    if needed > free:
        raise InputError(
            f"a training step takes {needed / 2**30:.1f} GiB of each device, of which {free / 2**30:.1f} are free: "
            "lower train.batch_size, set train.remat=True, show the program more devices, raise train.model_parallel, "
            "or set data.cache=disk"
        )
