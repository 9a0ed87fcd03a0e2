"""Batches for the training loop: the plan's indices, and where the host serves them, the pixels."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import grain
import numpy as np

from .images import decode
from .sampling import BatchPlan


class Source(Protocol):
    """Images by index: source[indices [B]] -> uint8 [B, H, W, 3]. A numpy array or memory map is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Files:
    """A Source that decodes at every access, for sets that neither memory nor disk can hold decoded."""

    paths: Sequence[Path]
    size: tuple[int, int]
    resampling: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([decode(self.paths[i], self.size, self.resampling) for i in indices])


@dataclasses.dataclass(frozen=True)
class Domain:
    """One training domain: its plan, its labels [N], and its sources by name ("images", "dark_images")."""

    plan: BatchPlan
    labels: np.ndarray
    sources: dict[str, Source]


def batches(domains: dict[str, Domain], start: int, stop: int, *, pixels: bool, threads: int = 1) -> Iterator[dict]:
    """{"epoch": int32, domain: {"labels": [B], "images": [B, H, W, 3], …}} for the steps start..stop−1, read ahead.

    Without `pixels` the sources' names hold image indices [B] instead, for images that wait on the device. The epoch
    is that of the first domain. `threads` read ahead: 1 will do unless a source decodes.
    """
    epochs = next(iter(domains.values())).plan

    def load(step: int) -> dict:
        batch: dict = {"epoch": np.int32(epochs.locate(step)[0])}
        for name, domain in domains.items():
            index = domain.plan.batch(step)
            images = {key: source[index] if pixels else index for key, source in domain.sources.items()}
            batch[name] = {"labels": domain.labels[index]} | images
        return batch

    steps = grain.MapDataset.range(start, stop).map(load)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)))
