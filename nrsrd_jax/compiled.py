"""Compile the train step once, and check its memory before the first step."""

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
    """Run the train step (state, batch) -> (state, metrics), which is compiled at the first call.

    The state is donated: after a call, the old one cannot be used. The first call raises InputError if the devices have
    too little memory.

    Args:
        step: the train step, (state, batch, teacher_variables) -> (state, metrics).
        shardings: the sharding of each array of the state.
        mesh: the mesh of the devices.
        teacher_variables: the variables of the teacher; None without one.
        debug_nans: whether to run a step again, operation by operation, if its loss or gradient is not finite. The
            first operation that gives NaN then raises FloatingPointError. The state is not donated in this case.
    """

    def __init__(
        self, step: Callable, shardings: TrainState, mesh: Mesh, teacher_variables: dict | None, debug_nans: bool
    ):
        self._step, self._teacher_variables, self._debug_nans = step, teacher_variables, debug_nans
        # A step whose state was donated cannot run again.
        donated = () if debug_nans else (0,)
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
            # Out of memory in the middle of a run would lose its steps, so check before the first one.
            check_memory(self._executable.memory_analysis(), free_memory())
        result = self._executable(*arguments)
        if self._debug_nans and not is_finite(result[1]):
            # Operation by operation, JAX can name the one that gives NaN; compiled, it could not.
            with jax.disable_jit(), jax.debug_nans(True):
                self._step(*arguments)
        return result


def keep_compiled() -> None:
    """Cache programs that are compiled for an accelerator in ~/.cache/nrsrd_jax or JAX_COMPILATION_CACHE_DIR.

    Programs for a CPU are not cached: they compile in seconds, and may fail on another machine's CPU.
    """
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if jax.default_backend() != "cpu" and not chosen:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("") / "compiled"))


def is_finite(metrics: dict) -> bool:
    """Return whether a step's loss and gradient norm are finite. Waits until the step is done."""
    return math.isfinite(float(metrics["loss"])) and math.isfinite(float(metrics["gradient_norm"]))


def free_memory() -> int | None:
    """Return the free bytes of this process's first device, or None if it does not report them, such as a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if {"bytes_limit", "bytes_in_use"} <= stats.keys() else None


def check_memory(analysis, free: int | None) -> None:
    """Raise InputError if a compiled program needs more memory, in addition to its arguments, than is free."""
    if analysis is None or free is None:
        return
    # Outputs that reuse donated arguments take no memory of their own; the analysis calls their bytes aliases.
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    if needed > free:
        raise InputError(
            f"a training step needs {needed / 2**30:.1f} GiB on each device, and {free / 2**30:.1f} GiB are free: "
            "lower train.batch_size, set train.remat=True, show the program more devices, raise train.model_parallel, "
            "or set data.cache=disk"
        )
