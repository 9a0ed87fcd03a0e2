"""The test protocols: which gallery images count for a query."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..files import readable
from .datasets import Dataset, Split

Views = tuple[np.ndarray, np.ndarray]  # a number per query [Q] and per gallery image [G]


@dataclasses.dataclass(frozen=True)
class Target:
    """The queries and the gallery of a test.

    A gallery image with the same identity and view as a query is left out of that query's ranking.

    Attributes:
        query, gallery: Q queries and G gallery images.
        query_views, gallery_views: the view of each, int [Q] and [G]: its camera, or what the protocol makes of it.
        version: the version of the data set; "" if it has only one.
    """

    query: Split
    gallery: Split
    query_views: np.ndarray
    gallery_views: np.ndarray
    version: str = ""

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the identities of queries and gallery, then their views, in the order of `rank_metrics`' arguments."""
        return self.query.pids, self.gallery.pids, self.query_views, self.gallery_views

    @property
    def matched(self) -> np.ndarray:
        """Return for each query whether the gallery has its identity in another view; bool [Q]."""
        people = collections.Counter(self.gallery.pids.tolist())
        left_out = collections.Counter(zip(self.gallery.pids.tolist(), self.gallery_views.tolist(), strict=True))
        pairs = zip(self.query.pids.tolist(), self.query_views.tolist(), strict=True)
        return np.array([people[identity] > left_out[identity, view] for identity, view in pairs], bool)


def hold_out(train: Split, share: float) -> tuple[Split, Target]:
    """Split training images by identity into training images and a test.

    The test's people are drawn from those with images from several cameras; the draw is always the same. The first
    image of a person from each camera is a query. All images of these people are in the gallery. Gallery images from
    the query's own camera do not count.

    Args:
        train: the training images.
        share: the share of the people to hold out, in 0..1; at least two people are held out.

    Returns:
        The remaining training images, and the test.

    Raises:
        InputError: fewer than two people have images from several cameras, or nobody would remain to learn from.
    """
    several = [pid for pid in train.identities if len(np.unique(train.cameras[train.pids == pid])) > 1]
    count = max(2, round(share * len(train.identities)))
    if len(several) < count or len(train.identities) - count < 2:
        raise InputError(
            f"data.holdout={share:g} needs {count} people with images from several cameras, and 2 more to learn from; "
            f"there are {len(train.identities)} people, {len(several)} of them with several cameras"
        )
    # A fixed seed gives every run the same test, so that their results can be compared.
    held = np.isin(train.pids, np.random.default_rng(0).permutation(several)[:count])
    gallery = train.subset(np.flatnonzero(held))
    pairs = np.stack([gallery.pids, gallery.cameras], axis=1)
    # np.unique returns the index of the first image of each person from each camera.
    query = gallery.subset(np.sort(np.unique(pairs, axis=0, return_index=True)[1]))
    return train.subset(np.flatnonzero(~held)), Target(query, gallery, query.cameras, gallery.cameras)


class Protocol(NamedTuple):
    """A test protocol: its meaning in words, and the function from queries and gallery to their views."""

    meaning: str
    views: Callable[[Split, Split], Views]


def make_target(data: Dataset, protocol: str) -> Target:
    """Return the test on a data set by one of PROTOCOLS.

    Raises:
        InputError: an image cannot be read.
    """
    return Target(data.query, data.gallery, *PROTOCOLS[protocol].views(data.query, data.gallery), data.version)


def advice(data: Dataset) -> str:
    """Return what to do if no query has a match.

    Only for data without cameras this is the protocol all-cameras. With cameras, that protocol would also count the
    easy matches from the query's own camera.
    """
    cameras = np.unique(np.concatenate([split.cameras for split in (data.train, data.query, data.gallery)]))
    if len(cameras) == 1:
        return "for data without cameras set --config.eval.protocol=all-cameras"
    return f"look at the identities and cameras in the names (cameras read: {', '.join(map(str, cameras[:9]))})"


def _cameras(query: Split, gallery: Split) -> Views:
    return query.cameras, gallery.cameras


def _copies(query: Split, gallery: Split) -> Views:
    """Return views that are equal for identical files of one identity, which Night600's queries and gallery contain."""
    sizes = [[(pid, _size(path)) for pid, path in zip(s.pids.tolist(), s.paths, strict=True)] for s in (query, gallery)]
    # Only files with the same identity and size can be copies. Reading all others would be slow.
    perhaps = set(sizes[0]) & set(sizes[1])
    numbers: dict[bytes | Path, int] = {}

    def view(path: Path, size: tuple[int, int]) -> int:
        return numbers.setdefault(_digest(path) if size in perhaps else path, len(numbers))

    query_views, gallery_views = (
        np.array([view(*row) for row in zip(split.paths, of_split, strict=True)], np.int64)
        for split, of_split in zip((query, gallery), sizes, strict=True)
    )
    return query_views, gallery_views


def _size(path: Path) -> int:
    with readable(path):
        return path.stat().st_size


def _digest(path: Path) -> bytes:
    with readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


PROTOCOLS = {
    "cross-camera": Protocol("gallery images of the query's identity and camera are left out (Market-1501)", _cameras),
    "all-cameras": Protocol("the whole gallery counts, except exact copies of the query", _copies),
}
