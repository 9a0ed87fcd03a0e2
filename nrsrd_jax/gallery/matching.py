"""Search a gallery for the crops that are most similar to each query.

Q queries, N crops of the gallery, D feature width, K matches of a query. Similarity is the cosine of two features, in
−1..1. If similarities are equal, the crop that was added earlier ranks first, as in `nrsrd eval`.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import lancedb.index
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..retrieval.distances import unit_rows
from ..retrieval.rerank import reranked_distances
from ..retrieval.standardize import brightness_groups, standardize_groups
from .conditions import one_of, quote
from .store import Gallery, storage_errors, vectors_of

# How many queries are compared with a batch of the gallery at once: 8 MB of similarities.
QUERIES = 256
# A search with the index reads this many of its lists, and compares REFINED · `top` candidates exactly.
PROBES, REFINED = 40, 10
# The fewest vectors from which LanceDB can learn its lists.
FEWEST = 256
# How many queries are compared with the whole gallery at once: 128 MB of similarities for a million crops.
BLOCK = 16
# How many searches for a single crop `recall` times. Each exact one reads the whole gallery.
TIMED = 5


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries of a search.

    Attributes:
        paths: the name of each query [Q]; a crop of the gallery with the same path is not a match.
        features: [Q, D].
        cameras: the camera of each query [Q], None where it is unknown.
        brightness: the mean luminance of each query [Q], in 0..1.
    """

    paths: Sequence[str]
    features: np.ndarray
    cameras: Sequence[str | None]
    brightness: np.ndarray


@dataclasses.dataclass(frozen=True)
class Matches:
    """The matches of one query, the best first.

    Attributes:
        rows: LanceDB's "_rowid" of each crop [K].
        similarity: the cosine [K] after the chosen normalisation, in −1..1.
        distance: the re-ranked distance [K], in 0..1; empty without re-ranking.
    """

    rows: np.ndarray
    similarity: np.ndarray
    distance: np.ndarray


def search(gallery: Gallery, queries: Queries, *, top: int, where: str, other_cameras: bool) -> list[Matches]:
    """Compare queries with all crops exactly, reading the gallery once.

    Args:
        gallery: the gallery to search.
        queries: the queries.
        top: the most matches of a query, K.
        where: a condition in SQL on the crops; "" for all.
        other_cameras: whether crops of the query's own camera are left out.

    Returns:
        The matches of each query.

    Raises:
        InputError: the gallery cannot be read, or the condition is invalid.
    """
    features = unit_rows(queries.features)
    single = features.astype(np.float32)
    # Twice the largest rounding error of a product of unit vectors in float32.
    margin = 2 * features.shape[1] * np.finfo(np.float32).eps
    best = [_Best(top) for _ in features]
    for batch in gallery.batches(where, ("path", "camera"), rowid=True):
        left_out = _left_out(queries, batch["path"], batch["camera"], other_cameras)
        rows, vectors = batch["_rowid"].to_numpy(), vectors_of(batch)
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        units = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)[:, None]
        for start in range(0, len(features), QUERIES):
            about = single[start : start + QUERIES] @ units.T
            for query, similarity in enumerate(about, start):
                similarity[left_out[query]] = -np.inf
                # Float32 selects the crops that may be among the best; float64 decides, as in `rank_features`.
                able = np.flatnonzero(similarity >= max(best[query].floor, _last(similarity, top)) - margin)
                able = able[similarity[able] > -np.inf]
                # A product with a vector (BLAS) may round equal rows differently; a sum of products does not.
                best[query].add(rows[able], (unit_rows(vectors[able]) * features[query]).sum(1))
    return [Matches(own.rows, own.similarity, np.empty(0)) for own in best]


def _last(similarity: np.ndarray, top: int) -> float:
    """Return the `top`-th largest number, −∞ if there are fewer."""
    return -np.inf if len(similarity) < top else np.partition(similarity, -top)[-top]


class _Best:
    """The most similar crops so far."""

    def __init__(self, top: int):
        self.top, self.rows, self.similarity = top, np.empty(0, np.uint64), np.empty(0)

    @property
    def floor(self) -> float:
        """Return the similarity that a crop must exceed to be among the best."""
        return self.similarity[-1] if len(self.similarity) == self.top else -np.inf

    def add(self, rows: np.ndarray, similarity: np.ndarray) -> None:
        """Take crops [B] into account. They were added to the gallery later than the crops so far."""
        rows = np.concatenate([self.rows, rows])
        similarity = np.concatenate([self.similarity, similarity])
        order = best_first(similarity, self.top)
        self.rows, self.similarity = rows[order], similarity[order]


def best_first(similarity: np.ndarray, top: int) -> np.ndarray:
    """Return the indices of the `top` largest numbers [N], the largest first; equal numbers stay in order."""
    if top < len(similarity):
        # Keep all numbers that equal the limit, so that the stable sort decides among them.
        limit = np.partition(similarity, len(similarity) - top)[len(similarity) - top]
        kept = np.flatnonzero(similarity >= limit)
        return kept[np.argsort(-similarity[kept], kind="stable")[:top]]
    return np.argsort(-similarity, kind="stable")


def search_whole(
    gallery: Gallery,
    queries: Queries,
    *,
    top: int,
    where: str,
    other_cameras: bool,
    normalize: str,
    rerank: tuple[int, int, float] | None,
) -> list[Matches]:
    """Search as `search` does, with a normalisation or re-ranking, which need all features at once.

    Both use statistics of the crops that are searched (transductive). With `rerank` the matches are ordered by the
    re-ranked distance.

    Args:
        gallery, queries, top, where, other_cameras: as in `search`.
        normalize: "none"; or "gallery", "camera" or "brightness", to subtract the mean and divide by the deviation of
            the features of all crops, of the same camera's crops, or of crops about as bright (`standardize_groups`).
        rerank: k1, k2 and λ of k-reciprocal re-ranking; None for no re-ranking.

    Returns:
        The matches of each query.

    Raises:
        InputError: as `search`; or `normalize` is "camera" and a camera is unknown.
    """
    columns = ("path", "camera", "brightness")
    parts = list(gallery.batches(where, columns, rowid=True))
    if not parts:
        return [Matches(np.empty(0, np.uint64), np.empty(0), np.empty(0)) for _ in queries.paths]
    table = pa.Table.from_batches(parts)
    features = np.concatenate([vectors_of(batch) for batch in parts])
    query, features = _normalized(normalize, queries, features, table)
    left_out = _left_out(queries, table["path"], table["camera"], other_cameras)
    distances = reranked_distances(query, features, *rerank) if rerank else None
    units, rows, result = unit_rows(features), table["_rowid"].to_numpy(), []
    for start in range(0, len(query), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(query)))
        # Take at least two queries, because a product with a vector (BLAS) may round equal crops differently.
        similarity = (unit_rows(query[np.resize(block, max(2, len(block)))]) @ units.T)[: len(block)]
        # All blocks have one shape, so that only one program is compiled.
        order_by = -np.asarray(distances(np.resize(block, BLOCK)))[: len(block)] if distances else similarity
        for index, own, similar in zip(block, order_by, similarity, strict=True):
            allowed = np.delete(np.arange(len(rows)), left_out[index])
            order = allowed[best_first(own[allowed], top)]
            result.append(Matches(rows[order], similar[order], -own[order] if distances else np.empty(0)))
    return result


def _left_out(queries: Queries, paths: pa.Array, cameras: pa.Array, other_cameras: bool) -> list[np.ndarray]:
    """Return for each query the indices of the crops that cannot be its matches."""
    same_path: dict[str, list[int]] = {path: [] for path in queries.paths}
    among = pc.is_in(paths, pa.array(list(same_path)))  # pyright: ignore[reportAttributeAccessIssue]
    for index in np.flatnonzero(among):
        same_path[paths[index].as_py()].append(int(index))
    if not other_cameras:
        return [np.array(same_path[path], int) for path in queries.paths]
    own = np.array([camera or "" for camera in cameras.to_pylist()])
    by_camera = {camera: np.flatnonzero(own == camera) for camera in set(queries.cameras) if camera}
    return [
        np.union1d(by_camera[camera] if camera else [], same_path[path]).astype(int)
        for path, camera in zip(queries.paths, queries.cameras, strict=True)
    ]


def _normalized(
    normalize: str, queries: Queries, features: np.ndarray, table: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of queries and crops, normalised."""
    if normalize == "none":
        return queries.features, features
    if normalize == "brightness":
        light = table["brightness"].to_numpy(zero_copy_only=False)
        groups = brightness_groups(np.asarray(queries.brightness), light)
    elif normalize == "camera":
        cameras = table["camera"].to_pylist()
        if None in cameras or None in queries.cameras:
            where = "of the gallery" if None in cameras else "among the queries"
            raise InputError(
                f"--normalize camera: crops {where} have no camera; give --pattern, or normalize otherwise"
            )
        groups = np.array(queries.cameras, str), np.array(cameras, str)
    else:
        groups = np.zeros(len(queries.paths)), np.zeros(len(features))
    return standardize_groups(queries.features, features, *groups)


def from_gallery(gallery: Gallery, paths: Sequence[str]) -> Queries:
    """Return crops of the gallery as queries. Raises InputError if a path is not in it."""
    table, features = gallery.read(one_of("path", paths), ("path", "camera", "brightness"))
    row_of = {path: row for row, path in enumerate(table["path"].to_pylist())}
    names = list(dict.fromkeys(paths))
    if missing := [path for path in names if path not in row_of]:
        raise InputError(
            f"{missing[0]} is not in the gallery {gallery.uri}; to search with any file, name it as a query"
        )
    rows = [row_of[path] for path in names]
    cameras, light = (table[name].take(rows) for name in ("camera", "brightness"))
    return Queries(names, features[rows], cameras.to_pylist(), light.to_numpy())


def search_approximately(
    gallery: Gallery, queries: Queries, *, top: int, where: str, other_cameras: bool
) -> list[Matches]:
    """Search as `search` does, but with the gallery's index, which may miss some of the most similar crops.

    Raises:
        InputError: as `search`, or the gallery has no index.
    """
    if not has_index(gallery):
        raise InputError(f"the gallery {gallery.uri} has no index; nrsrd index makes one")
    result = []
    for path, feature, camera in zip(queries.paths, queries.features, queries.cameras, strict=True):
        own = [where] if where else []
        own += [f"path != {quote(path)}"]
        own += [f"(camera IS NULL OR camera != {quote(camera)})"] if other_cameras and camera else []
        with storage_errors(gallery.uri, where):
            search = gallery.table.search(feature).distance_type("cosine").where(" AND ".join(own), prefilter=True)
            search = search.nprobes(PROBES).refine_factor(REFINED).select(["_distance"])
            near = search.with_row_id(True).limit(top).to_arrow()
        result.append(Matches(near["_rowid"].to_numpy(), 1 - near["_distance"].to_numpy(), np.empty(0)))
    return result


def has_index(gallery: Gallery) -> bool:
    """Return whether the gallery has an index of its features."""
    with storage_errors(gallery.uri):
        return any("vector" in index.columns for index in gallery.table.list_indices())


def make_index(gallery: Gallery) -> None:
    """Make the index of the features anew: inverted lists of quantised vectors (IVF-PQ), by LanceDB."""
    with storage_errors(gallery.uri):
        gallery.table.create_index("vector", config=lancedb.index.IvfPq(distance_type="cosine"), replace=True)


def recall(gallery: Gallery, count: int, top: int) -> tuple[int, float, float, float]:
    """Compare the index with the exact search, for crops of the gallery as queries.

    Args:
        gallery: a gallery with an index.
        count: the most crops to search for; they are spread over the gallery.
        top: how many matches each query has.

    Returns:
        The number of queries; the share of the exact matches that the index finds, in 0..1; the median seconds of a
        search for a single crop with the index, and without it.
    """
    paths = [path for batch in gallery.batches(vectors=False) for path in batch["path"].to_pylist()]
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, count).astype(int))]
    queries = from_gallery(gallery, chosen)
    limits = {"top": top, "where": "", "other_cameras": False}
    near = search_approximately(gallery, queries, **limits)
    exact = search(gallery, queries, **limits)
    shared = [len(np.intersect1d(a.rows, b.rows)) / max(len(b.rows), 1) for a, b in zip(near, exact, strict=True)]
    # The search for all crops above reads the gallery only once, so it does not show the time of one.
    singles = [from_gallery(gallery, [path]) for path in chosen[:TIMED]]

    def seconds(find: Callable[..., list[Matches]]) -> float:
        times = []
        for query in singles:
            begin = time.perf_counter()
            find(gallery, query, **limits)
            times.append(time.perf_counter() - begin)
        return float(np.median(times))

    return len(chosen), float(np.mean(shared)), seconds(search_approximately), seconds(search)
