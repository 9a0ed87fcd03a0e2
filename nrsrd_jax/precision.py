"""Which numbers are computed in which width, and in which order."""

import jax
import jax.numpy as jnp

from .errors import InputError


def at_least_float32(x: jax.Array) -> jax.Array:
    """For statistics, norms, losses and distances: float32, or what `x` has if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def compute_dtype(precision: str) -> jnp.dtype:
    """The width of the network's matrix products: "auto" is bfloat16 on an accelerator and float32 on CPU."""
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"train.precision is {precision!r}; choose auto, float32 or bfloat16")
    return jnp.dtype(precision)


def one_order() -> dict[str, str | bool]:
    """Compiler options for a program that adds in the same order every time, so the same seed gives the same run."""
    return {"xla_gpu_exclude_nondeterministic_ops": True} if jax.default_backend() == "gpu" else {}
