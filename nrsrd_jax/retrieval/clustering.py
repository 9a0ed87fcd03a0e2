"""Group crops by person, without labels.

N crops, D feature width, k the neighbours of a crop. The distance of two crops is the Jaccard distance of their
k-reciprocal neighbours (rerank.py). Only pairs within a limit are kept, in a sparse matrix, so memory is O(N·k).
scikit-learn's DBSCAN or HDBSCAN finds groups in this graph. `constrain` then joins tracks and separates crops that one
camera saw at the same time.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from ..sharding import make_mesh
from .distances import centred_rows, distances_of
from .linking import constrain
from .neighbours import neighbour_weights
from .rerank import BLOCK, check_parameters

METHODS = ("dbscan", "hdbscan")
# This many distances at a time bound the memory of a block.
DISTANCES = 2**24
# A crop keeps at most KEPT · k1 pairs with later crops.
KEPT = 2
# Bytes that the program takes with its libraries.
PROGRAM = 2**29
# HDBSCAN weighs a distance d by 1/d. Without a lower limit, crops at distance 0 would outweigh all others and split a
# person into several groups. On the demo's night crops 0.3 was better than 0.2 and 0.4.
CLOSE = 0.3


@dataclasses.dataclass(frozen=True)
class Groups:
    """G groups of N crops.

    Attributes:
        labels: the group of each crop, int [N]; groups are numbered from 0 in the order of their first crops, and −1
            stands for no group.
        doubt: the Jaccard distance of each group's weakest link [G], in 0..1. Without this link the group would be two
            groups.
        weakest: the two crops of this link, int [G, 2].
    """

    labels: np.ndarray
    doubt: np.ndarray
    weakest: np.ndarray


def cluster(
    features: np.ndarray,
    *,
    eps: float,
    min_size: int = 2,
    method: str = "dbscan",
    k1: int = 20,
    k2: int = 6,
    tracks: np.ndarray | None = None,
    cameras: np.ndarray | None = None,
    times: np.ndarray | None = None,
    same_time: float | None = 0.0,
) -> Groups:
    """Group crops by person, without labels.

    Crops of one track always share a group. Other crops of one camera never do if their times differ by at most
    `same_time`.

    Args:
        features: [N, D], of any length.
        eps: the largest Jaccard distance that joins two crops, in 0..1.
        min_size: the fewest crops of a group, at least 2. A crop with this many crops within eps, itself included, is
            what DBSCAN calls a core point.
        method: "dbscan", or "hdbscan", which chooses a distance of at least 0.3 and at most eps for each group.
        k1: the size of a neighbourhood, at least 1; about the number of crops of a person.
        k2: how many nearest crops each neighbourhood is averaged over, at least 1.
        tracks: the track of each crop, int [N], −1 for no track; None for no tracks.
        cameras: the camera of each crop, int [N], −1 if unknown; None if all are unknown.
        times: when each crop was seen, datetime64 [N], NaT if unknown; None if all are unknown.
        same_time: seconds; None to let crops of one camera at the same time share a group.

    Returns:
        The groups.

    Raises:
        ValueError: a parameter is out of its range, a feature is not finite, or there are no features.

    Source:
        Ester et al. 1996 (DBSCAN) and Campello et al. 2013 (HDBSCAN), on the distances of Zhong et al. 2017.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.clustering import cluster
        >>> features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [-1.0, -1.0]])
        >>> cluster(features, eps=0.5, k1=1, k2=1).labels.tolist()
        [0, 0, 1, 1, -1]
    """
    if not 0 < eps < 1:
        raise ValueError(f"eps is {eps}; it must lie between 0 and 1")
    if min_size < 2:
        raise ValueError(f"min_size is {min_size}; a group has at least 2 crops")
    if same_time is not None and not same_time >= 0:
        raise ValueError(f"same_time is {same_time}; it must be at least 0 seconds")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    graph = jaccard_graph(features, limit=eps, k1=k1, k2=k2)
    labels = dbscan(graph, eps, min_size) if method == "dbscan" else hdbscan(graph, eps, min_size)
    contested = (None, None) if same_time is None or cameras is None or times is None else (cameras, times)
    return Groups(*constrain(graph, labels, min_size, tracks, *contested, same_time or 0.0))


def memory_bound(crops: int, width: int, k1: int, k2: int, devices: int = 1) -> int:
    """Estimate the most bytes that `cluster` takes, including its arguments and the program itself.

    The search for neighbours holds the scaled features in float64, on the host and on each device, and a few blocks of
    distances. The comparison of pairs holds the weights of each crop's neighbours twice, by row and by column, and the
    pairs that are kept. In theory a crop may have more weights than that. Random features have the most: 5·k1 a crop.

    Args:
        crops: N.
        width: D.
        k1: as in `cluster`.
        k2: as in `cluster`.
        devices: the number of devices.

    Returns:
        The number of bytes.

    Example:
        >>> from nrsrd_jax.retrieval.clustering import memory_bound
        >>> memory_bound(100_000, 384, 20, 6) < 2 * 2**30
        True
    """
    searching = crops * (8 * width * (1 + devices) + 32 * (k1 + 1)) + 32 * _at_once(crops) * devices * crops
    pairing = crops * (16 * 2 * k1 * k2 + 100 * KEPT * k1)
    return PROGRAM + 4 * width * crops + max(searching, pairing)


def _at_once(crops: int) -> int:
    """Return how many crops are compared with all others at once, per device."""
    return max(1, min(BLOCK, DISTANCES // crops))


def jaccard_graph(features: np.ndarray, *, limit: float, k1: int, k2: int) -> sp.csr_array:
    """Compute the Jaccard distances of k-reciprocal neighbours for the pairs of crops within a limit.

    A crop keeps only its 2·k1 nearest among the crops after it, so that many copies of an image cannot fill the memory.

    Args:
        features: [N, D], of any length.
        limit: the largest distance to keep, at least 0 and below 1.
        k1: as in `rerank.k_reciprocal`.
        k2: as in `rerank.k_reciprocal`.

    Returns:
        Sparse float32 [N, N], symmetric. Distances of 0, such as those on the diagonal, are stored too.

    Raises:
        ValueError: a parameter is out of its range, a feature is not finite, or there are no features.

    Source:
        Zhong et al. 2017; as `rerank.k_reciprocal` with lambda_value=0.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.clustering import jaccard_graph
        >>> graph = jaccard_graph(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), limit=0.5, k1=1, k2=1)
        >>> graph.nnz, (graph[0, 1] < 0.1).item()
        (5, True)
    """
    check_parameters(k1, k2)
    if not len(features):
        raise ValueError("there are no features")
    return _near_pairs(_weights(features, k1, k2), limit, KEPT * k1)


def _weights(features: np.ndarray, k1: int, k2: int) -> sp.csr_array:
    mesh = make_mesh()
    rows = centred_rows(features[:0], features)[1]
    size = _at_once(len(rows)) * mesh.shape["data"]
    # On a CPU, float64 distances of all pairs are seldom needed, so that they take memory only if they are used.
    exactly = functools.cache(lambda: distances_of(rows, rows, mesh))
    return neighbour_weights(rows, lambda block: exactly()(block), k1, k2, size, mesh)[0]


def _near_pairs(weights: sp.csr_array, limit: float, most: int) -> sp.csr_array:
    """Return the Jaccard distances up to `limit` of rows of weights [N, N]; a row has at most `most` later ones.

    distance = 1 − Σ min / Σ max, where each row sums to 1, so Σ max = 2 − Σ min
    """
    count = len(weights.indptr) - 1
    by_column = weights.tocsc()
    # A row is compared only with later rows, so that `starts` moves past the rows that are done.
    starts, ends = by_column.indptr[:-1].copy(), by_column.indptr[1:]
    # A distance within the limit has at least this Σ min.
    least = 2 * (1 - limit) / (2 - limit)
    near, distances = [], []
    for row in tqdm(range(count), "pairs", unit="crop", leave=False, disable=None):
        own = slice(*weights.indptr[row : row + 2])
        columns = weights.indices[own]
        first = starts[columns]
        lengths = ends[columns] - first
        places = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
        smaller = np.minimum(by_column.data[places], np.repeat(weights.data[own], lengths))
        common = np.bincount(by_column.indices[places] - row, smaller)
        starts[columns] += 1
        # Rounding must not lose a distance that is exactly the limit.
        found = np.flatnonzero(common[1:] >= least - 1e-6) + 1
        jaccard = np.maximum(1 - common[found] / (2 - common[found]), 0).astype(np.float32)
        chosen = jaccard <= np.float32(limit)
        found, jaccard = found[chosen], jaccard[chosen]
        if len(found) > most:
            kept = np.sort(np.argsort(jaccard, kind="stable")[:most])
            found, jaccard = found[kept], jaccard[kept]
        near.append((found + row).astype(np.int32))
        distances.append(jaccard)
    left = np.repeat(np.arange(count, dtype=np.int32), list(map(len, near)))
    right, values = np.concatenate([*near, left[:0]]), np.concatenate([*distances, np.empty(0, np.float32)])
    itself = np.arange(count, dtype=np.int32)
    places = np.concatenate([left, right, itself]), np.concatenate([right, left, itself])
    return sp.csr_array((np.concatenate([values, values, np.zeros(count, np.float32)]), places), (count, count))


def dbscan(graph: sp.csr_array, eps: float, min_size: int) -> np.ndarray:
    """Group crops by DBSCAN on the distances of `jaccard_graph`. Return the groups, int [N], −1 for no group."""
    # scikit-learn is an optional dependency, so it is imported only where it is used.
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    ordered = sort_graph_by_row_values(graph, copy=True, warn_when_not_sorted=False)
    return DBSCAN(eps=eps, min_samples=min_size, metric="precomputed").fit(ordered).labels_


def hdbscan(graph: sp.csr_array, eps: float, min_size: int) -> np.ndarray:
    """Group crops by HDBSCAN on the distances of `jaccard_graph`. Return the groups, int [N], −1 for no group.

    Distances below CLOSE count as CLOSE. HDBSCAN needs a connected graph in which each crop has `min_size` distances.
    So pairs are added with the distance eps: crops with too few distances are linked to the first `min_size` crops, and
    one crop of each part of the graph to the first crop.
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import HDBSCAN

    count = len(graph.indptr) - 1
    if count < min_size:
        return np.full(count, -1)
    _, parts = connected_components(graph, directed=False)
    few = np.flatnonzero(np.diff(graph.indptr) < min_size)
    left = np.concatenate([np.unique(parts, return_index=True)[1], np.repeat(few, min_size)])
    right = np.concatenate([np.zeros(parts.max() + 1, int), np.tile(np.arange(min_size), len(few))])
    places = np.concatenate([left, right]), np.concatenate([right, left])
    added = sp.csr_array((np.ones(2 * len(left), np.float32), places), graph.shape)
    # A pair that was added twice has the sum.
    added.data[:] = 1
    # With 1 + eps − distance in place of the distance, `maximum` prefers kept pairs to added ones, and both to 0.
    close = np.maximum(graph.data, min(CLOSE, eps), dtype=np.float32)
    near = sp.csr_array((1 + np.float32(eps) - close, graph.indices, graph.indptr), graph.shape)
    whole = sp.csr_array(near.maximum(added))
    whole.data = 1 + np.float32(eps) - whole.data
    # No copy is needed, because the matrix is not used again; scikit-learn warns if `copy` is not set.
    options: Any = {"copy": False}
    return HDBSCAN(min_cluster_size=min_size, metric="precomputed", **options).fit(whole).labels_


def scores(labels: np.ndarray, people: np.ndarray) -> dict[str, float]:
    """Compare groups with the people that the crops really show.

    Precision is the share of the pairs in one group that show one person. Recall is the share of the pairs of one
    person that are in one group. A crop without a group counts as a group of its own.

    Args:
        labels: the group of each crop, int [N], −1 for no group.
        people: the person of each crop [N].

    Returns:
        {"precision", "recall", "f"} of pairs and {"nmi", "ami"}, the normalised and the adjusted mutual information.
        Without pairs, precision and recall are 0.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.clustering import scores
        >>> result = scores(np.array([0, 0, 0, -1]), np.array(["a", "a", "b", "b"]))
        >>> result["precision"], result["recall"], result["f"]
        (0.3333333333333333, 0.5, 0.4)
    """
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    alone = labels < 0
    labels = np.where(alone, labels.max(initial=-1) + np.cumsum(alone), labels)
    (_, joined), (missed, right) = pair_confusion_matrix(people, labels).tolist()
    return {
        "precision": right / max(right + joined, 1),
        "recall": right / max(right + missed, 1),
        "f": 2 * right / max(2 * right + joined + missed, 1),
        "nmi": float(normalized_mutual_info_score(people, labels)),
        "ami": float(adjusted_mutual_info_score(people, labels)),
    }
