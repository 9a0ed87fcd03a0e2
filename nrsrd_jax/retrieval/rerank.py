"""Improve rankings without labels: k-reciprocal re-ranking (Zhong et al. 2017) and average query expansion.

N = Q + G images, queries first. Two images are k-reciprocal neighbours if each is among the other's k nearest; the
Jaccard distance of two images compares their sets of such neighbours. The devices compute distances one block at a
time, and the sets are sparse matrices, so memory is O(N·k) and a few blocks. (The official code holds N×N numbers.)
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax import lax
from jax.sharding import Mesh
from tqdm import tqdm

from ..errors import say
from ..sharding import make_mesh
from .ranking import Distances, centred_rows, distances_of

# Upper limits of what is compared at once, which bound the memory: images per device, and pairs of images.
BLOCK = 256
PAIRS = 2**11
# The quick search compares candidates again in float64. It gives up if there are more than MANY · k for an image.
MANY = 4
# If re-ranking takes longer than this many seconds, a message says how long.
WORTH_TELLING = 1


def k_reciprocal(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> np.ndarray:
    """Compute distances re-ranked by k-reciprocal neighbours.

    distance = λ·d/max(d) + (1 − λ)·d_Jaccard

    d is the squared Euclidean distance of the features scaled to length 1, max(d) the query's largest. d_Jaccard
    compares the sets of the k1 reciprocal neighbours of two images, expanded by the k1/2 neighbours of each, averaged
    over the k2 nearest images. It uses all queries together, so it is transductive.

    Args:
        query_features: [Q, D], of any length.
        gallery_features: [G, D].
        k1: the size of a neighbourhood, at least 1.
        k2: how many nearest images each set is averaged over, at least 1.
        lambda_value: λ in 0..1; 1 for the plain distance, 0 for the Jaccard distance alone.

    Returns:
        [Q, G], float32, in 0..1 up to rounding.

    Raises:
        ValueError: as `reranked_distances`.

    Source:
        Zhong et al. 2017, as in the code of TransReID, without its rounding to float16. (The script of Zhong et al.
        squares d once more.)

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval import k_reciprocal
        >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[1.0, 0.1], [0.9, 0.2], [-1.0, 0.0]])
        >>> distances = k_reciprocal(query, gallery, k1=2, k2=1)
        >>> distances.shape, distances.argsort().tolist()
        ((1, 3), [[0, 1, 2]])
    """
    rows = reranked_distances(query_features, gallery_features, k1, k2, lambda_value)
    result = np.empty((len(query_features), len(gallery_features)), np.float32)
    for start in range(0, len(result), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(result)))
        result[block] = rows(block)
    return result


def reranked_distances(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    k1: int,
    k2: int,
    lambda_value: float,
    mesh: Mesh | None = None,
) -> Distances:
    """Return the distances of `k_reciprocal` as a function, for `ranking.rank_by`, without the matrix [Q, G].

    If it will take longer than a second, it prints the most memory that it takes and the estimated time to stderr.

    Args:
        query_features: [Q, D], of any length.
        gallery_features: [G, D].
        k1: as in `k_reciprocal`.
        k2: as in `k_reciprocal`.
        lambda_value: as in `k_reciprocal`.
        mesh: the devices to use; None for all.

    Returns:
        A function from the indices of some queries [B] to their distances [B, G].

    Raises:
        ValueError: a parameter is out of its range, a feature is not finite, the widths differ, or there are no
            queries or gallery images.

    Source:
        As `k_reciprocal`.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.rerank import reranked_distances
        >>> query, gallery = np.array([[1.0, 0.0]]), np.array([[1.0, 0.1], [0.9, 0.2], [-1.0, 0.0]])
        >>> reranked_distances(query, gallery, k1=2, k2=1, lambda_value=0.3)(np.array([0])).shape
        (1, 3)
    """
    check_parameters(k1, k2, lambda_value)
    _check_features(query_features, gallery_features)
    mesh = mesh or make_mesh()
    features = np.concatenate(centred_rows(query_features, gallery_features)[:2])
    queries = len(query_features)
    distances = distances_of(features, features, mesh)
    devices = mesh.shape["data"]
    bound = memory_bound(len(features), features.shape[1], k1, k2, devices)

    def announce(seconds: float) -> None:
        # Add the host's later work: seconds per image and per query, measured on one core at Night600's size.
        seconds += 3e-5 * len(features) + 4e-4 * queries
        if seconds > WORTH_TELLING:
            text = f"re-ranking {len(features)} images: at most {bound / 2**30:.1f} GiB, about {seconds:.0f} s"
            say(text, error=True)

    weights, farthest = neighbour_weights(features, distances, k1, k2, BLOCK * devices, mesh, announce)
    gallery = sp.csc_array(weights[queries:])

    def rows(block: np.ndarray) -> np.ndarray:
        result = np.asarray(distances(block))[:, queries:] * (lambda_value / farthest[block, None])
        # A block may hold a query several times, because repeated queries fill it up.
        jaccard = {query: _jaccard_distances(weights, query, gallery) for query in set(block.tolist())}
        for row, query in zip(result, block.tolist(), strict=True):
            row += (1 - lambda_value) * jaccard[query]
        return result

    return rows


def memory_bound(images: int, width: int, k1: int, k2: int, devices: int = 1) -> int:
    """Estimate the most bytes that re-ranking N images of width D takes, besides its arguments and its result.

    The features are held scaled, concatenated and on each device, and on a CPU also in float32. A block of distances is
    held up to six times while it is turned into neighbours or weights. In the sparse matrices an image has k1+1
    neighbours. Each neighbour has half as many, of which less than a third are new.
    """
    half = round(k1 / 2) + 1
    expanded = (k1 + 1) * (1 + half // 3)
    features = 8 * width * (3 + devices) + 4 * width * (1 + devices)
    sparse = 8 * (k1 + 1) * (3 + 2 * half) + 8 * expanded * (6 + 3 * k2)
    return images * (features + sparse + 8 * 6 * BLOCK * devices)


def neighbour_weights(
    features: np.ndarray,
    distances: Distances,
    k1: int,
    k2: int,
    size: int,
    mesh: Mesh,
    announce: Callable[[float], None] | None = None,
) -> tuple[sp.csr_array, np.ndarray]:
    """Return each image's k-reciprocal neighbours as weights, and its largest distance to any image.

    The Jaccard distance of two images compares their rows of weights.

    Args:
        features: rows of `centred_rows`, float64 [N, D].
        distances: the function that `distances_of` returns for these features, as queries and as gallery.
        k1: as in `k_reciprocal`.
        k2: as in `k_reciprocal`.
        size: how many images are compared with all others at once; with several devices, a multiple of their number.
        mesh: the devices.
        announce: a function that is called once, with the estimated seconds that finding the neighbours takes.

    Returns:
        The weights, sparse float32 [N, N], whose rows sum to 1, and the largest distances [N], with 1 in place of 0.
    """
    neighbours, farthest = _nearest(features, distances, max(k1 + 1, k2), size, mesh, announce)
    weights = _expanded_weights(features, neighbours, farthest, k1)
    if k2 > 1:
        weights = _rows_of(neighbours[:, :k2], np.float32(1 / min(k2, len(features)))) @ weights
    return weights, farthest


def _nearest(
    features: np.ndarray,
    distances: Distances,
    k: int,
    size: int,
    mesh: Mesh,
    announce: Callable[[float], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's k nearest images (itself included), int [N, min(k, N)], and its largest distance [N]."""
    images = len(features)
    k = min(k, images)
    neighbours, farthest = np.empty((images, k), np.int32), np.empty(images, np.float32)
    # The quick search helps only on a CPU. Data-centre GPUs compute float64 as fast as they find the nearest.
    quick = _quick_search(features, k, size, mesh) if mesh.devices.flat[0].platform == "cpu" else None
    starts = range(0, images, size)
    for number, start in enumerate(tqdm(starts, "neighbours", unit="block", leave=False, disable=None)):
        begin = time.perf_counter()
        rows = np.arange(start, min(start + size, images))
        found = quick(rows) if quick else None
        if found is None:
            # The quick search found too many candidates. Free its memory.
            quick = None
            with jax.enable_x64(True):
                found = _nearest_and_farthest(distances(np.resize(rows, min(size, images))), k)
        neighbours[rows], farthest[rows] = (np.asarray(part)[: len(rows)] for part in found)
        # The time of the first block includes compiling, so use the second if there is one.
        if announce and number == min(1, len(starts) - 1):
            announce((time.perf_counter() - begin) * len(starts))
    return neighbours, np.where(farthest > 0, farthest, 1)


def _quick_search(
    features: np.ndarray, k: int, size: int, mesh: Mesh
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray] | None]:
    """Return a function from the indices of some images [B] to the same result as that of `_nearest`, in less time.

    Distances in float32 select the images that may be the nearest or the farthest, and float64 decides among these. The
    function returns None if there are too many of these, as in groups of nearly parallel features.
    """
    single = features.astype(np.float32)
    about = distances_of(single, single, mesh)
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    # Twice the largest rounding error of ‖a‖² + ‖b‖² − 2a·b in float32. Each of the D products and sums, and each of
    # the few later operations, changes the result by at most eps/2 · (‖a‖ + ‖b‖)².
    margin = (features.shape[1] + 16) * np.finfo(np.float32).eps * (lengths + lengths.max()) ** 2
    images = len(features)

    def search(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        block = np.asarray(about(np.resize(rows, min(size, images))))[: len(rows)]
        limit = np.partition(block, k - 1, axis=1)[:, k - 1] + margin[rows]
        near, far = block <= limit[:, None], block >= (block.max(1) - margin[rows])[:, None]
        if near.sum() + far.sum() > MANY * k * len(rows):
            return None
        query, image = np.divmod(np.flatnonzero(near), images)
        order = np.lexsort((_pair_distances(features, rows[query], image), query))
        first = np.searchsorted(query, np.arange(len(rows)))
        neighbours = image[order][first[:, None] + np.arange(k)]
        query, image = np.divmod(np.flatnonzero(far), images)
        first = np.searchsorted(query, np.arange(len(rows)))
        return neighbours, np.maximum.reduceat(_pair_distances(features, rows[query], image), first)

    return search


@functools.partial(jax.jit, static_argnames="k")
def _nearest_and_farthest(distances: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # On a CPU, XLA finds the nearest far slower in float64.
    distances = distances.astype(jnp.float32)
    return lax.top_k(-distances, k)[1], jnp.max(distances, 1)


def _expanded_weights(features: np.ndarray, neighbours: np.ndarray, farthest: np.ndarray, k1: int) -> sp.csr_array:
    """Return each image's expanded k-reciprocal neighbours, weighted by exp(−distance); [N, N], rows sum to 1."""
    mutual, half = (_mutual(neighbours[:, : k + 1]) for k in (k1, round(k1 / 2)))
    # A neighbour's smaller set is added if more than 2/3 of it is in the image's own set (Zhong et al. 2017).
    shared = sp.csr_array(sp.csr_array(mutual @ half).multiply(mutual))
    shared.data = (3 * shared.data > 2 * half.sum(1)[shared.indices]).astype(np.int32)
    shared.eliminate_zeros()
    members = (mutual + shared @ half).tocsr()
    rows = np.repeat(np.arange(len(features)), np.diff(members.indptr))
    distances = _pair_distances(features, rows, members.indices) / farthest[rows]
    weights = sp.csr_array((np.exp(-distances), members.indices, members.indptr), members.shape)
    sums = np.maximum(weights.sum(1), np.finfo(np.float32).tiny)
    weights.data /= sums[rows]
    return weights


def _mutual(neighbours: np.ndarray) -> sp.csr_array:
    """Return 1 where two images are each among the other's neighbours [N, k], else 0; sparse [N, N]."""
    forward = _rows_of(neighbours, np.int32(1))
    return forward.multiply(forward.T).tocsr()


def _rows_of(columns: np.ndarray, value: np.generic) -> sp.csr_array:
    """Return a matrix with `value` at the columns [N, k] of each row; sparse [N, N]."""
    count, k = columns.shape
    starts = np.arange(0, count * k + 1, k)
    return sp.csr_array((np.full(count * k, value), columns.flatten(), starts), (count, count))


def _pair_distances(features: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the squared distances of pairs of features, float32."""
    distances = np.empty(len(left), np.float32)
    for start in range(0, len(left), PAIRS):
        block = slice(start, start + PAIRS)
        apart = features[left[block]] - features[right[block]]
        distances[block] = np.einsum("nd,nd->n", apart, apart)
    return distances


def _jaccard_distances(weights: sp.csr_array, query: int, gallery: sp.csc_array) -> np.ndarray:
    """Return 1 − Σ min / Σ max of a query's weights [N, N] and those of each gallery image [G, N]; [G].

    Each row sums to 1, so Σ max = 2 − Σ min. An image may have no weights if its neighbours are duplicates of it and
    leave no room for the image itself; its distance is 1.
    """
    row = slice(*weights.indptr[query : query + 2])
    columns = gallery[:, weights.indices[row]]
    smaller = np.minimum(columns.data, np.repeat(weights.data[row], np.diff(columns.indptr)))
    common = np.bincount(columns.indices, smaller, columns.shape[0])
    return (1 - common / (2 - common)).astype(np.float32)


def expand_queries(
    query_features: np.ndarray, gallery_features: np.ndarray, nearest: int, mesh: Mesh | None = None
) -> np.ndarray:
    """Replace each query by the mean of itself and its nearest gallery features.

    expanded = (q + Σ_{g in nearest} g) / (1 + k), of features scaled to length 1

    If the gallery holds a copy of the query, as in Night600, the copy counts as the nearest.

    Args:
        query_features: [Q, D], of any length.
        gallery_features: [G, D].
        nearest: k, at least 1. If the gallery has fewer images, all of them are taken.
        mesh: the devices to use; None for all.

    Returns:
        [Q, D], float64, not scaled again.

    Raises:
        ValueError: `nearest` is below 1, a feature is not finite, the widths differ, or there are no queries or
            gallery images.

    Source:
        Chum et al. 2007, average query expansion.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.rerank import expand_queries
        >>> query, gallery = np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]])
        >>> expand_queries(query, gallery[:1], nearest=1).round(4).tolist()
        [[0.5, 0.5]]
    """
    if nearest < 1:
        raise ValueError(f"query expansion needs at least 1 nearest image, not {nearest}")
    _check_features(query_features, gallery_features)
    mesh = mesh or make_mesh()
    query, gallery, mean = centred_rows(query_features, gallery_features)
    distances = distances_of(query, gallery, mesh)
    size, k = BLOCK * mesh.shape["data"], min(nearest, len(gallery))
    expanded = np.empty(query.shape)
    for start in range(0, len(query), size):
        rows = np.arange(start, min(start + size, len(query)))
        with jax.enable_x64(True):
            found = np.asarray(_nearest_and_farthest(distances(rows), k)[0])
        expanded[rows] = mean + (query[rows] + gallery[found].sum(1, dtype=np.float64)) / (1 + k)
    return expanded


def _check_features(query: np.ndarray, gallery: np.ndarray) -> None:
    """Raise ValueError if the features differ in width, or if there are no queries or gallery images."""
    if np.ndim(query) != 2 or np.ndim(gallery) != 2 or np.shape(query)[1] != np.shape(gallery)[1]:
        raise ValueError(
            f"features must be rows of one width: queries are {np.shape(query)}, the gallery {np.shape(gallery)}"
        )
    if not len(query) or not len(gallery):
        raise ValueError("there are no queries, or no gallery images")


def check_parameters(k1: int, k2: int, lambda_value: float = 0.0) -> None:
    """Raise ValueError if a parameter of re-ranking is out of its range."""
    for name, value in (("k1", k1), ("k2", k2)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value is {lambda_value}; it must lie in 0..1")
