"""Bootstrap intervals agree with a plain loop, follow shifts and scales, and contain the true mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nrsrd_jax.retrieval.bootstrap import percentile_interval, resampled_means

COLUMNS = arrays.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.floats(-1, 1))
SEEDS = st.integers(0, 2**32)


def interval(values, groups=None, seed=0, resamples=300):
    return percentile_interval(resampled_means(values, resamples=resamples, seed=seed, groups=groups))


def plain(values, groups, resamples, seed):
    """Compute the means of resamples one by one, in a plain loop."""
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    means = []
    for _ in range(resamples):
        # The groups are drawn in the same order as in `resampled_means`, so the resamples are the same.
        drawn = [names[i] for i in rng.integers(0, len(names), len(names))]
        rows = [value for name in drawn for value, group in zip(values, groups, strict=True) if group == name]
        means.append(np.mean(rows, axis=0))
    return np.array(means)


@settings(deadline=None, max_examples=30)
@given(COLUMNS, SEEDS, st.data())
def test_resamples_equal_those_of_a_plain_loop(values, seed, data):
    groups = data.draw(arrays.arrays(np.int64, len(values), elements=st.integers(0, 3)))
    np.testing.assert_allclose(
        resampled_means(values, resamples=20, seed=seed, groups=groups), plain(values, groups, 20, seed), atol=1e-12
    )
    np.testing.assert_allclose(
        resampled_means(values, resamples=20, seed=seed), plain(values, range(len(values)), 20, seed), atol=1e-12
    )


@settings(deadline=None, max_examples=30)
@given(COLUMNS, SEEDS, st.integers(1, 50))
def test_the_block_size_does_not_change_the_resamples(values, seed, block):
    whole = resampled_means(values, resamples=20, seed=seed)
    np.testing.assert_allclose(resampled_means(values, resamples=20, seed=seed, block=block), whole, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(COLUMNS, SEEDS, st.booleans(), st.floats(-2, 2))
def test_an_interval_follows_shifts_and_scales_of_the_values(values, seed, grouped, shift):
    groups = np.arange(len(values)) // 2 if grouped else None
    low, high = interval(values, groups, seed)
    assert (values.min(0) - 1e-12 <= low).all()
    assert (low <= high).all()
    assert (high <= values.max(0) + 1e-12).all()
    np.testing.assert_allclose(interval(-values, groups, seed), (-high, -low), atol=1e-12)
    np.testing.assert_allclose(interval(values + shift, groups, seed), (low + shift, high + shift), atol=1e-12)
    np.testing.assert_allclose(interval(3 * values, groups, seed), (3 * low, 3 * high), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(COLUMNS, SEEDS)
def test_a_difference_of_zero_has_an_interval_of_width_zero(values, seed):
    # Models with equal scores must not get an interval of rounding errors.
    values = np.concatenate([values, np.zeros((len(values), 1)), values], axis=1)
    low, high = interval(values, seed=seed)
    middle = values.shape[1] // 2
    assert low[middle] == high[middle] == 0


@pytest.mark.parametrize("people", [1, 4])
def test_95_of_100_intervals_contain_the_true_mean(people):
    """Queries of one person share half of their variance, so the bootstrap must draw people and not queries."""
    rng = np.random.default_rng(5)
    holds = {"people": 0, "queries": 0}
    for trial in range(200):
        groups = np.repeat(np.arange(50), people)
        values = 0.3 + rng.normal(0, 0.1, (50, 1)).repeat(people, axis=0) + rng.normal(0, 0.1, (50 * people, 1))
        for by, of_query in (("people", groups), ("queries", None)):
            low, high = interval(values, of_query, seed=trial, resamples=500)
            holds[by] += int(low[0] <= 0.3 <= high[0])
    # An interval of 95 % contains the mean in 190 of 200 trials, with a standard deviation of 3 trials.
    assert 180 <= holds["people"] <= 198
    assert (holds["queries"] < 175) == (people > 1)
