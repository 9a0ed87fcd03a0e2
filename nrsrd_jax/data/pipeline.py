"""Batches for the training loop: the plan's indices, and where the host serves them, the pixels."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import grain
import numpy as np

from .images import decode
from .sampling import Plan


class Images(Protocol):
    """Images by index: source[indices [B]] -> uint8 [B, H, W, 3]. A numpy array or memory map is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Files:
    """Images that are decoded at every access, for sets that neither memory nor disk can hold decoded."""

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
        labels, cameras: the class and the rank of the camera of each image, int32 [N].
        sources: the images by name, "images" and perhaps "dark_images".
    """

    plan: Plan
    labels: np.ndarray
    cameras: np.ndarray
    sources: dict[str, Images]


def batches(domains: dict[str, Domain], start: int, stop: int, *, pixels: bool, threads: int = 1) -> Iterator[dict]:
    """Yield the batches of steps start..stop−1, read ahead.

    A batch is {"epoch": int32, domain: {"labels": [B], "cameras": [B], "images": [B, H, W, 3], …}}.

    Args:
        domains: the training domains. The epoch is that of the first one.
        start, stop: the steps.
        pixels: False puts image indices [B] in the place of the images, for images that lie on the device.
        threads: how many threads read ahead; 1 suffices unless a source decodes.
    """
    epochs = next(iter(domains.values())).plan

    def load(step: int) -> dict:
        batch: dict = {"epoch": np.int32(epochs.locate(step)[0])}
        for name, domain in domains.items():
            index = domain.plan.batch(step)
            images = {key: source[index] if pixels else index for key, source in domain.sources.items()}
            batch[name] = {"labels": domain.labels[index], "cameras": domain.cameras[index]} | images
        return batch

    steps = grain.MapDataset.range(start, stop).map(load)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)))
