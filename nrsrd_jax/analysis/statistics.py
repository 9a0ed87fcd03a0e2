"""Statistics of norms and attention: correlations with the distance from the centre, person and background, intervals.

N images, P patches of a grid (rows, columns), row by row
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats
from PIL import Image

from ..data.images import read_rgb
from ..data.listing import IMAGE_SUFFIXES
from ..errors import InputError
from .maps import Maps, token_norm

VECTORS = ("q", "k", "v")
# Bins of a joint histogram, in each direction.
BINS = 40


def patch_norms(maps: Maps, vector: str, block: int = -1) -> np.ndarray:
    """Return the norms [N, P] of a block's whole "q", "k" or "v" vectors, without the CLS token."""
    return token_norm(getattr(maps, f"{vector}_norm")[:, block])[:, 1:]


def patch_attention(maps: Maps, block: int = -1) -> np.ndarray:
    """Return the CLS query's attention to each patch in a block, averaged over heads, [N, P]."""
    return maps.attention[:, block].mean(1)[:, 1:]


def joint_histogram(every: Iterable[Maps]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Count the patches by Q and K norm in the last block.

    Returns (counts [Q bins, K bins], Q edges, K edges) for each of the Maps. All use the same edges.
    """
    norms = [[patch_norms(maps, vector).ravel() for vector in "qk"] for maps in every]
    ends = [(min(x.min() for x in column), max(x.max() for x in column)) for column in zip(*norms, strict=True)]
    return [np.histogram2d(q, k, BINS, ends) for q, k in norms]


def centre_distance(grid: tuple[int, int]) -> np.ndarray:
    """Return the distance [P] of each patch's centre from the image's centre, where 1 is half the diagonal."""
    y, x = (np.arange(n) + 0.5 - n / 2 for n in grid)
    return np.hypot(y[:, None], x).ravel() / np.hypot(*grid) * 2


def correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation [N] of the rows of two arrays [N, P]. It is NaN for a constant row."""
    left, right = (x - x.mean(-1, keepdims=True) for x in np.broadcast_arrays(np.float64(left), right))
    scale = np.sqrt(np.square(left).sum(-1) * np.square(right).sum(-1))
    return np.divide((left * right).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


class Trend(NamedTuple):
    """A least-squares line through all points together, and their correlation."""

    slope: float
    intercept: float
    correlation: float


def trend(x: np.ndarray, y: np.ndarray) -> Trend:
    """Fit a line to the points (x [P], y [N, P])."""
    every_x = np.broadcast_to(x, y.shape).ravel()
    slope, intercept = np.polyfit(every_x, y.ravel(), 1)
    return Trend(float(slope), float(intercept), float(correlation(every_x, y.ravel())))


class Interval(NamedTuple):
    """A mean over images with its 95 % interval (Student's t). `images` counts the images that have a number.

    The interval assumes independent images. Several images of one person from one camera are not quite independent.
    """

    mean: float
    low: float
    high: float
    images: int


def interval(values: np.ndarray) -> Interval:
    """Return the mean and interval of one number per image [N], without NaN. One number has an unbounded interval."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(np.nan, -np.inf, np.inf, 0)
    half = np.inf
    if len(values) > 1:
        half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, float(mean - half), float(mean + half), len(values))


def centre_region(grid: tuple[int, int]) -> np.ndarray:
    """Return where a person usually is, bool [P]: an upright ellipse of half the width and 9/10 of the height."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in grid)
    return ((y[:, None] / 0.45) ** 2 + (x / 0.25) ** 2 <= 1).ravel()


def read_masks(folder: Path, images: Sequence[Path], grid: tuple[int, int]) -> np.ndarray:
    """Read person masks.

    Args:
        folder: has an image per mask, bright where the person is. It has the name of its image, with any suffix.
        images: the paths of the images.
        grid: the number of (rows, columns) of patches.

    Returns:
        Whether at least half of a patch shows the person, bool [N, P].

    Raises:
        InputError: a mask is missing, or has no patch of the person or no patch of the background.
    """
    if not folder.is_dir():
        raise InputError(f"--masks {folder} is not a folder")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    # Masks are found by name without suffix, so this name must be unique.
    if len({path.stem for path in images}) < len(images):
        raise InputError("two images differ only in folder and suffix, so they would share a mask; rename one of them")
    regions = []
    for path in images:
        if path.stem not in found:
            raise InputError(f"--masks {folder} has no mask for {path.name}; add one named {path.stem}.png")
        mask = Image.fromarray((np.asarray(read_rgb(found[path.stem])).mean(2) >= 128).astype(np.uint8) * 255)
        # Resizing with a box filter averages the mask over each patch.
        share = np.asarray(mask.convert("F").resize((grid[1], grid[0]), Image.Resampling.BOX)) / 255
        regions.append((share >= 0.5).ravel())
        if regions[-1].all() or not regions[-1].any():
            raise InputError(
                f"the mask {found[path.stem]} has no patch of the person or no patch of the background; correct it"
            )
    return np.stack(regions)


def region_mean(values: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return the mean [N, …] of values [N, …, P] over each image's region, bool [N, P], or over one region [P]."""
    # Insert axes for the dimensions of `values` between N and P, so that the region broadcasts over them.
    shape = region.shape[:-1] + (1,) * (values.ndim - region.ndim) + region.shape[-1:]
    return np.mean(values, -1, where=np.broadcast_to(region.reshape(shape), values.shape))


def entropy(attention: np.ndarray) -> np.ndarray:
    """Return the entropy of attention weights [..., T] in nats. It is higher for more dispersed attention."""
    # The limit of x log x at 0 is 0, but np.log(0) would give NaN.
    return -np.sum(attention * np.log(np.maximum(attention, np.finfo(np.float32).tiny)), -1)


def moved_attention(left: Maps, right: Maps) -> float:
    """Return the share in 0..1 of the CLS query's attention in the last block that differs between two Maps.

    It is half the sum of the absolute differences, averaged over images and heads.
    """
    return float(np.abs(left.attention[:, -1] - right.attention[:, -1]).sum(-1).mean() / 2)
