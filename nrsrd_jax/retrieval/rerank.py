"""Improve rankings without labels: k-reciprocal re-ranking (Zhong et al. 2017) and average query expansion.

N = Q + G images, queries first. Two images are k-reciprocal neighbours if each is among the other's k nearest; the
Jaccard distance of two images compares their sets of such neighbours. The devices compute distances one block at a
time, and the sets are sparse matrices, so memory is O(N·k) and a few blocks. (The official code holds N×N numbers.)
"""

import jax
import numpy as np
import scipy.sparse as sp
from jax.sharding import Mesh

from ..errors import say
from ..sharding import make_mesh
from .distances import Distances, centred_rows, distances_of
from .neighbours import nearest_and_farthest, neighbour_weights

# How many images are compared with all others at once, per device. This limits the memory.
BLOCK = 256
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
    _check_some(query_features, gallery_features)
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
    # Each query reads some columns of these weights, which this form gives without a search.
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
    _check_some(query_features, gallery_features)
    mesh = mesh or make_mesh()
    query, gallery, mean = centred_rows(query_features, gallery_features)
    distances = distances_of(query, gallery, mesh)
    size, k = BLOCK * mesh.shape["data"], min(nearest, len(gallery))
    expanded = np.empty(query.shape)
    for start in range(0, len(query), size):
        rows = np.arange(start, min(start + size, len(query)))
        with jax.enable_x64(True):
            found = np.asarray(nearest_and_farthest(distances(rows), k)[0])
        # `centred_rows` subtracted the gallery's mean, which belongs to the expanded query.
        expanded[rows] = mean + (query[rows] + gallery[found].sum(1, dtype=np.float64)) / (1 + k)
    return expanded


def _check_some(query: np.ndarray, gallery: np.ndarray) -> None:
    """Raise ValueError if there are no queries or gallery images."""
    if not len(query) or not len(gallery):
        raise ValueError("there are no queries, or no gallery images")


def check_parameters(k1: int, k2: int, lambda_value: float = 0.0) -> None:
    """Raise ValueError if a parameter of re-ranking is out of its range."""
    for name, value in (("k1", k1), ("k2", k2)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value is {lambda_value}; it must lie in 0..1")
