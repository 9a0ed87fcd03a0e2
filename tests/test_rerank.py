"""Test that re-ranking equals the official code and stays within its announced memory."""

import re
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrsrd_jax.retrieval import neighbours as neighbour_search
from nrsrd_jax.retrieval import rerank
from nrsrd_jax.retrieval.distances import centred_rows, distances_of, squared_distances
from nrsrd_jax.retrieval.ranking import rank_by, rank_metrics
from nrsrd_jax.retrieval.rerank import expand_queries, k_reciprocal, reranked_distances
from nrsrd_jax.sharding import make_mesh


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_distances_and_metrics_equal_the_official_ones(golden):
    """Compare with the official code in float32, and in its usual float16, which differs from it by up to 2.4e-3."""
    g = golden("metrics")
    labels = g["q_pids"], g["g_pids"], g["q_camids"], g["g_camids"]
    ours = k_reciprocal(g["qf"], g["gf"])
    np.testing.assert_allclose(ours[:20], g["rr32_final_dist_rows0_19"], atol=2e-6)
    official = np.abs(ours[:20] - g["rr_final_dist_rows0_19"])
    assert official.max() < 1.01 * g["rr_max_abs_f16_vs_f32"]
    assert np.mean(official > 2e-3) < 1e-4
    m = rank_metrics(ours, *labels)
    np.testing.assert_allclose([m.mAP, m.mINP], [g["rr_mAP"], g["rr_fast_mINP"]], atol=1e-3)
    np.testing.assert_allclose(m.mAP, g["rr32_mAP"], atol=1e-6)
    np.testing.assert_allclose(m.cmc, g["rr32_cmc"], atol=1e-6)
    by_rows = rank_by(reranked_distances(g["qf"], g["gf"], 20, 6, 0.3), *labels)
    assert by_rows.mAP == m.mAP


def dense(query, gallery, k1, k2, lambda_value):
    """Return the distances by Zhong et al.'s algorithm as the paper states it: N×N, image by image."""
    features = unit(np.concatenate([query, gallery]))
    count = len(features)
    distances = np.square(features[:, None] - features[None]).sum(-1)
    distances /= distances.max(1, keepdims=True)
    order = np.argsort(distances, axis=1, kind="stable")

    def mutual(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    weights = np.zeros((count, count))
    for i in range(count):
        members = mutual(i, k1)
        for j in mutual(i, k1):
            half = mutual(j, round(k1 / 2))
            if len(half & mutual(i, k1)) > 2 / 3 * len(half):
                members |= half
        chosen = sorted(members)
        weights[i, chosen] = np.exp(-distances[i, chosen])
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-30)
    weights = np.stack([weights[order[i, :k2]].mean(0) for i in range(count)])
    queries, others = weights[: len(query)], weights[len(query) :]
    jaccard = 1 - np.minimum(queries[:, None], others).sum(-1) / np.maximum(queries[:, None], others).sum(-1)
    return lambda_value * distances[: len(query), len(query) :] + (1 - lambda_value) * jaccard


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 6]),
    st.sampled_from([2, 15, 60]),
    st.integers(1, 25),
    st.integers(1, 9),
    st.floats(0, 1),
)
def test_distances_equal_those_of_the_papers_algorithm(seed, queries, gallery, k1, k2, lambda_value):
    """Include numbers of neighbours that exceed the number of images."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5, 16))
    features = centres[rng.integers(5, size=queries + gallery)] + 0.4 * rng.standard_normal((queries + gallery, 16))
    query, gallery = features[:queries], features[queries:]
    expected = dense(query, gallery, k1, k2, lambda_value)
    np.testing.assert_allclose(k_reciprocal(query, gallery, k1, k2, lambda_value), expected, atol=2e-5)


def test_blocks_do_not_change_the_distances(golden, monkeypatch):
    g = golden("metrics")
    expected = k_reciprocal(g["qf"][:50], g["gf"][:300])
    monkeypatch.setattr(rerank, "BLOCK", 3)
    monkeypatch.setattr(neighbour_search, "PAIRS", 64)
    np.testing.assert_allclose(k_reciprocal(g["qf"][:50], g["gf"][:300]), expected, atol=1e-6)


def test_lambda_1_gives_the_original_distances_and_lambda_0_leaves_them_out(golden):
    g = golden("metrics")
    query, gallery = g["qf"][:20], g["gf"][:100]
    everything = unit(np.concatenate([query, gallery]))
    squared = np.square(everything[:20, None] - everything[None]).sum(-1)
    old = k_reciprocal(query, gallery, lambda_value=1)
    np.testing.assert_allclose(old, squared[:, 20:] / squared.max(1, keepdims=True), atol=2e-6)
    new = k_reciprocal(query, gallery, lambda_value=0)
    assert new.min() >= 0
    assert new.max() <= 1


@pytest.mark.parametrize(("spread", "quick"), [(1.0, True), (1e-2, True), (1e-6, False)])
def test_the_quick_search_finds_the_neighbours_that_float64_finds(spread, quick):
    """Use two groups far apart, such as day and night. The closer their members, the less float32 can separate them."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 32))[rng.integers(2, size=300)] + spread * rng.normal(size=(300, 32))
    # The last images are copies of others.
    features[250:] = features[200:250]
    rows = centred_rows(features[:0], features)[1]
    exact = np.square(rows[:, None] - rows[None]).sum(-1).astype(np.float32)
    expected = np.argsort(exact, axis=1, kind="stable")[:, :9]
    mesh = make_mesh()
    found = neighbour_search._quick_search(rows, 9, 64, mesh)(np.arange(64))
    # None means that float32 cannot separate enough images, and that float64 must compare all of them.
    assert (found is not None) == quick
    neighbours, farthest = neighbour_search._nearest(rows, distances_of(rows, rows, mesh), 9, 64, mesh, None)
    if quick:
        np.testing.assert_array_equal(neighbours, expected)
        np.testing.assert_array_equal(farthest, exact.max(1))
    else:
        # Distances that are equal in float32 may have another order.
        near = np.take_along_axis(exact, neighbours, 1)
        np.testing.assert_allclose(near, np.take_along_axis(exact, expected, 1), atol=1e-14)


def test_identical_images_and_images_of_zeros_have_finite_distances():
    for features in (np.ones((6, 4)), np.zeros((6, 4)), np.repeat(np.eye(4), 3, axis=0)):
        assert np.isfinite(k_reciprocal(features[:2], features[2:])).all()


def test_re_ranking_announces_its_memory_and_time(capsys, monkeypatch):
    monkeypatch.setattr(rerank, "WORTH_TELLING", 0)
    k_reciprocal(np.eye(3), np.eye(3))
    # The number of seconds depends on the machine.
    assert re.search(r"re-ranking 6 images: at most 0\.0 GiB, about \d+ s", capsys.readouterr().err)


def test_re_ranking_stays_within_the_announced_host_memory():
    """Measure the memory of NumPy only. benchmarks/evaluation.py measures the whole process, including JAX."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    features = (centres[rng.integers(50, size=3000)] + rng.standard_normal((3000, 32))).astype(np.float32)
    tracemalloc.start()
    rows = reranked_distances(features[:300], features[300:], 20, 6, 0.3)
    rows(np.arange(256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rerank.memory_bound(3000, 32, 20, 6)


def test_permuting_the_gallery_or_scaling_features_does_not_change_distances(golden):
    g = golden("metrics")
    query, gallery = g["qf"][:30], g["gf"][:300]
    expected = k_reciprocal(query, gallery)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(k_reciprocal(3 * query, gallery[order]), expected[:, order], atol=2e-6)


def test_query_expansion_equals_that_worked_out_by_hand():
    query, gallery = np.array([[2.0, 0]]), np.array([[0, 1.0], [3, 0], [0.6, 0.8]])
    np.testing.assert_allclose(expand_queries(query, gallery, 2), [[(1 + 1 + 0.6) / 3, 0.8 / 3]], rtol=1e-6)
    np.testing.assert_allclose(expand_queries(query, gallery, 9), [[2.6 / 4, 1.8 / 4]], rtol=1e-6)


def nearly_parallel(seed=0):
    """Return features of 40 queries and 120 gallery images of 10 people, with all cosines above 0.9999."""
    rng = np.random.default_rng(seed)
    centres, common = rng.standard_normal((10, 64)), 300 * rng.standard_normal(64)
    rows = common + centres[np.arange(160) % 10] + 0.7 * rng.standard_normal((160, 64))
    assert (unit(rows) @ unit(rows).T).min() > 0.9999
    return rows[:40].astype(np.float32), rows[40:].astype(np.float32)


@pytest.mark.parametrize(("devices", "block"), [(1, 7), (8, 3), (8, 256)])
def test_nearly_parallel_features_are_reranked_as_in_float64(monkeypatch, devices, block):
    """Compare distances and order, also with expanded queries."""
    query, gallery = nearly_parallel()
    monkeypatch.setattr(rerank, "BLOCK", block)
    mesh = make_mesh(0, devices=jax.devices()[:devices])
    found = np.asarray(reranked_distances(query, gallery, 20, 6, 0.3, mesh)(np.arange(40)))
    expected = dense(query.astype(np.float64), gallery.astype(np.float64), 20, 6, 0.3)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(np.argsort(found, kind="stable"), np.argsort(expected, kind="stable"))

    rows = unit(query.astype(np.float64)), unit(gallery.astype(np.float64))
    nearest = np.argsort(np.square(rows[0][:, None] - rows[1]).sum(-1), axis=1)[:, :3]
    mean = (rows[0] + rows[1][nearest].sum(1)) / 4
    expanded = expand_queries(query, gallery, 3, mesh)
    np.testing.assert_allclose(expanded, mean, rtol=0, atol=1e-9)
    exact = np.square(unit(mean)[:, None] - rows[1]).sum(-1)
    distances = np.asarray(squared_distances(expanded, gallery, mesh)(np.arange(40)))
    np.testing.assert_array_equal(np.argsort(distances), np.argsort(exact))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"k1": 0}, "k1 is 0"), ({"k2": 1.5}, "k2 is 1.5"), ({"lambda_value": 1.1}, r"lambda_value is 1.1.*0\.\.1"),
])  # fmt: skip
def test_parameters_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        k_reciprocal(np.eye(3), np.eye(3), **arguments)
    with pytest.raises(ValueError, match="at least 1"):
        expand_queries(np.eye(3), np.eye(3), 0)
