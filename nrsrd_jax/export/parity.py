"""Compare the features of an exported file with the model's own, and the rankings that follow from them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.crops import crops_of, make_source
from ..data.datasets import Split
from ..data.images import decode_many
from ..errors import InputError
from ..retrieval.files import embed_all
from ..retrieval.ranking import rank_features

# Runtimes choose other kernels for other batch sizes, so one size may be wrong while the others are right.
BATCHES = 1, 2, 7, 32
MOST_CROPS = 64


@dataclasses.dataclass(frozen=True)
class Parity:
    """The comparison of features on a few crops.

    Attributes:
        runtime: the program that ran the file.
        crops: the crops that were compared, in words.
        largest: {batch size: the largest difference of a number of a feature}.
        scale: the root mean square of the numbers in the model's own features.
        nearest_changed: the number of crops whose nearest other crop differs.
        count: the number of crops.
    """

    runtime: str
    crops: str
    largest: dict[int, float]
    scale: float
    nearest_changed: int
    count: int

    @property
    def worst(self) -> float:
        """Return the largest difference at any batch size; NaN if a number is NaN."""
        return float(np.max(list(self.largest.values())))

    def __str__(self) -> str:
        each = ", ".join(f"{batch}: {value:.1e}" for batch, value in self.largest.items())
        return (
            f"{self.runtime}, {self.crops}: largest difference {self.worst:.1e} by batch size ({each}), of numbers "
            f"around {self.scale:.2g}; the nearest crop differs for {self.nearest_changed} of {self.count}"
        )


def compare(
    own: np.ndarray,
    run: Callable[[np.ndarray], Any],
    crops: np.ndarray,
    about: str,
    runtime: str,
    batches: Sequence[int],
) -> Parity:
    """Compare the features of a file with the model's own.

    Args:
        own: the model's own features [N, D].
        run: a function that returns the file's features of a batch of crops.
        crops: uint8 [N, h, w, 3], RGB.
        about: the crops in words.
        runtime: the program behind `run`, in words.
        batches: the batch sizes to try. All crops are compared at each; the first crops fill up the last batch.

    Returns:
        The Parity.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.export.parity import compare
        >>> crops = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
        >>> own = crops.reshape(4, -1).astype(np.float32)
        >>> found = compare(own, lambda batch: batch.reshape(len(batch), -1) + 0.5, crops, "4 crops", "a test", (1, 3))
        >>> found.largest, found.nearest_changed
        ({1: 0.5, 3: 0.5}, 0)
    """
    largest, features = {}, own
    for size in batches:
        index = whole_batches(len(crops), size)
        features = np.concatenate([np.asarray(run(crops[rows])) for rows in index])
        largest[size] = float(np.abs(features - own[index.ravel()]).max())
    # Compare the ranking at the last batch size only. The differences above cover the other sizes.
    changed = int((nearest(features[: len(crops)]) != nearest(own)).sum())
    return Parity(runtime, about, largest, float(np.sqrt(np.square(own).mean())), changed, len(crops))


def whole_batches(count: int, size: int) -> np.ndarray:
    """Return the indices [batches, size] of `count` crops. The first crops fill up the last batch."""
    return (np.arange(-(-count // size) * size) % count).reshape(-1, size)


def nearest(features: np.ndarray) -> np.ndarray:
    """Return the index of the nearest other feature, by cosine, of each feature: [N, D] -> [N]."""
    # In float32, rounding could swap two crops that are about equally near.
    squared = np.square(features).sum(1, dtype=np.float64)
    units = features.astype(np.float64) / np.sqrt(np.maximum(squared, 1e-30))[:, None]
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(1)


def read_crops(folder: str, size: tuple[int, int], most: int = MOST_CROPS) -> tuple[np.ndarray, str]:
    """Return pictures at the model's size, uint8 [N, h, w, 3], and a description of them in words.

    Args:
        folder: a folder of crops or a manifest; "" for generated pictures.
        size: (height, width) in pixels.
        most: the largest number of crops. From a larger folder, crops at even distances are taken.

    Raises:
        InputError: the folder has no crops, or one of them cannot be read.
    """
    if not folder:
        return generated(size), "generated pictures"
    paths = [Path(path) for path in sorted(crops_of([make_source(Path(folder), "", "")]))]
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]
    images = np.empty((len(chosen), *size, 3), np.uint8)
    decode_many(chosen, size, "bilinear", images, advice="")
    return images, f"{len(images)} crops of {Path(folder).name}"


def generated(size: tuple[int, int], count: int = MOST_CROPS) -> np.ndarray:
    """Return pictures of soft coloured spots, from bright to nearly black. They are the same in every call."""
    rng, pictures = np.random.default_rng(0), []
    for light in np.linspace(1, 0.05, count):
        spots = Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8))
        spots = spots.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        pictures.append(np.clip(np.asarray(spots) * light + rng.normal(0, 4, (*size, 3)), 0, 255).astype(np.uint8))
    return np.stack(pictures)


def scores(embedder: Any, crops: Split, with_cameras: bool) -> float:
    """Return the mAP of labelled crops, each as a query against all others.

    Crops with the query's person and camera do not count.

    Raises:
        InputError: no crop has a match.
    """
    features = embed_all(embedder, crops.paths).features
    # Without cameras, give each crop its own camera, so that only the crop itself is left out.
    cameras = crops.cameras if with_cameras else np.arange(len(crops))
    found = rank_features(features, features, crops.pids, crops.pids, cameras, cameras)
    if not found.valid.any():
        raise InputError("no labelled crop has another crop of the same person from another camera")
    return float(found.mAP)
