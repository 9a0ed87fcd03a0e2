"""How recognition falls with the light: test images degraded at fixed intensities."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..lowlight import degrade_to

SEED = 0  # of camera and noise


def read_lights(text: str, option: str = "--illumination") -> tuple[float, ...]:
    """Numbers, brightest first, from text like 1,0.5,0.1; InputError if one is none, or not in 0..1 (0 excluded)."""
    try:
        lights = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        lights = (0.0,)
    if not all(0 < light <= 1 for light in lights):
        raise InputError(f"{option} {text}: give intensities in 0..1 like 1,0.5,0.2,0.1,0.05; 1 is full light")
    return tuple(sorted(set(lights), reverse=True))


def darkener(light: float, degradation: Mapping[str, Any], stream: int) -> Callable[[int, np.ndarray], np.ndarray]:
    """Images as a share `light` of their light would show them: (place of the first, uint8 [B, H, W, 3]) -> the same.

    It scales linear light or sRGB values, as `degradation` says: options of `lowlight.degrade`. An image's camera and
    noise depend on `stream` and its place alone, and are the same at every intensity.
    """
    options = tuple(sorted(degradation.items()))
    return lambda start, images: np.asarray(_darken(light, stream, start, images, options))


@functools.partial(jax.jit, static_argnames="options")
def _darken(light: jax.Array, stream: jax.Array, start: jax.Array, images: jax.Array, options: tuple) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(SEED), stream)
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(start + jnp.arange(len(images)))
    dark = degrade_to(light, keys, images.astype(jnp.float32) / 255, **dict(options))
    return jnp.round(dark * 255).astype(jnp.uint8)
