"""Batches for the training loop: image indices from the plan, or pixels if the host loads the images."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import grain
import numpy as np

from .images import decode
from .sampling import Plan


class Images(Protocol):
    """Images by index: source[indices [B]] -> uint8 [B, H, W, 3]. A NumPy array or memory map qualifies."""

    def __len__(self) -> int: ...
    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Files:
    """Images that are decoded at every access, for data sets too large to keep decoded in memory or on disk."""

    paths: Sequence[Path]
    size: tuple[int, int]
    resampling: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([decode(self.paths[i], self.size, self.resampling) for i in indices])


@dataclasses.dataclass(frozen=True)
class Domain:
    """One training domain.

    Attributes:
        plan: which images each batch takes.
        labels, cameras: the class of each image, and the rank of its camera, int32 [N].
        sources: {"images": …}, and {"dark_images": …} if the domain has dark versions.
    """

    plan: Plan
    labels: np.ndarray
    cameras: np.ndarray
    sources: dict[str, Images]


def batches(domains: dict[str, Domain], start: int, stop: int, *, pixels: bool, threads: int = 1) -> Iterator[dict]:
    """Yield the batches of steps start..stop−1. Threads prepare the next batches in advance.

    A batch is {"epoch": int32, domain: {"labels": [B], "cameras": [B], "images": [B, H, W, 3], …}}.

    Args:
        domains: the training domains by name. The first one determines the epoch.
        start, stop: the first step, and the one after the last.
        pixels: whether to load images. False yields indices [B] in their place, for images that are on the device.
        threads: the number of threads; 1 suffices unless a source decodes files.
    """
    epochs = next(iter(domains.values())).plan

    def load(step: int) -> dict:
        batch: dict = {"epoch": np.int32(epochs.locate(step)[0])}
        for name, domain in domains.items():
            index = domain.plan.batch(step)
            images = {key: source[index] if pixels else index for key, source in domain.sources.items()}
            batch[name] = {"labels": domain.labels[index], "cameras": domain.cameras[index]} | images
        return batch

    # grain yields the batches in order, however many threads load them, so that equal seeds give equal runs.
    steps = grain.MapDataset.range(start, stop).map(load)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)))
