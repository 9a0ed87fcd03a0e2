"""Bootstrap intervals: how much a mean over queries could differ with other queries of the same kind.

T trainings, N queries, M measures (such as the difference of two models' average precision), K people, R resamples.
Efron and Tibshirani, An Introduction to the Bootstrap, 1993: chapter 13 has the percentile interval. It is paired
because a query's scores under both models enter together, as their difference.
"""

import numpy as np

BLOCK = 2**21  # draws at a time, which limits memory


def resampled_means(
    values: np.ndarray, *, resamples: int, seed: int, groups: np.ndarray | None = None, block: int = BLOCK
) -> np.ndarray:
    """Return the means over queries and trainings of resampled queries and trainings.

    A resample draws K of the K groups with replacement. Its mean is Σ c_k s_k / Σ c_k n_k, where group k was drawn c_k
    times, has n_k queries, and its values sum to s_k. Without `groups` each query is a group of its own. Of T trainings
    it also draws T with replacement, and averages over them. All measures share the same resamples.

    Args:
        values: the measures of each query [N, M], or with several trainings [T, N, M].
        resamples: how many resamples to draw.
        seed: the same seed draws the same resamples, whatever `block` is.
        groups: the group of each query [N], such as its identity; queries of a group are drawn together.
        block: how many draws are in memory at a time.

    Returns:
        float64 [resamples, M].
    """
    values = values if values.ndim == 3 else values[None]
    trainings, queries, measures = values.shape
    sums = np.asarray(values, np.float64).swapaxes(0, 1)  # [N, T, M]
    sizes = np.ones(queries)
    if groups is not None:
        _, index = np.unique(groups, return_inverse=True)
        sizes = np.bincount(index).astype(np.float64)
        of_queries, sums = sums, np.zeros((len(sizes), trainings, measures))
        np.add.at(sums, index, of_queries)
    count = len(sizes)
    rng, training_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    rows = max(1, block // count)
    means = np.empty((resamples, measures))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        times = _times_drawn(rng, size, count)
        of_trainings = (times @ sums.reshape(count, -1)).reshape(size, trainings, measures)
        shares = _times_drawn(training_rng, size, trainings) / trainings
        means[start : start + size] = np.einsum("rt,rtm->rm", shares, of_trainings) / (times @ sizes)[:, None]
    return means


def _times_drawn(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
    """Draw `count` of `count` things with replacement, `rows` times. Return how often each was drawn [rows, count]."""
    drawn = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def percentile_interval(means: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper end, float64 [M] each, of the share `level` of resampled means [R, M]."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
