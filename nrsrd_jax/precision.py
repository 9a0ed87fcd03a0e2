"""Choose the data type of computations, and make sums have a fixed order."""

import jax
import jax.numpy as jnp

from .errors import InputError


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return `x` in float32, or unchanged if its type is wider. Statistics, norms, losses and distances need it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def compute_dtype(precision: str) -> jnp.dtype:
    """Return the data type of matrix products: "auto" is bfloat16 on an accelerator and float32 on a CPU."""
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"train.precision is {precision!r}; choose auto, float32 or bfloat16")
    return jnp.dtype(precision)


def one_order() -> dict[str, str | bool]:
    """Return compiler options that make sums have a fixed order, so that equal seeds give equal runs."""
    return {"xla_gpu_exclude_nondeterministic_ops": True} if jax.default_backend() == "gpu" else {}
