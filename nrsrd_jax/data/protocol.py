"""Which gallery images count for a query."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import InputError
from .datasets import Dataset, Split

NO_CAMERAS = "of data without cameras, evaluate with --config.eval.protocol=all-cameras"
Views = tuple[np.ndarray, np.ndarray]  # a number per query [Q] and per gallery image [G]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is evaluated. A gallery image of a query's identity and view is left out of that query's ranking."""

    query: Split
    gallery: Split
    query_views: np.ndarray  # int [Q]
    gallery_views: np.ndarray  # int [G]

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Identities of queries and gallery, then their views: as `evaluation.rank_metrics` takes them."""
        return self.query.pids, self.gallery.pids, self.query_views, self.gallery_views

    @property
    def matched(self) -> np.ndarray:
        """Per query, whether the gallery holds its identity from another view; bool [Q]."""
        seen: dict[int, set[int]] = {}
        for identity, view in zip(self.gallery.pids.tolist(), self.gallery_views.tolist(), strict=True):
            seen.setdefault(identity, set()).add(view)
        pairs = zip(self.query.pids.tolist(), self.query_views.tolist(), strict=True)
        return np.array([bool(seen.get(identity, set()) - {view}) for identity, view in pairs], bool)


def make_target(data: Dataset, protocol: str) -> Target:
    """The test on a data set by one of PROTOCOLS. InputError if an image cannot be read."""
    return Target(data.query, data.gallery, *PROTOCOLS[protocol][1](data.query, data.gallery))


def _cameras(query: Split, gallery: Split) -> Views:
    return query.cameras, gallery.cameras


def _pictures(query: Split, gallery: Split) -> Views:
    """Equal numbers where files of one identity hold the same bytes, as Night600's queries and gallery do."""
    listings = [list(zip(s.pids.tolist(), map(_file_size, s.paths), s.paths, strict=True)) for s in (query, gallery)]
    perhaps = set.intersection(*({row[:2] for row in listing} for listing in listings))
    numbers: dict[bytes | Path, int] = {}

    def number(pid: int, size: int, path: Path) -> int:
        key = hashlib.sha256(path.read_bytes()).digest() if (pid, size) in perhaps else path
        return numbers.setdefault(key, len(numbers))

    query_views, gallery_views = (np.array([number(*row) for row in listing], np.int64) for listing in listings)
    return query_views, gallery_views


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error


PROTOCOLS: dict[str, tuple[str, Callable[[Split, Split], Views]]] = {
    "cross-camera": ("gallery images of the query's identity and camera are left out (Market-1501)", _cameras),
    "all-cameras": ("the whole gallery counts, but for copies of the query itself", _pictures),
}
