"""Batch plans: the images of each step's batch, as a pure function of (seed, step)."""

import bisect
import functools
import threading

import numpy as np

from ..errors import InputError


def check_identities(labels: np.ndarray) -> None:
    """Raise InputError if the classes [N] of the training images are fewer than two."""
    if not len(labels):
        raise InputError("there are no training images: data.exclude leaves out all of them, or the list is empty")
    if len(np.unique(labels)) < 2:
        raise InputError("the training images show a single identity; training needs at least 2")


class BatchPlan:
    """Batches of P identities × K images, with the epochs of the official RandomIdentitySampler.

    In an epoch, the images of every identity are shuffled and cut into groups of K; a remainder is left out. An
    identity with fewer than K images is sampled with replacement. Each batch takes a group of each of P random
    identities, until fewer than P identities have groups left. Therefore epochs differ a little in length.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, instances: int, seed: int, stream: int = 0):
        """Plan the batches.

        Args:
            labels: the class of each image, [N].
            batch_size: P·K.
            instances: K.
            seed: the seed of the run.
            stream: a number for each domain, so that domains with the same seed draw differently.

        Raises:
            InputError: there are too few images or identities, or P·K is not a multiple of K.
        """
        if instances < 1 or batch_size < 1 or batch_size % instances:
            raise InputError(
                f"train.batch_size {batch_size} is not a multiple of train.instances {instances} (images per identity)"
            )
        self.identities, self.instances = batch_size // instances, instances
        self.seed, self.stream = seed, stream
        check_identities(labels)
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if len(self.members) < self.identities:
            raise InputError(
                f"the training images show {len(self.members)} identities, but a batch of {batch_size} takes "
                f"{self.identities} with {instances} images each; add images, or lower train.batch_size to "
                f"{len(self.members) * instances} or less"
            )
        # Steps come in order, so that two epochs in memory suffice.
        self.epoch = functools.lru_cache(maxsize=2)(self._draw)
        self._ends: list[int] = []  # the number of steps up to the end of each epoch
        # Threads that prepare batches share this plan.
        self._lock = threading.RLock()

    def _draw(self, epoch: int) -> np.ndarray:
        """Return the image indices of 0-based `epoch`, [batches, P·K]."""
        # Each epoch has a seed of its own, so that an epoch that has left the cache is drawn again exactly.
        rng = np.random.default_rng([self.seed, self.stream, epoch])
        groups = []
        for members in self.members:
            if len(members) < self.instances:
                members = rng.choice(members, self.instances)
            members = rng.permutation(members)
            count = len(members) // self.instances
            groups.append(list(members[: count * self.instances].reshape(count, self.instances)))
        available = np.arange(len(groups))
        batches = []
        while len(available) >= self.identities:
            chosen = rng.choice(available, self.identities, replace=False)
            batches.append(np.concatenate([groups[identity].pop() for identity in chosen]))
            available = np.array([identity for identity in available if groups[identity]])
        return np.stack(batches)

    def steps(self, epochs: int) -> int:
        """Return the number of steps in the first `epochs` epochs."""
        while len(self._ends) < epochs:
            previous = self._ends[-1] if self._ends else 0
            self._ends.append(previous + len(self.epoch(len(self._ends))))
        return self._ends[epochs - 1] if epochs else 0

    def locate(self, step: int) -> tuple[int, int]:
        """Return the 0-based epoch of 0-based `step`, and the number of its batch within the epoch."""
        with self._lock:
            while not self._ends or self._ends[-1] <= step:
                self.steps(len(self._ends) + 1)
            epoch = bisect.bisect_right(self._ends, step)
            return epoch, step - self.steps(epoch)

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of the batch of `step`, [P·K], identity by identity."""
        epoch, index = self.locate(step)
        with self._lock:
            return self.epoch(epoch)[index]


class ShuffledPlan:
    """Batches of images in random order, each image at most once in an epoch. An incomplete batch is left out.

    `images` is their number; `batch_size`, `seed` and `stream` are as in BatchPlan.
    """

    def __init__(self, images: int, batch_size: int, seed: int, stream: int = 0):
        if images < batch_size:
            raise InputError(f"there are {images} images, fewer than train.batch_size {batch_size}; lower it")
        self.images, self.batch_size, self.seed, self.stream = images, batch_size, seed, stream
        self._order = functools.lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, self.stream]).permutation(self.images)

    def steps(self, epochs: int) -> int:
        """Return the number of steps in the first `epochs` epochs."""
        return epochs * (self.images // self.batch_size)

    def locate(self, step: int) -> tuple[int, int]:
        """Return the 0-based epoch of 0-based `step`, and the number of its batch within the epoch."""
        return divmod(step, self.steps(1))

    def batch(self, step: int) -> np.ndarray:
        """Return the image indices of the batch of `step`, [B]."""
        epoch, index = self.locate(step)
        return self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]


Plan = BatchPlan | ShuffledPlan
