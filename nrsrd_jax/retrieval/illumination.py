"""Degrade test images to fixed intensities of light, to measure how recognition falls with the light."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..lowlight import degrade_to

# The seed of each image's simulated camera and noise.
SEED = 0


def read_lights(text: str, option: str = "--illumination") -> tuple[float, ...]:
    """Read intensities of light from text.

    Args:
        text: numbers above 0 and at most 1, separated by commas; 1 is full light. "" for no numbers.
        option: the option's name, for the error message.

    Returns:
        The numbers without duplicates, brightest first.

    Raises:
        InputError: a part of the text is not such a number.

    Example:
        >>> from nrsrd_jax.retrieval.illumination import read_lights
        >>> read_lights("0.1,1,0.5,1")
        (1.0, 0.5, 0.1)
    """
    try:
        lights = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        lights = (0.0,)
    if not all(0 < light <= 1 for light in lights):
        raise InputError(f"{option} {text}: give intensities above 0 and at most 1, such as 1,0.5,0.1; 1 is full light")
    return tuple(sorted(set(lights), reverse=True))


def darkener(light: float, degradation: Mapping[str, Any], stream: int) -> Callable[[int, np.ndarray], np.ndarray]:
    """Return a function that degrades images to one intensity, for `Embedder`'s argument `alter`.

    The camera and noise of an image depend only on `stream` and on its index, so they are the same at every intensity.

    Args:
        light: the intensity, above 0 and at most 1; it scales linear light or sRGB values, as `degradation` says.
        degradation: options of `lowlight.degrade_to` by name, such as `preset`.
        stream: a number that differs between the queries and the gallery, so that they draw different noise.

    Returns:
        A function of the index of a batch's first image and the batch, uint8 [B, H, W, 3] in 0..255, that returns the
        degraded batch in the same form.

    Raises:
        ValueError: an option is unknown or invalid (see `lowlight.resolve`); raised when the function is called.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.illumination import darkener
        >>> darken = darkener(0.1, {"preset": "maet"}, stream=0)
        >>> images = np.full((2, 8, 4, 3), 128, np.uint8)
        >>> dark = darken(0, images)
        >>> dark.dtype, bool(dark.mean() < images.mean())
        (dtype('uint8'), True)
    """
    # A static argument of `jax.jit` must be hashable, which a dict is not.
    options = tuple(sorted(degradation.items()))
    return lambda start, images: np.asarray(_darken(light, stream, start, images, options))


@functools.partial(jax.jit, static_argnames="options")
def _darken(light: jax.Array, stream: jax.Array, start: jax.Array, images: jax.Array, options: tuple) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(SEED), stream)
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(start + jnp.arange(len(images)))
    dark = degrade_to(light, keys, images.astype(jnp.float32) / 255, **dict(options))
    return jnp.round(dark * 255).astype(jnp.uint8)
