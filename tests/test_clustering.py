"""Clustering of crops without labels: distances, DBSCAN and HDBSCAN, constraints, scores and memory."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN, HDBSCAN

from nrsrd_jax.retrieval.clustering import CLOSE, METHODS, cluster, dbscan, hdbscan, jaccard_graph, memory_bound, scores
from nrsrd_jax.retrieval.linking import constrain
from nrsrd_jax.retrieval.rerank import k_reciprocal

pytestmark = pytest.mark.slow

START = np.datetime64("2026-11-27T19:30:00", "us")
NEVER = np.datetime64("NaT")


def people(count: int = 8, crops: int = 12, noise: float = 0.5, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Draw features [count * crops, width] around one centre per person. Return them and the person of each."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(count), crops)
    return rng.normal(size=(count, width))[labels] + noise * rng.normal(size=(len(labels), width)), labels


def dense(features: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Compute the Jaccard distances between the two halves of the features by re-ranking.

    The result is [N, N]. Pairs within a half are NaN.
    """
    half = len(features) // 2
    across = k_reciprocal(features[:half], features[half:], k1, k2, 0.0)
    result = np.full((len(features), len(features)), np.nan, np.float32)
    result[:half, half:], result[half:, :half] = across, across.T
    return result


def whole(graph: sp.csr_array, missing: float) -> np.ndarray:
    """Return the graph's distances as a matrix, with `missing` for each pair that it does not store."""
    places = graph.tocoo()
    result = np.full(graph.shape, missing, np.float32)
    result[places.row, places.col] = places.data
    return result


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    """Return the groups as sets of crops, which do not depend on the groups' numbers."""
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist()) - {-1}}


def graph_of(links: dict[tuple[int, int], float], count: int) -> sp.csr_array:
    left, right = np.array(list(links)).T
    values = np.array(list(links.values()), np.float32)
    places = np.concatenate([left, right]), np.concatenate([right, left])
    return sp.csr_array((np.concatenate([values, values]), places), (count, count))


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (6, 1)])
def test_distances_equal_those_of_re_ranking(k1, k2):
    """The graph stores exactly the distances within the limit."""
    features, _ = people(noise=0.9)
    expected = dense(features, k1, k2)
    known = ~np.isnan(expected)
    graph = jaccard_graph(features, limit=0.8, k1=k1, k2=k2)
    kept = sp.csr_array((np.ones(graph.nnz), graph.indices, graph.indptr), graph.shape).toarray() > 0
    # Rounding decides whether a distance very close to the limit is stored, so these distances are not compared.
    clear = known & (np.abs(expected - 0.8) > 1e-5)
    np.testing.assert_array_equal(kept[clear], expected[clear] < 0.8)
    np.testing.assert_allclose(graph.toarray()[kept & known], expected[kept & known], atol=1e-6)
    # If the limit kept all pairs, or hardly any, the comparison would prove little.
    assert 0.05 < kept.mean() < 0.9
    assert (graph != graph.T).nnz == 0
    assert kept.diagonal().all()
    assert not graph.diagonal().any()


def test_dbscan_on_the_graph_finds_the_groups_of_scikit_learns_dbscan_on_all_distances():
    features, _ = people(noise=0.9)
    graph = jaccard_graph(features, limit=0.9, k1=20, k2=6)
    for eps in (0.3, 0.5, 0.7):
        for size in (2, 4):
            expected = DBSCAN(eps=eps, min_samples=size, metric="precomputed").fit(whole(graph, 1.0)).labels_
            found = dbscan(jaccard_graph(features, limit=eps, k1=20, k2=6), eps, size)
            np.testing.assert_array_equal(found, expected)
            assert partition(cluster(features, eps=eps, min_size=size).labels) == partition(expected)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_hdbscan_on_the_graph_finds_the_groups_of_scikit_learns_hdbscan_on_all_distances(size):
    """In the reference, distances above eps count as eps, and distances below CLOSE as CLOSE."""
    features, _ = people(noise=0.6)
    # Three more crops resemble nobody.
    features = np.concatenate([features, 5 * np.eye(16)[:3]])
    graph = jaccard_graph(features, limit=0.8, k1=8, k2=3)
    expected = (
        HDBSCAN(min_cluster_size=size, metric="precomputed", copy=True)
        .fit(np.maximum(whole(graph, 0.8), CLOSE))
        .labels_
    )
    assert partition(hdbscan(graph, 0.8, size)) == partition(expected)
    # Two methods that find one group would agree too easily.
    assert len(partition(expected)) > 4


@pytest.mark.parametrize("method", METHODS)
def test_people_who_differ_clearly_are_separated(method):
    features, labels = people(noise=0.1)
    found = cluster(features, eps=0.6, k1=12, method=method, min_size=4)
    assert partition(found.labels) == partition(labels)
    # Groups are numbered in the order of their first crops.
    assert found.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_one_to_three_crops_can_be_clustered(method):
    for count in (1, 2, 3):
        labels = cluster(np.eye(3)[:count], eps=0.5, method=method).labels
        assert labels.shape == (count,)
    assert cluster(np.ones((2, 3)), eps=0.5, method=method).labels.tolist() in ([0, 0], [-1, -1])


def test_copies_of_an_image_share_a_group_and_do_not_fill_the_memory():
    features = np.concatenate([np.ones((1500, 4)), people(3, width=4)[0]])
    graph = jaccard_graph(features, limit=0.4, k1=20, k2=6)
    assert graph.nnz <= len(features) * (2 * 40 + 1)
    labels = cluster(features, eps=0.4).labels
    assert len(set(labels[:1500].tolist())) == 1
    assert labels[0] >= 0


def test_two_crops_that_must_stay_apart_are_not_joined_through_a_third():
    """The third crop stays with the closer of the two."""
    graph = graph_of({(0, 1): 0.1, (1, 2): 0.2}, 3)
    times = np.array([START, START + 5, START], "datetime64[us]")
    labels, doubt, weakest = constrain(graph, np.zeros(3, int), 2, None, np.array([1, 1, 1]), times)
    assert labels.tolist() == [0, 0, -1]
    np.testing.assert_allclose(doubt, [0.1])
    assert weakest.tolist() == [[0, 1]]


def test_crops_are_kept_apart_only_if_camera_and_time_are_known_and_equal():
    graph, one = graph_of({(0, 1): 0.1}, 2), np.zeros(2, int)

    def together(cameras, times, same_time=0.0):
        labels = constrain(graph, one, 2, None, np.array(cameras), np.array(times, "datetime64[us]"), same_time)[0]
        return labels.tolist() == [0, 0]

    second = np.timedelta64(1, "s")
    assert not together([3, 3], [START, START])
    assert together([3, 4], [START, START])
    assert together([-1, -1], [START, START])
    assert together([3, 3], [NEVER, NEVER])
    assert together([3, 3], [START, START + second])
    assert together([3, 3], [START, START + second], 0.9)
    assert not together([3, 3], [START + second, START], 1.0)


def test_a_track_joins_its_groups_and_its_crops_without_a_group():
    graph, labels = graph_of({(0, 1): 0.1, (2, 3): 0.3}, 6), np.array([0, 0, 1, 1, -1, -1])
    tracks = np.array([-1, 7, 7, -1, 7, -1])
    found, doubt, weakest = constrain(graph, labels, 2, tracks)
    assert found.tolist() == [0, 0, 0, 0, 0, -1]
    np.testing.assert_allclose(doubt, [0.3])
    assert weakest.tolist() == [[2, 3]]


def test_the_doubt_of_a_group_is_the_distance_of_the_last_link_that_joins_it():
    graph = graph_of({(0, 1): 0.1, (1, 2): 0.35, (0, 2): 0.3, (3, 4): 0.2}, 5)
    labels, doubt, weakest = constrain(graph, np.array([0, 0, 0, 1, 1]), 2)
    assert labels.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(doubt, [0.3, 0.2])
    assert weakest.tolist() == [[0, 2], [3, 4]]


@st.composite
def situations(draw):
    count = draw(st.integers(2, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = [(i, j) for i in range(count) for j in range(i) if rng.random() < draw(st.sampled_from([0.2, 0.6]))]
    graph = graph_of({pair: float(rng.choice([0.0, 0.1, 0.2, 0.3])) for pair in pairs or [(1, 0)]}, count)
    tracks = rng.integers(-1, draw(st.integers(0, 6)), size=count) if draw(st.booleans()) else None
    # Times are multiples of a quarter second, so that some differences equal `same_time` exactly.
    times = (START + rng.integers(0, 5, size=count) * 250_000).astype("datetime64[us]")
    times[rng.random(count) < 0.1] = NEVER
    labels = sp.csgraph.connected_components(graph)[1]
    labels[rng.random(count) < 0.1] = -1
    return graph, labels, tracks, rng.integers(-1, 3, size=count), times, draw(st.sampled_from([0.0, 0.25, 0.6]))


@settings(max_examples=300, deadline=None)
@given(situations(), st.integers(2, 4))
def test_no_group_has_two_crops_of_one_camera_at_one_time_unless_a_track_says_so(situation, size):
    graph, labels, tracks, cameras, times, same_time = situation
    found, doubt, weakest = constrain(graph, labels, size, tracks, cameras, times, same_time)
    own = np.arange(len(found)) + 100 if tracks is None else np.where(tracks < 0, np.arange(len(found)) + 100, tracks)
    for i in range(len(found)):
        for j in range(i):
            together = found[i] == found[j] >= 0
            if own[i] == own[j]:
                assert found[i] == found[j]
            elif together and cameras[i] == cameras[j] >= 0 and not np.isnat(times[[i, j]]).any():
                assert abs(times[i] - times[j]) > np.timedelta64(round(same_time * 1e6), "us")
    sizes = np.bincount(found[found >= 0], minlength=len(doubt))
    assert (sizes >= size).all()
    assert (found[weakest] == np.arange(len(doubt))[:, None]).all()


@settings(max_examples=100, deadline=None)
@given(situations())
def test_without_constraints_groups_stay_as_they_are(situation):
    graph = situation[0]
    labels = sp.csgraph.connected_components(abs(graph) + sp.eye_array(graph.shape[0]))[1]
    found, _, _ = constrain(graph, labels, 2)
    assert partition(found) == {group for group in partition(labels) if len(group) > 1}


def test_scores_equal_those_worked_out_by_hand():
    """The group is a, a, b; another b, b and c are alone.

    One of the 3 joined pairs shows one person, and one of the 4 pairs that show one person is joined.
    """
    labels, names = np.array([0, 0, 0, -1, -1, -1]), np.array(["a", "a", "b", "b", "b", "c"])
    found = scores(labels, names)
    assert found["precision"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(1 / 4)
    assert found["f"] == pytest.approx(2 / 7)
    assert 0 < found["ami"] < found["nmi"] < 1
    assert scores(np.array([4, 4, 2, -1]), np.array([1, 1, 2, 3])) == pytest.approx(dict.fromkeys(found, 1.0))
    assert scores(np.array([-1, -1]), np.array([1, 1]))["f"] == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eps": 1.0}, "eps is 1.0"),
        ({"min_size": 1}, "min_size is 1"),
        ({"method": "kmeans"}, "choose one of dbscan, hdbscan"),
        ({"same_time": -1.0}, "same_time is -1.0"),
        ({"k1": 0}, "k1 is 0"),
        ({"features": np.full((3, 2), np.nan)}, "3 of 3 features are not finite"),
        ({"features": np.zeros((0, 2))}, "there are no features"),
    ],
)
def test_a_wrong_argument_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        cluster(**({"features": np.eye(3), "eps": 0.5} | changed))


def test_a_hundred_thousand_crops_need_less_than_two_gibibytes():
    """benchmarks/clustering.py measures the memory that is really used."""
    assert memory_bound(100_000, 384, 20, 6) < 2 * 2**30
    # A matrix of all pairs would take four times the memory for twice the crops.
    assert memory_bound(200_000, 384, 20, 6) < 2.1 * memory_bound(100_000, 384, 20, 6)
