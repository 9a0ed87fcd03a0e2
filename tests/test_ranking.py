"""Test that the ranking metrics follow the Market-1501 protocol."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrsrd_jax.retrieval import ranking
from nrsrd_jax.retrieval.distances import squared_distances, unit_rows
from nrsrd_jax.retrieval.ranking import rank_by, rank_features, rank_metrics
from nrsrd_jax.sharding import make_mesh


def test_metrics_equal_the_official_ones(golden):
    g = golden("metrics")
    labels = g["q_pids"], g["g_pids"], g["q_camids"], g["g_camids"]
    from_features = rank_features(g["qf"], g["gf"], *labels)
    matrix = np.asarray(squared_distances(g["qf"], g["gf"])(np.arange(300)))
    np.testing.assert_allclose(matrix[:20], g["distmat_rows0_19"], atol=2e-6)
    for m in (from_features, rank_metrics(matrix, *labels)):
        np.testing.assert_allclose(m.cmc, g["cmc"], atol=1e-6)
        np.testing.assert_allclose([m.mAP, m.mINP], [g["mAP"], g["fast_mINP"]], atol=1e-6)
        np.testing.assert_array_equal(m.valid, g["q_valid"])
        np.testing.assert_allclose(m.average_precision[m.valid], g["fast_AP"], atol=1e-6)
        np.testing.assert_allclose(m.inverse_penalty[m.valid], g["fast_INP"], atol=1e-6)
        assert np.isnan(m.average_precision[~m.valid]).all()
        assert m.summary()["queries_without_match"] == 30


def test_gallery_images_at_equal_distances_keep_their_order(golden):
    g = golden("metrics")
    m = rank_metrics(*(g[f"tie_{name}"] for name in ("dist", "q_pids", "g_pids", "q_camids", "g_camids")))
    np.testing.assert_allclose(m.mAP, g["tie_stable_mAP"], atol=1e-6)
    np.testing.assert_allclose(m.cmc, g["tie_stable_cmc"], atol=1e-6)


def test_a_gallery_smaller_than_max_rank_shortens_the_cmc_curve(golden):
    g = golden("metrics")
    m = rank_metrics(*(g[f"small_{name}"] for name in ("dist", "q_pids", "g_pids", "q_camids", "g_camids")))
    assert m.cmc.shape == (30,)
    np.testing.assert_allclose(m.cmc, g["small_cmc"], atol=1e-6)
    np.testing.assert_allclose(m.mAP, g["small_mAP"], atol=1e-6)


def test_metrics_equal_those_worked_out_by_hand():
    """Rank five images for a query of identity 1, camera 0. By distance: junk, wrong, right, distractor, right."""
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
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 12]),
    st.sampled_from([1, 9, 100]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([2, 30, 10**6]),
)
def test_metrics_equal_a_naive_reference(seed, queries, gallery, identities, cameras, values):
    """Check too that only the order of distances counts, that junk has no effect and that a perfect ranking gives 1."""
    rng = np.random.default_rng(seed)
    # Few different values give many equal distances.
    distances = (rng.integers(values, size=(queries, gallery)) - values // 2).astype(np.float32)
    ids = rng.integers(identities, size=queries), rng.integers(identities, size=gallery)
    cams = rng.integers(cameras, size=queries), rng.integers(cameras, size=gallery)
    expected = naive(distances, *ids, *cams)
    if not len(expected):
        with pytest.raises(ValueError, match="no query has"):
            rank_metrics(distances, *ids, *cams)
        return
    m = rank_metrics(distances, *ids, *cams)
    np.testing.assert_allclose([m.mAP, m.mINP], expected[:, :2].mean(0))
    np.testing.assert_allclose(m.cmc, [(expected[:, 2] <= rank).mean() for rank in range(1, len(m.cmc) + 1)])
    stretched = rank_metrics(np.exp(distances.astype(np.float64) / values), *ids, *cams)
    np.testing.assert_array_equal(stretched.average_precision, m.average_precision)
    # The junk image has the query's identity and camera and is the nearest.
    query = np.flatnonzero(m.valid)[0]
    more_ids, more_cams = (np.append(gallery, own[query]) for own, gallery in (ids, cams))
    with_junk = np.append(distances[query], -(10.0**9))[None]
    alone = rank_metrics(with_junk, ids[0][query, None], more_ids, cams[0][query, None], more_cams)
    assert alone.mAP == pytest.approx(m.average_precision[query])
    perfect = rank_metrics((ids[0][:, None] != ids[1][None]).astype(float), *ids, *cams)
    assert perfect.mAP == perfect.mINP == perfect.cmc[0] == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([2, 40, 70]))
def test_the_order_of_the_gallery_does_not_matter(seed, gallery):
    rng = np.random.default_rng(seed)
    distances = rng.permutation(5 * gallery).reshape(5, gallery)
    ids, cameras, order = rng.integers(3, size=gallery), rng.integers(1, 4, size=gallery), rng.permutation(gallery)
    ids[0] = 1
    queries = np.arange(5) % 3, np.zeros(5)
    m = rank_metrics(distances, queries[0], ids, queries[1], cameras)
    permuted = rank_metrics(distances[:, order], queries[0], ids[order], queries[1], cameras[order])
    np.testing.assert_array_equal(permuted.first_match, m.first_match)
    np.testing.assert_allclose(permuted.average_precision, m.average_precision)


@pytest.mark.parametrize("distances", [
    # In float32, these would be equal.
    np.array([[1 + 2e-16, 1, 1 + 4e-16]]),
    # A device flushes such small numbers to 0.
    np.array([[2e-40, 1e-40, 3e-40]], np.float32),
    np.array([[-1.0, -np.inf, np.inf]], np.float16),
    np.array([[2**40 + 1, 2**40, 2**40 + 2]]),
])  # fmt: skip
def test_nearly_equal_distances_are_ranked_exactly(distances):
    m = rank_metrics(distances, [1], [1, 0, 0], [0], [1, 1, 1])
    assert m.first_match == 2


def test_minus_zero_equals_zero():
    m = rank_metrics(np.array([[0.0, -0.0]], np.float32), [1], [1, 0], [0], [1, 1])
    assert m.first_match == 1


def test_blocks_and_devices_do_not_change_the_metrics(golden, monkeypatch):
    """Check too that a block has at most BLOCK_DISTANCES distances on each device."""
    g = golden("metrics")
    labels = g["q_pids"], g["g_pids"], g["q_camids"], g["g_camids"]
    expected = rank_features(g["qf"], g["gf"], *labels)
    # The golden gallery has 2,000 images, so a block has three queries per device.
    monkeypatch.setattr(ranking, "BLOCK_DISTANCES", 3 * 2000)
    asked = []
    distances = squared_distances(g["qf"], g["gf"])

    def recorded(rows):
        asked.append(len(rows))
        return distances(rows)

    blocked = rank_by(recorded, *labels)
    assert max(asked) == 3 * jax.device_count()
    one = make_mesh(0, devices=jax.devices()[:1])
    alone = rank_by(squared_distances(g["qf"], g["gf"], one), *labels, mesh=one)
    for m in (blocked, alone):
        np.testing.assert_allclose(m.average_precision, expected.average_precision, atol=1e-6)


def nearly_parallel(seed=0, queries=60, gallery=150, width=64, identities=12):
    """Return features as random networks give them, with all cosines above 0.9999, and labels. Some are copies."""
    rng = np.random.default_rng(seed)
    ids, cameras = ([rng.integers(n, size=count) for count in (queries, gallery)] for n in (identities, 3))
    centres, common = rng.standard_normal((identities, width)), 300 * rng.standard_normal(width)
    query, own = (common + centres[i] + 0.5 * rng.standard_normal((len(i), width)) for i in ids)
    own[gallery // 2 :: 7] = own[: len(own[gallery // 2 :: 7])]
    return query.astype(np.float32), own.astype(np.float32), (*ids, *cameras)


def exact_distances(query, gallery):
    rows = [np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True) for x in (query, gallery)]
    return np.square(rows[0][:, None] - rows[1]).sum(-1)


@pytest.mark.parametrize(("devices", "block"), [(1, 1), (1, 7), (8, 3), (8, 256)])
def test_nearly_parallel_features_rank_as_in_float64(monkeypatch, devices, block):
    """Try several block sizes and numbers of devices. Copies in the gallery must keep equal distances."""
    query, gallery, labels = nearly_parallel()
    exact = exact_distances(query, gallery)
    # Half a squared distance is 1 - cosine.
    assert exact.max() / 2 < 1e-4
    expected = rank_metrics(exact, *labels)
    monkeypatch.setattr(ranking, "QUERY_BLOCK", block)
    mesh = make_mesh(0, devices=jax.devices()[:devices])
    found = rank_features(query, gallery, *labels, mesh=mesh)
    np.testing.assert_array_equal(found.first_match, expected.first_match)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    distances = np.asarray(squared_distances(query, gallery, mesh)(np.arange(len(query))))
    np.testing.assert_allclose(distances, exact, atol=1e-6 * exact.max())
    np.testing.assert_array_equal(np.argsort(distances, kind="stable"), np.argsort(exact, kind="stable"))


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_two_groups_of_nearly_parallel_features_rank_as_in_float64(spread):
    """Use features by day and by night, which differ far more than those of two people."""
    rng = np.random.default_rng(0)
    people, night = rng.standard_normal((20, 64)), np.where(rng.random(64) < 0.5, -1, 1)
    ids = np.arange(40) % 20, np.arange(200) % 20
    query, gallery = (1 + spread * (people[i] + 2 * rng.standard_normal((len(i), 64))) for i in ids)
    query[1::3] *= night
    gallery[::2] *= night
    query, gallery = query.astype(np.float32), gallery.astype(np.float32)
    labels = *ids, np.zeros(40), np.ones(200)
    expected = rank_metrics(exact_distances(query, gallery), *labels)
    found = rank_features(query, gallery, *labels)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 1e4))
def test_distances_stay_accurate_if_features_have_a_large_common_part(seed, common):
    """Check that the error stays within 2e-6 of the largest distance, however large the common part is."""
    rng = np.random.default_rng(seed)
    query, gallery = (rng.standard_normal((n, 16)) + common * np.eye(16)[0] for n in (3, 20))
    exact = exact_distances(query, gallery)
    distances = np.asarray(squared_distances(query, gallery)(np.arange(3)))
    np.testing.assert_allclose(distances, exact, atol=2e-6 * exact.max())


def test_metrics_of_a_group_of_queries():
    m = rank_metrics(np.array([[0.1, 0.2], [0.1, 0.2]]), [1, 2], [1, 2], [0, 0], [1, 1])
    summary = m.of(np.array([True, False])).summary()
    assert summary | {
        "mAP": 1, "mINP": 1, "rank1": 1, "rank5": 1, "rank10": 1, "queries": 1, "queries_without_match": 0,
    } == summary  # fmt: skip
    assert m.of([1]).mAP == 0.5


def test_distances_of_the_wrong_shape_or_with_nan_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\).*1 queries, 3 gallery"):
        rank_metrics(np.zeros((1, 2)), [1], [1, 2, 3], [0], [1, 1, 1])
    with pytest.raises(ValueError, match="NaN"):
        rank_metrics(np.array([[np.nan, 0]]), [1], [1, 2], [0], [1, 1])


def test_features_that_cannot_be_ranked_are_refused():
    labels = [1], [1, 2], [0], [1, 1]
    with pytest.raises(ValueError, match=r"\(1, 3\), the gallery \(2, 4\)"):
        rank_features(np.ones((1, 3)), np.ones((2, 4)), *labels)
    with pytest.raises(ValueError, match="1 of 1 features are not finite"):
        rank_features(np.full((1, 4), np.inf), np.ones((2, 4)), *labels)
    for counts in ((2, 2), (1, 1), (1, 3)):
        with pytest.raises(ValueError, match=r"distances are \(1, 2\), but there are"):
            rank_features(np.ones((1, 4)), np.ones((2, 4)), *2 * [np.arange(n) for n in counts])
    with pytest.raises(ValueError, match="max_rank is 0"):
        rank_features(np.ones((1, 4)), np.ones((2, 4)), *labels, max_rank=0)
    with pytest.raises(ValueError, match="differ in number"):
        rank_features(np.ones((1, 4)), np.ones((2, 4)), [1], [1, 2], [0], [1])


@pytest.mark.parametrize("wrong", [np.ma.array([[1.0, 2]]), np.ones((1, 2), complex), np.ones((1, 2), np.longdouble)])
def test_features_that_are_masked_complex_or_too_precise_are_refused(wrong):
    for features in ((wrong, np.eye(2)), (np.ones((1, 2)), np.resize(wrong, (2, 2)).view(type(wrong)))):
        with pytest.raises(ValueError, match=r"features are (masked|of type)"):
            rank_features(*features, [1], [1, 2], [0], [1, 1])


def test_large_identities_or_cameras_of_two_types_are_refused():
    """Use numbers that are equal in float64, to which NumPy would convert both types."""
    wrong = np.array([2**53 + 1]), np.array([2**53, 2**53 + 1], np.uint64)
    small = np.array([1]), np.array([2, 1], np.uint64)
    distances = np.array([[0.1, 0.2]])
    assert rank_metrics(distances, *small, [0], [1, 1]).first_match == 2
    assert rank_metrics(distances, *(ids.astype(np.int64) for ids in wrong), [0], [1, 1]).first_match == 2
    for labels in ((*wrong, [0], [1, 1]), ([1], [2, 1], *wrong), (wrong[0], [2.0**53, 1], [0], [1, 1])):
        with pytest.raises(ValueError, match="identities or cameras are of types int64 and "):
            rank_metrics(distances, *labels)


def test_masked_identities_or_cameras_are_refused():
    for labels in ((np.ma.array([1]), [1, 2], [0], [1, 1]), ([1], [1, 2], [0], np.ma.array([1, 1], mask=[0, 1]))):
        with pytest.raises(ValueError, match="identities or cameras are masked"):
            rank_metrics(np.zeros((1, 2)), *labels)


@pytest.mark.parametrize("distances", [
    np.array([[2**53 + 1, 2**53]], np.uint64), np.array([[-(2**53) - 1, 0]]), np.ones((1, 2), np.longdouble),
])  # fmt: skip
def test_distances_that_float64_makes_equal_are_refused(distances):
    with pytest.raises(ValueError, match=f"distances are of type {distances.dtype}.*fit float64"):
        rank_metrics(distances, [1], [1, 2], [0], [1, 1])


def test_a_zero_feature_has_finite_distances():
    assert np.isfinite(squared_distances(np.zeros((1, 4)), np.eye(4))(np.arange(1))).all()


def test_huge_and_tiny_features_are_scaled():
    rows = unit_rows(np.array([[3e30, 4e30], [3e-30, 4e-30], [0, 0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-6)
