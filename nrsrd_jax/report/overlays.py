"""Maps of the last block's attention on the queries, in a few hundred bytes each.

N images, P patches.
"""

import base64
import dataclasses

import numpy as np
from tqdm import tqdm

from ..analysis.maps import Probe
from ..analysis.statistics import patch_attention, patch_norms

# How many images have their maps of all blocks in memory at once.
BLOCK = 256
# The quantiles of all norms that are drawn in the first and in the last colour.
ENDS = (0.005, 0.995)


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A map for each of N images, with one byte per patch.

    Attributes:
        name: a short name, such as "attention".
        label: the words for it on the page.
        levels: uint8 [N, P].
        bottom: the value that 0 stands for.
        top: the value that 255 stands for, one for all images, or one for each [N].
        low, high: the smallest and the largest value of each image [N].
    """

    name: str
    label: str
    levels: np.ndarray
    bottom: float
    top: float | list[float]
    low: list[float]
    high: list[float]

    def to_json(self) -> dict:
        """Return the attributes as JSON values, with `levels` in base64."""
        values = dataclasses.asdict(self)
        return values | {"levels": base64.b64encode(self.levels.tobytes()).decode()}


def make_overlays(probe: Probe, images: np.ndarray, rows: np.ndarray) -> list[Overlay]:
    """Make the maps of images[rows]: norms of Q and K, the CLS query's attention, and with NRA also that without NRA.

    Args:
        probe: the model.
        images: uint8 [N, H, W, 3].
        rows: the indices of the images to map.
    """
    parts = []
    for start in tqdm(range(0, len(rows), BLOCK), "maps", unit="block", leave=False, disable=None):
        parts.append(_last_block(probe, images[rows[start : start + BLOCK]]))
    grids = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    nra = f", NRA at λ = {probe.strength:.3g}" if "plain" in grids else ""
    labels = {"q": "Q norm", "k": "K norm", "attention": f"CLS attention{nra}", "plain": "CLS attention without NRA"}
    # Norms are compared between images, so they share a scale. The attention of each image sums to 1.
    return [_quantise(name, labels[name], grid, shared=name in ("q", "k")) for name, grid in grids.items()]


def _last_block(probe: Probe, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the values of each map of the last block, by its name, [N, P] each."""
    maps = probe(images)
    grids = {"q": patch_norms(maps, "q"), "k": patch_norms(maps, "k"), "attention": patch_attention(maps)}
    if probe.description.norm_ratio:
        grids["plain"] = patch_attention(probe(images, strength=0.0))
    return grids


def _quantise(name: str, label: str, grid: np.ndarray, shared: bool) -> Overlay:
    """Turn values [N, P] into bytes, on a scale that all images share, or on a scale from 0 for each image."""
    bottom, top = np.quantile(grid, ENDS) if shared else (0.0, grid.max(1))
    # If all values are equal, the width is 0. Divide by the smallest number instead, which gives 0, not NaN.
    width = np.maximum(top - bottom, np.finfo(np.float32).tiny)
    levels = np.clip(np.round((grid - bottom) * 255 / np.reshape(width, (-1, 1))), 0, 255).astype(np.uint8)
    ends = float(f"{bottom:.4g}"), float(f"{top:.4g}") if shared else _short(top)
    return Overlay(name, label, levels, *ends, _short(grid.min(1)), _short(grid.max(1)))


def _short(numbers: np.ndarray) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]
