"""Better rankings without new labels: k-reciprocal re-ranking (Zhong et al. 2017) and average query expansion.

N = Q + G images, queries first. Two images are k-reciprocal neighbours if each is among the other's k nearest; the
Jaccard distance of two images compares their sets of such neighbours. Distances come a block at a time from the
devices, the sets are sparse matrices: memory is O(N·k) and a few blocks, where the official code holds N×N.
"""

import functools
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax import lax
from jax.sharding import Mesh
from tqdm import tqdm

from .evaluation import Distances, unit_distances, unit_rows
from .sharding import make_mesh

BLOCK = 256  # images at a time and device
PAIRS = 2**11  # pairs of images at a time


def k_reciprocal(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> np.ndarray:
    """Re-ranked distances [Q, G], float32, of features [Q, D] and [G, D], which are scaled to length 1.

    The official code's result but for its float16 rounding: λ·d/max(d) + (1−λ)·d_Jaccard with d the squared Euclidean
    distance, the Jaccard distance from k1 neighbours (their expansion from k1/2) and averaged over the k2 nearest.
    `reranked_distances` gives the same by rows, where Q×G is too much. ValueError as there.
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
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    mesh: Mesh | None = None,
) -> Distances:
    """As `k_reciprocal`, but a function from indices of queries [B] to their rows [B, G], for `evaluation.rank_by`.

    Says on stderr how much memory and about how long it takes. ValueError for parameters out of range, features that
    are not finite, or of different widths.
    """
    check_parameters(k1, k2, lambda_value)
    mesh = mesh or make_mesh(0)
    features = unit_rows(np.concatenate([query_features, gallery_features]))
    queries = len(query_features)
    distances = unit_distances(features, features, mesh)
    neighbours, farthest = _nearest(distances, features.shape, queries, k1, k2, mesh)
    weights = _neighbour_weights(features, neighbours, farthest, k1)
    weights = _rows_of(neighbours[:, :k2], np.float32(1 / min(k2, len(features)))) @ weights
    gallery, count = sp.csc_array(weights[queries:]), len(gallery_features)

    def rows(block: np.ndarray) -> np.ndarray:
        result = np.asarray(distances(block))[:, queries:] * (lambda_value / farthest[block, None])
        jaccard = {query: _jaccard_distances(weights, query, gallery, count) for query in set(block.tolist())}
        for row, query in zip(result, block.tolist(), strict=True):
            row += (1 - lambda_value) * jaccard[query]
        return result

    return rows


def memory_bound(images: int, width: int, k1: int, k2: int) -> int:
    """Bytes that re-ranking N images of D features takes at most, beside what it is given and its result."""
    half = round(k1 / 2) + 1
    expanded = (k1 + 1) * (1 + half // 3)  # of a neighbour's set less than a third is new
    of_image = 4 * 4 * width + 8 * (k1 + 1) * (3 + 2 * half) + 8 * expanded * (6 + 2 * k2)
    return images * (of_image + 4 * 6 * BLOCK)


def _nearest(
    distances: Distances, shape: tuple[int, int], queries: int, k1: int, k2: int, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's nearest, itself among them, nearest first, int [N, max(k1+1, k2)], and its largest distance [N]."""
    images, width = shape
    k = min(max(k1 + 1, k2), images)
    size = BLOCK * mesh.shape["data"]
    neighbours, farthest = np.empty((images, k), np.int32), np.empty(images, np.float32)
    rows_of_blocks = [np.arange(start, min(start + size, images)) for start in range(0, images, size)]
    found = (_nearest_and_farthest(distances(np.resize(rows, min(size, images))), k) for rows in rows_of_blocks)
    begun_ahead = itertools.pairwise(
        itertools.chain(found, [(None, None)])
    )  # a block: the devices need not wait for the host
    begin = time.perf_counter()
    for number, rows in enumerate(tqdm(rows_of_blocks, "neighbours", unit="block", leave=False, disable=None)):
        (nearest, largest), _ = next(begun_ahead)
        neighbours[rows], farthest[rows] = np.asarray(nearest)[: len(rows)], np.asarray(largest)[: len(rows)]
        if number == min(1, len(rows_of_blocks) - 1):
            # The rest is the host's: what it takes per image and per query, measured on one core at Night600's size.
            seconds = (time.perf_counter() - begin) * len(rows_of_blocks) + 3e-5 * images + 4e-4 * queries
            bound = memory_bound(images, width, k1, k2) / 2**30
            print(f"re-ranking {images} images: at most {bound:.1f} GiB, about {seconds:.0f} s", file=sys.stderr)
        begin = time.perf_counter()
    return neighbours, np.where(farthest > 0, farthest, 1)


@functools.partial(jax.jit, static_argnames="k")
def _nearest_and_farthest(distances: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return lax.top_k(-distances, k)[1], jnp.max(distances, 1)


def _neighbour_weights(features: np.ndarray, neighbours: np.ndarray, farthest: np.ndarray, k1: int) -> sp.csr_array:
    """Per image its expanded set of k-reciprocal neighbours, weighted by exp(−distance), rows summing to 1; [N, N]."""
    mutual, half = (_mutual(neighbours[:, : k + 1]) for k in (k1, round(k1 / 2)))
    # A neighbour's smaller set joins if more than 2/3 of it is in the image's own.
    shared = (mutual @ half.T).multiply(mutual).tocsr()
    shared.data = (shared.data > 2 / 3 * half.sum(1)[shared.indices]).astype(np.int32)
    shared.eliminate_zeros()
    members = (mutual + shared @ half).tocsr()
    rows = np.repeat(np.arange(len(features)), np.diff(members.indptr))
    distances = _pair_distances(features, rows, members.indices) / farthest[rows]
    weights = sp.csr_array((np.exp(-distances), members.indices, members.indptr), members.shape)
    sums = np.maximum(weights.sum(1), np.finfo(np.float32).tiny)
    weights.data /= sums[rows]
    return weights


def _mutual(neighbours: np.ndarray) -> sp.csr_array:
    """1 where two images are each among the other's neighbours [N, k], else 0; sparse [N, N]."""
    forward = _rows_of(neighbours, np.int32(1))
    return forward.multiply(forward.T).tocsr()


def _rows_of(columns: np.ndarray, value: np.generic) -> sp.csr_array:
    """`value` at the columns [N, k] of each row; sparse [N, N]."""
    count, k = columns.shape
    starts = np.arange(0, count * k + 1, k)
    return sp.csr_array((np.full(count * k, value), columns.flatten(), starts), (count, count))


def _pair_distances(features: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of features, rows of length 1 or 0; float32."""
    squares, rows = np.einsum("nd,nd->n", features, features), jnp.asarray(features)
    products = np.empty(len(left), np.float32)
    for start in range(0, len(left), PAIRS):
        block = slice(start, start + PAIRS)
        pairs = (np.resize(indices[block], PAIRS).astype(np.int32) for indices in (left, right))
        products[block] = np.asarray(_products(rows, *pairs))[: len(left) - start]
    return squares[left] + squares[right] - 2 * products


@jax.jit
def _products(rows: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.sum(rows[left] * rows[right], 1)


def _jaccard_distances(weights: sp.csr_array, query: int, gallery: sp.csc_array, count: int) -> np.ndarray:
    """1 − Σ min / Σ max of a query's weights [N, N] and those of each gallery image [G, N]; float32 [G]."""
    row = slice(*weights.indptr[query : query + 2])
    columns = gallery[:, weights.indices[row]]
    smaller = np.minimum(columns.data, np.repeat(weights.data[row], np.diff(columns.indptr)))
    common = np.bincount(columns.indices, smaller, count)
    return (1 - common / (2 - common)).astype(np.float32)


def expand_queries(
    query_features: np.ndarray, gallery_features: np.ndarray, nearest: int, mesh: Mesh | None = None
) -> np.ndarray:
    """Average query expansion (Chum et al. 2007): each query as the mean of itself and its nearest gallery features.

    [Q, D], [G, D] -> [Q, D] float32, of rows scaled to length 1; of a smaller gallery it takes all. ValueError if
    `nearest` is less than 1, or features are not finite or of different widths.
    """
    if nearest < 1:
        raise ValueError(f"query expansion takes at least 1 of the nearest, not {nearest}")
    mesh = mesh or make_mesh(0)
    query, gallery = unit_rows(query_features), unit_rows(gallery_features)
    distances = unit_distances(query, gallery, mesh)
    size, k = BLOCK * mesh.shape["data"], min(nearest, len(gallery))
    expanded = np.empty_like(query)
    for start in range(0, len(query), size):
        rows = np.arange(start, min(start + size, len(query)))
        found = np.asarray(_nearest_and_farthest(distances(rows), k)[0])
        expanded[rows] = (query[rows] + gallery[found].sum(1)) / (1 + k)
    return expanded


def check_parameters(k1: int, k2: int, lambda_value: float) -> None:
    """ValueError for parameters of re-ranking that are out of range."""
    for name, value in (("k1", k1), ("k2", k2)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"lambda_value is {lambda_value}; it must lie in 0..1")
