"""Bootstrap intervals: how much a mean over queries could differ with other queries of the same kind.

N queries, M measures (such as the difference of two models' average precision), K people, R resamples. Efron and
Tibshirani, An Introduction to the Bootstrap, 1993: chapter 13 has the percentile interval. It is paired because a
query's scores under both models enter together, as their difference.
"""

import numpy as np

BLOCK = 2**21  # draws at a time, which limits memory


def resampled_means(
    values: np.ndarray, *, resamples: int, seed: int, groups: np.ndarray | None = None, block: int = BLOCK
) -> np.ndarray:
    """Return the means over queries of resampled queries.

    A resample draws K of the K groups with replacement. Its mean is Σ c_k s_k / Σ c_k n_k, where group k was drawn c_k
    times, has n_k queries, and its values sum to s_k. Without `groups` each query is a group of its own. All measures
    share the same resamples.

    Args:
        values: the measures of each query [N, M].
        resamples: how many resamples to draw.
        seed: the same seed draws the same resamples, whatever `block` is.
        groups: the group of each query [N], such as its identity; queries of a group are drawn together.
        block: how many draws are in memory at a time.

    Returns:
        float64 [resamples, M].
    """
    values = np.asarray(values, np.float64)
    sums, sizes = values, np.ones(len(values))
    if groups is not None:
        _, index = np.unique(groups, return_inverse=True)
        sizes = np.bincount(index).astype(np.float64)
        sums = np.zeros((len(sizes), values.shape[1]))
        np.add.at(sums, index, values)
    count = len(sizes)
    rng = np.random.default_rng(seed)
    rows = max(1, block // count)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, count, (size, count))
        drawn += np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        means[start : start + size] = times @ sums / (times @ sizes)[:, None]
    return means


def percentile_interval(means: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper end, float64 [M] each, of the share `level` of resampled means [R, M]."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
