"""The ranking metrics are those of the Market-1501 protocol."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrsrd_jax.evaluation import rank_metrics, squared_distances


def test_official_metrics(golden):
    g = golden("metrics")
    m = rank_metrics(squared_distances(g["qf"], g["gf"]), g["q_pids"], g["g_pids"], g["q_camids"], g["g_camids"])
    np.testing.assert_allclose(m.cmc, g["cmc"], atol=1e-6)
    np.testing.assert_allclose([m.mAP, m.mINP], [g["mAP"], g["fast_mINP"]], atol=1e-6)
    np.testing.assert_array_equal(m.valid, g["q_valid"])
    np.testing.assert_allclose(m.average_precision[m.valid], g["fast_AP"], atol=1e-6)
    assert np.isnan(m.average_precision[~m.valid]).all()
    assert m.summary()["queries_without_match"] == 30


def test_ties_rank_as_a_stable_sort(golden):
    g = golden("metrics")
    m = rank_metrics(*(g[f"tie_{name}"] for name in ("dist", "q_pids", "g_pids", "q_camids", "g_camids")))
    np.testing.assert_allclose(m.mAP, g["tie_stable_mAP"], atol=1e-6)
    np.testing.assert_allclose(m.cmc, g["tie_stable_cmc"], atol=1e-6)


def test_a_gallery_smaller_than_max_rank(golden):
    g = golden("metrics")
    m = rank_metrics(*(g[f"small_{name}"] for name in ("dist", "q_pids", "g_pids", "q_camids", "g_camids")))
    assert m.cmc.shape == (30,)
    np.testing.assert_allclose(m.cmc, g["small_cmc"], atol=1e-6)
    np.testing.assert_allclose(m.mAP, g["small_mAP"], atol=1e-6)


def test_by_hand():
    """One query of identity 1, camera 0; the gallery in order of distance: junk, wrong, right, distractor, right."""
    m = rank_metrics(np.array([[0.1, 0.2, 0.3, 0.4, 0.5]]), [1], [1, 2, 1, 0, 1], [0], [0, 1, 1, 1, 2])
    np.testing.assert_allclose(m.mAP, (1 / 2 + 2 / 4) / 2)
    np.testing.assert_allclose(m.mINP, 2 / 4)
    np.testing.assert_array_equal(m.cmc, [0, 1, 1, 1, 1])


def naive(distances, query_ids, gallery_ids, query_cameras, gallery_cameras):
    scores = []
    for row, identity, camera in zip(distances, query_ids, query_cameras, strict=True):
        order = [
            j
            for j in sorted(range(len(row)), key=lambda j: row[j])
            if (gallery_ids[j], gallery_cameras[j]) != (identity, camera)
        ]
        ranks = [r for r, j in enumerate(order, 1) if gallery_ids[j] == identity]
        if ranks:
            precision = [(i + 1) / r for i, r in enumerate(ranks)]
            scores.append((np.mean(precision), len(ranks) / ranks[-1], ranks[0]))
    return np.array(scores)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 40), st.integers(1, 5), st.integers(1, 3))
def test_laws(seed, queries, gallery, identities, cameras):
    """Equal to a naive reference; junk adds nothing; a perfect ranking gives 1; order within the gallery is nothing."""
    rng = np.random.default_rng(seed)
    distances = rng.permutation(queries * gallery).reshape(queries, gallery).astype(np.float32)
    ids = rng.integers(identities, size=queries), rng.integers(identities, size=gallery)
    cams = rng.integers(cameras, size=queries), rng.integers(cameras, size=gallery)
    expected = naive(distances, *ids, *cams)
    if not len(expected):
        with pytest.raises(ValueError, match="no query has"):
            rank_metrics(distances, *ids, *cams)
        return
    m = rank_metrics(distances, *ids, *cams)
    np.testing.assert_allclose([m.mAP, m.mINP, m.cmc[0]], [*expected[:, :2].mean(0), (expected[:, 2] == 1).mean()])
    order = rng.permutation(gallery)
    permuted = rank_metrics(distances[:, order], ids[0], ids[1][order], cams[0], cams[1][order])
    np.testing.assert_allclose([permuted.mAP, permuted.mINP], [m.mAP, m.mINP])
    perfect = rank_metrics((ids[0][:, None] != ids[1][None]).astype(float), *ids, *cams)
    assert perfect.mAP == perfect.mINP == perfect.cmc[0] == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(1, 2\).*1 queries, 3 gallery"):
        rank_metrics(np.zeros((1, 2)), [1], [1, 2, 3], [0], [1, 1, 1])
    with pytest.raises(ValueError, match="NaN"):
        rank_metrics(np.array([[np.nan, 0]]), [1], [1, 2], [0], [1, 1])


def test_a_zero_feature_has_finite_distances():
    assert np.isfinite(squared_distances(np.zeros((1, 4)), np.eye(4))).all()
