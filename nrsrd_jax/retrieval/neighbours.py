"""Find the k-reciprocal neighbours of images, as sparse weights (Zhong et al. 2017).

N images, D feature width, B images of a block. rerank.py and clustering.py compare the weights of two images.
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

from .distances import Distances, distances_of

# How many pairs of features are subtracted at once. This limits the memory.
PAIRS = 2**11
# The quick search compares candidates again in float64. It gives up if there are more than MANY · k for an image.
MANY = 4


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
    # An image is its own nearest neighbour, so it takes k1 + 1 to have k1 others.
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
                found = nearest_and_farthest(distances(np.resize(rows, min(size, images))), k)
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
        # `lexsort` is stable, so equal distances stay in the order of the images, as in `lax.top_k`.
        order = np.lexsort((_pair_distances(features, rows[query], image), query))
        first = np.searchsorted(query, np.arange(len(rows)))
        neighbours = image[order][first[:, None] + np.arange(k)]
        query, image = np.divmod(np.flatnonzero(far), images)
        first = np.searchsorted(query, np.arange(len(rows)))
        return neighbours, np.maximum.reduceat(_pair_distances(features, rows[query], image), first)

    return search


@functools.partial(jax.jit, static_argnames="k")
def nearest_and_farthest(distances: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # On a CPU, XLA finds the nearest far slower in float64.
    distances = distances.astype(jnp.float32)
    return lax.top_k(-distances, k)[1], jnp.max(distances, 1)


def _expanded_weights(features: np.ndarray, neighbours: np.ndarray, farthest: np.ndarray, k1: int) -> sp.csr_array:
    """Return each image's expanded k-reciprocal neighbours, weighted by exp(−distance); [N, N], rows sum to 1."""
    # `round` takes halves to the even number, as np.around in the official code.
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
