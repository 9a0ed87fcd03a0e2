"""Bootstrap intervals: how much a mean over queries could change with other queries of the same kind.

T trainings, N queries, M measures (such as the difference of two models' average precision), K groups, R resamples.
The percentile interval is from chapter 13 of Efron and Tibshirani, An Introduction to the Bootstrap, 1993. The
bootstrap is paired: a measure is the difference of one query's scores under two models.
"""

import numpy as np

# This many random draws at a time limit the memory.
BLOCK = 2**21


def resampled_means(
    values: np.ndarray, *, resamples: int, seed: int, groups: np.ndarray | None = None, block: int = BLOCK
) -> np.ndarray:
    """Draw queries and trainings with replacement, and return the mean of each resample.

    A resample draws K of the K groups with replacement. Its mean is Σ c_k s_k / Σ c_k n_k, where group k was drawn c_k
    times, has n_k queries, and its values sum to s_k. Without `groups` each query is a group of its own. A resample
    also draws T of the T trainings with replacement, and averages over them. All measures share the same resamples.

    Args:
        values: the measures of each query [N, M], or with several trainings [T, N, M].
        resamples: how many resamples to draw.
        seed: the seed of the draws. The resamples do not depend on `block`.
        groups: the group of each query [N], such as its identity; queries of a group are drawn together.
        block: how many draws are in memory at a time.

    Returns:
        The means, float64 [resamples, M].
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
    # Two generators, because a block draws both kinds: with one, the draws would depend on `block`.
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
    """Draw `count` of `count` items with replacement, `rows` times. Return how often each was drawn [rows, count]."""
    # Each row has its own range of numbers, so that one call of bincount counts all rows.
    drawn = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def percentile_interval(means: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper end, float64 [M] each, between which the share `level` of means [R, M] lies."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
