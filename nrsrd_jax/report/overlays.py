"""What the last block's attention does on the queries, in a few hundred bytes each.

N images, P patches
"""

import base64
import dataclasses

import numpy as np
from tqdm import tqdm

from ..analysis.maps import Probe
from ..analysis.statistics import patch_attention, patch_norms

BLOCK = 256  # images whose maps of all blocks are held at once
ENDS = (0.005, 0.995)  # shares of all norms that are drawn as the first colour and the last


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A map of N images, a byte per patch, from `bottom` (0) to `top` (255): one of all images, or [N] of each.

    `low` and `high` are each image's smallest and largest value, [N].
    """

    name: str
    label: str
    levels: np.ndarray  # uint8 [N, P]
    bottom: float
    top: float | list[float]
    low: list[float]
    high: list[float]

    def to_json(self) -> dict:
        values = dataclasses.asdict(self)
        return values | {"levels": base64.b64encode(self.levels.tobytes()).decode()}


def make_overlays(probe: Probe, images: np.ndarray, rows: np.ndarray) -> list[Overlay]:
    """Of images[rows]: norms of Q and K, the CLS query's attention, and with NRA that without it."""
    parts = []
    for start in tqdm(range(0, len(rows), BLOCK), "maps", unit="block", leave=False, disable=None):
        parts.append(_last_block(probe, images[rows[start : start + BLOCK]]))
    grids = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    nra = f", NRA at λ = {probe.strength:.3g}" if "plain" in grids else ""
    labels = {"q": "Q norm", "k": "K norm", "attention": f"CLS attention{nra}", "plain": "CLS attention without NRA"}
    return [_quantise(name, labels[name], grid, shared=name in ("q", "k")) for name, grid in grids.items()]


def _last_block(probe: Probe, images: np.ndarray) -> dict[str, np.ndarray]:
    """[N, P] each."""
    maps = probe(images)
    grids = {"q": patch_norms(maps, "q"), "k": patch_norms(maps, "k"), "attention": patch_attention(maps)}
    if probe.description.norm_ratio:
        grids["plain"] = patch_attention(probe(images, strength=0.0))
    return grids


def _quantise(name: str, label: str, grid: np.ndarray, shared: bool) -> Overlay:
    bottom, top = np.quantile(grid, ENDS) if shared else (0.0, grid.max(1))
    width = np.maximum(top - bottom, np.finfo(np.float32).tiny)
    levels = np.clip(np.round((grid - bottom) * 255 / np.reshape(width, (-1, 1))), 0, 255).astype(np.uint8)
    ends = float(f"{bottom:.4g}"), float(f"{top:.4g}") if shared else _short(top)
    return Overlay(name, label, levels, *ends, _short(grid.min(1)), _short(grid.max(1)))


def _short(numbers: np.ndarray) -> list[float]:
    return [float(f"{number:.4g}") for number in numbers]
