"""Numbers behind the figures: norms against the distance from the image's centre, of person and background.

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
BINS = 40  # of a joint histogram, each way


def patch_norms(maps: Maps, vector: str, block: int = -1) -> np.ndarray:
    """Norms of whole vectors ("q", "k" or "v") of a block's patches, [N, P]."""
    return token_norm(getattr(maps, f"{vector}_norm")[:, block])[:, 1:]


def patch_attention(maps: Maps, block: int = -1) -> np.ndarray:
    """The CLS query's attention to each patch of a block, mean over heads; [N, P]."""
    return maps.attention[:, block].mean(1)[:, 1:]


def joint_histogram(every: Iterable[Maps]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each Maps the counts [Q bins, K bins] of the patches' norms in the last block, and the bins, common to all."""
    norms = [[patch_norms(maps, vector).ravel() for vector in "qk"] for maps in every]
    ends = [(min(x.min() for x in column), max(x.max() for x in column)) for column in zip(*norms, strict=True)]
    return [np.histogram2d(q, k, BINS, ends) for q, k in norms]


def centre_distance(grid: tuple[int, int]) -> np.ndarray:
    """Distance of each patch's centre from the image's, in 0..1 of half the image's diagonal; [P]."""
    y, x = (np.arange(n) + 0.5 - n / 2 for n in grid)
    return np.hypot(y[:, None], x).ravel() / np.hypot(*grid) * 2


def correlation(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pearson's correlation of rows [N, P]; NaN for a row that is constant; [N]."""
    left, right = (x - x.mean(-1, keepdims=True) for x in np.broadcast_arrays(np.float64(left), right))
    scale = np.sqrt(np.square(left).sum(-1) * np.square(right).sum(-1))
    return np.divide((left * right).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


class Trend(NamedTuple):
    """A line fitted by least squares, and the correlation, of all points together."""

    slope: float
    intercept: float
    correlation: float


def trend(x: np.ndarray, y: np.ndarray) -> Trend:
    """Of points x [P], y [N, P]."""
    every_x = np.broadcast_to(x, y.shape).ravel()
    slope, intercept = np.polyfit(every_x, y.ravel(), 1)
    return Trend(float(slope), float(intercept), float(correlation(every_x, y.ravel())))


class Interval(NamedTuple):
    """A mean over images and its 95 % interval (Student's t); `images` are those with a number.

    It takes images for independent, which several of one person from one camera are not quite.
    """

    mean: float
    low: float
    high: float
    images: int


def interval(values: np.ndarray) -> Interval:
    """Of one number per image [N], NaN passed over; without a second number the interval is unbounded."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(np.nan, -np.inf, np.inf, 0)
    half = np.inf
    if len(values) > 1:
        half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, float(mean - half), float(mean + half), len(values))


def centre_region(grid: tuple[int, int]) -> np.ndarray:
    """A prior for where the person is: an upright ellipse of half the width and 9/10 of the height; bool [P]."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in grid)
    return ((y[:, None] / 0.45) ** 2 + (x / 0.25) ** 2 <= 1).ravel()


def read_masks(folder: Path, images: Sequence[Path], grid: tuple[int, int]) -> np.ndarray:
    """Person masks: pictures in `folder` with the images' names (any ending), bright where the person is; bool [N, P].

    A patch is person if at least half of it is. InputError if a mask is missing, or has nobody or only the person.
    """
    if not folder.is_dir():
        raise InputError(f"--masks {folder} is not a folder")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}
    if len({path.stem for path in images}) < len(images):
        raise InputError("two images have the same name except for folder and ending; --masks cannot tell them apart")
    regions = []
    for path in images:
        if path.stem not in found:
            raise InputError(f"--masks {folder} has no mask for {path.name}: a picture named {path.stem}.png")
        mask = Image.fromarray((np.asarray(read_rgb(found[path.stem])).mean(2) >= 128).astype(np.uint8) * 255)
        share = np.asarray(mask.convert("F").resize((grid[1], grid[0]), Image.Resampling.BOX)) / 255
        regions.append((share >= 0.5).ravel())
        if regions[-1].all() or not regions[-1].any():
            raise InputError(f"the mask {found[path.stem]} leaves no patch for the person, or none for the background")
    return np.stack(regions)


def region_mean(values: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Per image the mean of values [N, …, P] over a region [N, P] or [P]; [N, …]."""
    shape = region.shape[:-1] + (1,) * (values.ndim - region.ndim) + region.shape[-1:]
    return np.mean(values, -1, where=np.broadcast_to(region.reshape(shape), values.shape))


def entropy(attention: np.ndarray) -> np.ndarray:
    """Of attention weights [..., T], in nats: the higher, the more dispersed."""
    return -np.sum(attention * np.log(np.maximum(attention, np.finfo(np.float32).tiny)), -1)


def moved_attention(left: Maps, right: Maps) -> float:
    """The share of the CLS query's attention in the last block that lies elsewhere, mean over images and heads."""
    return float(np.abs(left.attention[:, -1] - right.attention[:, -1]).sum(-1).mean() / 2)
