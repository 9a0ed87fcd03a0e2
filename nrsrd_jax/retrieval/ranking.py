"""Re-ID ranking metrics: exact, on the device, without sorting the gallery.

Q queries, G gallery images, D feature width, B queries of a block, L gallery images of a query's identity. The
Market-1501 protocol (Zheng et al. 2015) leaves out gallery images of the query's identity and camera. A metric needs
only the ranks of the few gallery images that show the query's person, and a rank is the number of images that are
closer. So B·G·L comparisons replace the sort, and at most B·G distances are in memory.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from ..sharding import make_mesh, over_data
from .distances import Distances, squared_distances, unmasked

# Upper limits of a block, per device: queries, distances, and compared positions.
QUERY_BLOCK = 256
BLOCK_DISTANCES = 2**26
BLOCK_PLACES = 2**16
# How many gallery images are compared at once. A small number saves memory.
CHUNK = 16


@dataclasses.dataclass(frozen=True)
class RankMetrics:
    """The result of ranking for each query; mAP, mINP and CMC are means over the queries with a match, in 0..1.

    A match is a gallery image of the query's identity from another camera.

    Attributes:
        average_precision: [Q] in 0..1, NaN for a query without a match.
        inverse_penalty: [Q] in 0..1, the number of matches / the rank of the last match, NaN for a query without a
            match (Ye et al. 2021).
        first_match: [Q], the rank of the first match, from 1; 0 for a query without a match.
        max_rank: the length of the CMC.
    """

    average_precision: np.ndarray
    inverse_penalty: np.ndarray
    first_match: np.ndarray
    max_rank: int

    @property
    def valid(self) -> np.ndarray:
        """Return whether each query has a match, bool [Q]."""
        return self.first_match > 0

    @property
    def mAP(self) -> float:
        """Return the mean average precision, in 0..1."""
        return float(self.average_precision[self.valid].mean())

    @property
    def mINP(self) -> float:
        """Return the mean inverse negative penalty, in 0..1."""
        return float(self.inverse_penalty[self.valid].mean())

    @property
    def cmc(self) -> np.ndarray:
        """Return the share of queries whose first match has rank r + 1 or better, r = 0..max_rank−1; [max_rank]."""
        firsts = np.bincount(self.first_match[self.valid], minlength=self.max_rank + 1)[1 : self.max_rank + 1]
        return firsts.cumsum() / self.valid.sum()

    def of(self, queries: np.ndarray) -> "RankMetrics":
        """Return the metrics of some queries, selected by their indices or by a mask bool [Q]."""
        return RankMetrics(
            self.average_precision[queries], self.inverse_penalty[queries], self.first_match[queries], self.max_rank
        )

    def summary(self) -> dict[str, float | int]:
        """Return the main numbers under their names in result.json, Rank-k as rank<k>, and counts of queries."""
        ranks = {f"rank{k}": float(self.cmc[min(k, self.max_rank) - 1]) for k in (1, 5, 10)}
        counts = {"queries": len(self.valid), "queries_without_match": int((~self.valid).sum())}
        return {"mAP": self.mAP, "mINP": self.mINP} | ranks | counts


def rank_metrics(
    distances: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    max_rank: int = 50,
) -> RankMetrics:
    """Compute CMC, mAP and mINP of a distance matrix.

    Gallery images of the query's identity from the query's camera are left out. If distances are equal, the earlier
    gallery image ranks first.

    Args:
        distances: real numbers [Q, G]; smaller is more similar.
        query_ids, gallery_ids: the identities [Q] and [G].
        query_cameras, gallery_cameras: the cameras [Q] and [G].
        max_rank: the length of the CMC, at least 1; at most G entries are returned.

    Returns:
        A RankMetrics, with `.mAP`, `.mINP`, `.cmc` and the values of each query.

    Raises:
        ValueError: shapes disagree, an array is masked, a distance is NaN or an integer beyond 2⁵³, `max_rank` is
            below 1, or no query has a match.

    Source:
        Zheng et al. 2015 (the protocol of Market-1501); Ye et al. 2021 (mINP).

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval import rank_metrics
        >>> distances = np.array([[0.1, 0.2, 0.3, 0.4]])
        >>> ids, cameras = np.array([7, 5, 7, 7]), np.array([1, 2, 2, 3])
        >>> metrics = rank_metrics(distances, np.array([7]), ids, np.array([1]), cameras)
        >>> metrics.first_match.tolist()  # The nearest image is from the query's camera, the next of another person.
        [2]
        >>> print(f"mAP {metrics.mAP:.4f}, mINP {metrics.mINP:.4f}, CMC {metrics.cmc.tolist()}")
        mAP 0.5833, mINP 0.6667, CMC [0.0, 1.0, 1.0, 1.0]
    """
    distances = unmasked(distances, "distances")
    if distances.dtype.kind not in "fiu" or not np.can_cast(distances.dtype, np.float64) or _too_large(distances):
        raise ValueError(f"distances are of type {distances.dtype}; they must be real numbers that fit float64")
    _check_counts(distances.shape, query_ids, gallery_ids)
    if any(np.isnan(row).any() for row in distances):
        raise ValueError("a distance is NaN: the features behind it are not finite")
    # Compare in float32 only what float32 represents exactly.
    exact = np.float32 if distances.dtype in (np.float16, np.float32) else np.float64
    labels = query_ids, gallery_ids, query_cameras, gallery_cameras
    return rank_by(lambda rows: distances[rows].astype(exact), *labels, max_rank=max_rank)


def rank_features(
    query: np.ndarray,
    gallery: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    max_rank: int = 50,
    mesh: Mesh | None = None,
) -> RankMetrics:
    """Compute CMC, mAP and mINP of features, by their `squared_distances`, one block of queries at a time.

    Args:
        query: features of the queries [Q, D], of any length; they are scaled to length 1.
        gallery: features of the gallery images [G, D].
        query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank: as in `rank_metrics`.
        mesh: the devices to use; None for all.

    Returns:
        A RankMetrics, as `rank_metrics` returns.

    Raises:
        ValueError: as `rank_metrics` and `squared_distances`.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval import rank_features
        >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[2.0, 0.1], [0.0, 1.0]])
        >>> rank_features(query, gallery, np.array([7]), np.array([7, 5]), np.array([1]), np.array([2, 2])).mAP
        1.0
    """
    _check_counts((len(query), len(gallery)), query_ids, gallery_ids)
    labels = query_ids, gallery_ids, query_cameras, gallery_cameras
    return rank_by(squared_distances(query, gallery, mesh), *labels, max_rank=max_rank, mesh=mesh)


def _too_large(values: np.ndarray) -> bool:
    """Return whether `values` are integers so large that two of them may be equal as float64."""
    return values.dtype.kind in "iu" and values.size > 0 and max(-int(values.min()), int(values.max())) > 2**53


def _check_counts(shape: tuple[int, ...], query_ids: np.ndarray, gallery_ids: np.ndarray) -> None:
    if shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(
            f"distances are {shape}, but there are {len(query_ids)} queries, {len(gallery_ids)} gallery images"
        )


def rank_by(
    distances: Distances,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    *,
    max_rank: int = 50,
    mesh: Mesh | None = None,
) -> RankMetrics:
    """Compute CMC, mAP and mINP from a function that returns the distances of a block of queries.

    Args:
        distances: a function from the indices of some queries [B] to their distances [B, G], such as
            `squared_distances` or `reranked_distances` return. Indices may repeat, to fill a block.
        query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank: as in `rank_metrics`.
        mesh: the devices that a block is split over; None for all.

    Returns:
        A RankMetrics, as `rank_metrics` returns.

    Raises:
        ValueError: identities and cameras are masked, NaN, or differ in number or type; `max_rank` is below 1; or no
            query has a match.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.ranking import rank_by
        >>> table = np.array([[0.2, 0.1], [0.3, 0.4]])
        >>> ids, cameras = np.array([5, 7]), np.array([2, 2])
        >>> metrics = rank_by(lambda rows: table[rows], np.array([7, 7]), ids, np.array([1, 1]), cameras)
        >>> metrics.average_precision.tolist()
        [1.0, 0.5]
    """
    mesh = mesh or make_mesh()
    labels = query_ids, gallery_ids, query_cameras, gallery_cameras
    arrays = query_ids, gallery_ids, query_cameras, gallery_cameras = tuple(
        unmasked(values, "identities or cameras") for values in labels
    )
    for pair in (arrays[:2], arrays[2:]):
        # NumPy may compare integers of two types as float64, in which large numbers that differ may be equal.
        if np.result_type(*(values.dtype for values in pair)).kind == "f" and any(map(_too_large, pair)):
            raise ValueError(f"identities or cameras are of types {pair[0].dtype} and {pair[1].dtype}; use one type")
    if any(array.dtype.kind == "f" and np.isnan(array).any() for array in arrays):
        raise ValueError("an identity or camera is NaN")
    if query_ids.shape != query_cameras.shape or gallery_ids.shape != gallery_cameras.shape:
        raise ValueError("identities and cameras differ in number")
    if max_rank < 1:
        raise ValueError(f"max_rank is {max_rank}; it must be at least 1")
    order = np.argsort(gallery_ids, kind="stable")
    start, stop = (np.searchsorted(gallery_ids[order], query_ids, side) for side in ("left", "right"))

    precision, penalty = np.full(len(query_ids), np.nan), np.full(len(query_ids), np.nan)
    first = np.zeros(len(query_ids), np.int64)
    # Queries with similar numbers of images of their identity share a block, so that little of its width is padding.
    waiting = np.argsort(start - stop, kind="stable")
    waiting = waiting[stop[waiting] > start[waiting]]
    while len(waiting):
        width = _power_of_two(int(stop[waiting[0]] - start[waiting[0]]))
        size = _block_size(len(waiting), len(gallery_ids), width, mesh.shape["data"])
        rows, waiting = waiting[:size], waiting[size:]
        slots = start[rows, None] + np.arange(width)
        same = order[np.minimum(slots, len(order) - 1)]  # [B, L] gallery images of the query's identity
        exists = slots < stop[rows, None]
        junk = gallery_cameras[same] == query_cameras[rows, None]
        filled_up = distances(np.resize(rows, size)), np.resize(same, (size, width)).astype(np.int32)
        with jax.enable_x64(True):
            places = np.asarray(_places(*jax.device_put(filled_up, over_data(mesh))))[: len(rows)]
        precision[rows], penalty[rows], first[rows] = _metrics_of_places(places, exists, junk)
    if not first.any():
        raise ValueError("no query has a gallery image of its identity from another camera")
    return RankMetrics(precision, penalty, first, min(max_rank, len(gallery_ids)))


def _power_of_two(number: int) -> int:
    """Round a number up to a power of two, so that few different sizes are compiled."""
    return 1 << (number - 1).bit_length()


def _block_size(queries: int, gallery: int, width: int, devices: int) -> int:
    """Return how many queries to take at once, a multiple of the devices."""
    most = min(QUERY_BLOCK, BLOCK_DISTANCES // gallery, BLOCK_PLACES // width)
    return devices * max(1, min(most, _power_of_two(-(-queries // devices))))


@jax.jit
def _places(distances: jax.Array, same: jax.Array) -> jax.Array:
    """Return the rank, from 0, of gallery images `same` [B, L] in a stable sort of distances [B, G]; int [B, L]."""
    keys = _sortable(distances)
    queries, gallery = keys.shape
    chosen = jnp.take_along_axis(keys, same, 1)
    chunks = -(-gallery // CHUNK)
    keys = jnp.pad(keys, [(0, 0), (0, chunks * CHUNK - gallery)], constant_values=jnp.iinfo(keys.dtype).max)

    def count(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, chunk_keys = chunk  # [CHUNK], [CHUNK, B]
        # If keys are equal, the earlier image ranks first, so it counts as closer: k < c + 1 means k <= c.
        limit = chosen + (index[:, None, None] < same)
        return total + jnp.sum(chunk_keys[:, :, None] < limit, 0, dtype=jnp.int32), None

    by_chunk = (
        jnp.arange(chunks * CHUNK, dtype=jnp.int32).reshape(chunks, CHUNK),
        keys.T.reshape(chunks, CHUNK, queries),
    )
    return lax.scan(count, jnp.zeros(same.shape, jnp.int32), by_chunk)[0]


def _sortable(x: jax.Array) -> jax.Array:
    """Return integers in the order of the floats, −0 equal to 0. As floats, a device may take small numbers for 0."""
    integer = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    bits = lax.bitcast_convert_type(x, integer)
    return jnp.where(bits < 0, jnp.iinfo(integer).min - bits, bits)


def _metrics_of_places(
    places: np.ndarray, exists: np.ndarray, junk: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return average precision, inverse penalty and rank of the first match, [B] each, from places [B, L].

    Junk (images from the query's own camera) has no rank; the images after it move up.
    """
    # This number sorts last. It is odd, so it counts as junk.
    nothing = np.iinfo(np.int64).max
    coded = np.sort(np.where(exists, 2 * places.astype(np.int64) + junk, nothing), axis=1)
    match = coded % 2 == 0
    # Ranks begin at 1 and leave out junk.
    rank = coded // 2 + 1 - np.cumsum(~match, axis=1)
    found, total = np.cumsum(match, axis=1), match.sum(1)
    # A query without a match gets 0 / 0, which is NaN.
    with np.errstate(invalid="ignore"):
        precision = np.where(match, found / rank, 0).sum(1) / total
        penalty = total / np.where(match, rank, 0).max(1)
    first = np.where(match, rank, nothing).min(1)
    return precision, penalty, np.where(total > 0, first, 0)
