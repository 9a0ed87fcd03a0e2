"""The error rates that an evaluation reports for its test set are right."""

import numpy as np
import pytest
from crowd import draw

from nrsrd_jax.data.datasets import Split
from nrsrd_jax.data.protocol import Target
from nrsrd_jax.retrieval import pairs
from nrsrd_jax.retrieval.pair_table import pair_table


def test_the_rates_of_a_test_set_equal_those_of_a_plain_loop(monkeypatch):
    """The queries of people without a gallery image are searches for strangers."""
    # The blocks are small, and the last one is incomplete.
    monkeypatch.setattr(pairs, "BLOCK_PAIRS", 999)
    rng = np.random.default_rng(11)
    features, who = draw(rng, 90, crops=(4, 9))
    camera = rng.integers(0, 3, len(who))
    query = (rng.random(len(who)) < 0.3) | (who >= 70)
    sides = Split((), who[query], camera[query]), Split((), who[~query], camera[~query])
    target = Target(*sides, camera[query], camera[~query])
    found = pair_table(features[query], features[~query], target)
    assert found["pair_queries"] == query.sum()
    assert found["open_set"]["queries"] == (who[query] >= 70).sum()
    assert found["open_set"]["gallery_people"] == 70
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity, same = units[query] @ units[~query].T, who[query, None] == who[~query]
    genuine = same & (camera[query, None] != camera[~query])
    stranger, own = (np.where(mask, similarity, -9).max(1) for mask in (~same, genuine))
    # 70 people are on both sides and 20 only among the queries: 70·69/2 + 20·70 pairs are enough for a rate of 0.001.
    for row, search, rate in zip(found["pairs"], found["open_set"]["searches"], (0.01, 0.001), strict=True):
        t = row["threshold"]
        assert rate / 1.2 < row["fmr"] <= rate
        assert row["fmr"] == pytest.approx((similarity[~same] >= t).mean())
        assert row["fnmr"] == pytest.approx((similarity[genuine] < t).mean())
        assert search["fpir"] == pytest.approx((stranger[who[query] >= 70] >= t).mean())
        mated = own > -9
        assert search["fnir"] == pytest.approx(((own < t) | (own < stranger))[mated].mean())


def test_a_large_test_set_is_measured_on_some_of_its_queries(monkeypatch):
    rng = np.random.default_rng(12)
    features, who = draw(rng, 60, crops=(4, 5))
    target = Target(Split((), who, who), Split((), who, who), np.zeros(240), np.ones(240))
    whole = pair_table(features, features, target)
    monkeypatch.setattr("nrsrd_jax.retrieval.pair_table.MOST_PAIRS", 240 * 100)
    part = pair_table(features, features, target)
    assert (whole["pair_queries"], part["pair_queries"]) == (240, 80)
    assert part["pairs"][0]["threshold"] == pytest.approx(whole["pairs"][0]["threshold"], abs=0.1)


def test_a_large_test_set_keeps_its_few_queries_of_people_who_are_not_in_the_gallery(monkeypatch):
    rng = np.random.default_rng(13)
    features, who = draw(rng, 60, crops=(4, 5))
    # Every third of all queries would leave out the only stranger, at index 1.
    people = np.where(np.arange(240) == 1, 99, who)
    target = Target(Split((), people, who), Split((), who, who), np.zeros(240), np.ones(240))
    monkeypatch.setattr("nrsrd_jax.retrieval.pair_table.MOST_PAIRS", 240 * 100)
    found = pair_table(features, features, target)["open_set"]
    assert found["queries"] == 1
    # The same crop is in the gallery under another name.
    assert {row["fpir"] for row in found["searches"]} == {1.0}
