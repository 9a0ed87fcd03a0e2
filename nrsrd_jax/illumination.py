"""How recognition falls with the light: test images degraded at fixed intensities."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from .errors import InputError
from .files import written_whole
from .lowlight import degrade_to

SEED = 0  # of camera and noise
MOST_TICKS = 8  # beside each other in the plot


def read_lights(text: str, option: str = "--illumination") -> tuple[float, ...]:
    """Numbers, brightest first, from text like 1,0.5,0.1; InputError if one is none, or not in 0..1 (0 excluded)."""
    try:
        lights = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        lights = (0.0,)
    if not all(0 < light <= 1 for light in lights):
        raise InputError(f"{option} {text}: give intensities in 0..1 like 1,0.5,0.2,0.1,0.05; 1 is full light")
    return tuple(sorted(set(lights), reverse=True))


def darkener(light: float, degradation: dict[str, Any], stream: int) -> Callable[[int, np.ndarray], np.ndarray]:
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


def plot(path: Path, targets: Mapping[str, dict[str, Any]], title: str) -> None:
    """mAP and Rank-1 of each data set's "illumination" against the light, as a PNG; dashed: images as they are."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lights = []
    for index, (name, target) in enumerate(targets.items()):
        lights = [row["light"] for row in target["illumination"]]
        for metric, label, marker in (("mAP", "mAP", "o"), ("rank1", "Rank-1", "s")):
            values, colour = [100 * row[metric] for row in target["illumination"]], f"C{2 * index + (marker == 's')}"
            axes.plot(lights, values, marker=marker, label=f"{name} {label}", color=colour)
            axes.axhline(100 * target[metric], color=colour, linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="light, with the sensor's noise", ylabel="mAP, Rank-1 (%)", ylim=(0, None))
    axes.set_title(title, fontsize="small")
    if len(lights) <= MOST_TICKS:
        axes.set_xticks(lights, [f"{light:g}" for light in lights])
        axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend(title="dashed: as given")
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
