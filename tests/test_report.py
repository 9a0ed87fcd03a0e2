"""Test the report: rankings agree with the metrics, thresholds with sorted pairs, pictures with their size limit."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import small_config, small_model, write_night
from PIL import Image

from nrsrd_jax.analysis.maps import Probe, token_norm
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.errors import InputError
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.report import pictures
from nrsrd_jax.report.curves import read_curves
from nrsrd_jax.report.overlays import make_overlays
from nrsrd_jax.report.page import by_importance, embedded, worst_first
from nrsrd_jax.report.ranked import RESOLUTION, SMALLEST, Pairs, read_ranking
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.ranking import rank_metrics
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.sharding import make_mesh

pytestmark = pytest.mark.slow


def ranking(distances, query_ids, gallery_ids, query_views, gallery_views, top=10):
    distances = np.array(distances, np.float32)
    labels = [np.array(x) for x in (query_ids, gallery_ids, query_views, gallery_views)]
    return read_ranking(lambda rows: distances[rows], *labels, top=top)


def test_a_ranking_worked_out_by_hand():
    """Rank five images for a query of identity 1, camera 1. Image 2 is from its camera, so it is not counted."""
    lists, pairs = ranking([[0.5, 0.3, 0.1, 0.3, 0.9]], [1], [1, 2, 1, 3, 1], [1], [2, 1, 1, 1, 2], top=3)
    first = lists[0]
    # At equal distances, the earlier gallery image comes first.
    assert first.gallery.tolist() == [2, 1, 3, 0]
    assert first.outcome == ["left out", "wrong", "wrong", "right"]
    assert first.rank.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(first.distance, np.float32([0.1, 0.3, 0.3, 0.5]))
    assert (pairs.genuine.sum(), pairs.impostor.sum()) == (2, 2)


def test_a_ranking_lists_at_most_five_of_the_images_left_out():
    """Put twenty images from the query's own camera nearest. Five are listed, and fifteen are counted as hidden."""
    distances = [*np.linspace(0.1, 0.2, 20), 0.5, 0.6]
    lists, _ = ranking([distances], [1], [1] * 21 + [2], [1], [1] * 20 + [2, 2])
    assert lists[0].gallery.tolist() == [0, 1, 2, 3, 4, 20, 21]
    assert (lists[0].rank.tolist(), lists[0].hidden) == ([0] * 5 + [1, 2], 15)


def test_a_first_match_beyond_the_end_of_a_ranking_is_added_with_its_rank():
    lists, _ = ranking([[0.1, 0.1, 0.3, 0.2, 0.1]], [1], [2, 3, 1, 1, 4], [1], [2, 2, 2, 1, 2], top=2)
    assert lists[0].gallery.tolist() == [0, 1, 2]
    assert (lists[0].outcome, lists[0].rank.tolist()) == (["wrong", "wrong", "right"], [1, 2, 4])


def test_a_query_without_a_match_has_a_ranking():
    lists, _ = ranking([[0.2, 0.1]], [7], [1, 2], [1], [1, 1])
    assert (lists[0].gallery.tolist(), lists[0].outcome) == ([1, 0], ["wrong", "wrong"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_rankings_agree_with_the_metrics(seed):
    """Check that the first right entry has the rank metrics.first_match, also where distances are equal."""
    rng = np.random.default_rng(seed)
    queries, gallery = 4, 20
    distances = rng.integers(-1, 4, (queries, gallery)).astype(np.float32) / 4
    ids = rng.integers(0, 4, queries), rng.integers(0, 4, gallery)
    views = rng.integers(0, 3, queries), rng.integers(0, 3, gallery)
    # Make sure that there is a match.
    ids[0][0], views[0][0], ids[1][0], views[1][0] = 0, 0, 0, 1
    metrics = rank_metrics(distances, *ids, *views)
    lists, _ = ranking(distances, *ids, *views, top=3)
    for ranked, first in zip(lists, metrics.first_match, strict=True):
        assert next((r for r, o in zip(ranked.rank, ranked.outcome, strict=True) if o == "right"), 0) == first


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 3.0]))
def test_thresholds_agree_with_all_pairs_sorted(seed, spread):
    rng = np.random.default_rng(seed)
    distances = (rng.random((30, 40)) * spread).astype(np.float32)
    ids, views = (rng.integers(0, 5, 30), rng.integers(0, 5, 40)), (rng.integers(0, 2, 30), rng.integers(0, 2, 40))
    same, view = ids[0][:, None] == ids[1], views[0][:, None] == views[1]
    genuine, impostor = distances[same & ~view], np.sort(distances[~same])
    _, pairs = ranking(distances, *ids, *views)
    assert (pairs.genuine.sum(), pairs.impostor.sum()) == (len(genuine), len(impostor))
    assert pairs.rates() == [one_in for one_in in (10, 100, 1000, 10_000) if one_in <= len(impostor)]
    for one_in in pairs.rates():
        threshold, false_rate, true_rate = pairs.threshold(one_in)
        # This is the nearest impostor that must not pass.
        exact = impostor[len(impostor) // one_in]
        assert exact - max(exact * RESOLUTION, SMALLEST) <= threshold <= exact
        assert false_rate == (impostor < threshold).mean() <= 1 / one_in
        assert true_rate == (genuine < threshold).mean()
    _, of_genuine, of_impostor = pairs.bars(7)
    assert (of_genuine.sum(), of_impostor.sum()) == (len(genuine), len(impostor))


def test_blocks_of_queries_do_not_change_rankings_and_thresholds(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 11), rng.integers(0, 4, 50), rng.integers(0, 3, 11), rng.integers(0, 3, 50)
    distances = rng.random((11, 50))
    whole, pairs = ranking(distances, *labels)
    monkeypatch.setattr("nrsrd_jax.report.ranked.BLOCK_PAIRS", 200)
    parts, again = ranking(distances, *labels)
    assert [r.gallery.tolist() for r in whole] == [r.gallery.tolist() for r in parts]
    np.testing.assert_array_equal(pairs.impostor, again.impostor)


def test_equal_or_negative_distances_are_counted():
    """Use a negative distance, since rounding may put the distance of two copies a little below 0."""
    pairs = Pairs()
    pairs.add(np.float32([[-1e-7, 0.0, 0.0]]), np.array([[True, False, False]]), np.zeros((1, 3), bool))
    assert pairs.threshold(1)[1:] == (1, 1)
    assert [x.sum() for x in pairs.bars()[1:]] == [1, 2]


def test_pictures_stay_within_the_size_limit():
    """Use noise, which cannot be compressed. A lower limit gives coarser pictures, then fewer."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 64, 32, 3), np.uint8)
    images = [(noise, i) for i in range(len(noise))]
    for budget, some_left_out in ((8_000_000, False), (4_000_000, False), (400_000, True), (0, True)):
        made = pictures.make_pictures(images, budget)
        assert sum(picture.size for picture in made.items if picture) <= budget
        assert (None in made.items) == some_left_out
        kept = sum(picture is not None for picture in made.items)
        assert made.items[kept:] == [None] * (len(images) - kept)
        assert some_left_out or kept == len(images)
    assert kept == 0


def test_a_picture_dimmed_by_its_factor_is_the_image():
    ramp = np.linspace(0, 20, 64).astype(np.uint8)
    image = np.broadcast_to(ramp[:, None, None], (64, 32, 3))
    picture = pictures.encode(image, 128, 100)
    stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.webp))).convert("RGB"))
    assert stored.max() > 240
    np.testing.assert_allclose(stored * picture.factor, image, atol=1)
    assert pictures.encode(np.zeros((64, 32, 3), np.uint8), 128, 80).factor > 0


def test_the_worst_queries_and_their_rankings_come_first():
    distances = np.float32([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    labels = [np.array(x) for x in ([1, 1, 9], [1, 2, 3], [1, 1, 1], [2, 2, 2])]
    order = worst_first(rank_metrics(distances, *labels))
    # The last query has no match.
    assert order.tolist() == [1, 0, 2]
    lists, _ = ranking(distances, *labels, top=1)
    assert by_importance(order, lists) == [
        ("query", 1), ("gallery", 2), ("gallery", 0), ("query", 0), ("query", 2),
    ]  # fmt: skip


def test_curves_of_a_killed_run_are_read(tmp_path):
    lines = [{"step": i, "epoch": 1, "loss": 3 - i / 1000, "id_real": 1.0, "accuracy_real": 0.5} for i in range(1000)]
    lines += [{"step": 1000, "epoch": 1, "mAP": 0.25, "rank1": 0.5, "queries": 4}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # A kill truncated the last line.
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 1001, "lo')
    loss, accuracy, evaluation = read_curves(tmp_path)
    assert [series["name"] for series in loss["series"]] == ["loss", "id_real"]
    assert len(loss["series"][0]["points"]) == 300
    # A point is the mean of four steps.
    assert loss["series"][0]["points"][0] == [1.5, 2.9985]
    assert accuracy["series"][0]["points"][0][1] == 50
    assert [series["points"] for series in evaluation["series"]] == [[[1000, 25]], [[1000, 50]]]
    assert read_curves(tmp_path / "elsewhere") == []


def test_every_loss_term_is_drawn_on_an_axis_of_its_size(tmp_path):
    """Include terms with unknown names. Other numbers in the log are not losses and are not drawn."""
    others = {"learning_rate": 1e-3, "gradient_norm": 9.0, "images_per_second": 300.0, "time": 1e9, "leverage": 1.0}
    terms = {"loss": 8.0, "id_real": 3.0, "contrastive": 2.0, "distill": 2e-3, "my_term": 1e-3, "nothing": 0.0}
    rows = [{"step": i, "epoch": 1, "accuracy_real": 0.5} | terms | others for i in range(1, 4)]
    rows += [{"step": 3, "epoch": 1, "mAP": 0.5, "rank1": 0.5, "night600/mAP": 0.5, "queries": 4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts = {chart["title"]: [series["name"] for series in chart["series"]] for chart in read_curves(tmp_path)}
    accuracy, evaluation = charts.pop("Accuracy on training batches"), charts.pop("Evaluation")
    assert (accuracy, evaluation) == (["accuracy_real"], ["mAP", "Rank-1"])
    del charts["NRA: λ, and spreads over keys (nats)"]
    assert charts == {
        "Loss and its terms": ["loss", "id_real", "contrastive"],
        "Loss terms: distill, my_term": ["distill", "my_term"],
        "Loss terms: nothing": ["nothing"],
    }


def test_a_pretraining_draws_no_schedule_as_a_loss_term(tmp_path):
    row = {"step": 1, "epoch": 1, "loss": 8.0, "weight_decay": 0.04, "teacher_momentum": 0.99, "centre_norm": 3.0}
    row |= {"teacher_entropy": 2.0, "teacher_information": 1.0, "learning_rate": 1e-3, "gradient_norm": 9.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    charts = {chart["title"]: [series["name"] for series in chart["series"]] for chart in read_curves(tmp_path)}
    assert charts == {
        "Loss and its terms": ["loss"],
        "The teacher's answers (nats)": ["entropy of an answer", "information about the image"],
    }


def test_embedded_text_cannot_close_its_script_element():
    text = embedded({"<!--": "</script>&amp;\u2028'\""})
    assert not set(text) & set("<>&")
    assert json.loads(text) == {"<!--": "</script>&amp;\u2028'\""}


@pytest.mark.parametrize("norm_ratio", [None, NormRatio()])
def test_overlays_show_the_maps_of_the_probe(norm_ratio):
    """Check within one of 255 levels. Norms share one scale; attention has a scale for each image."""
    description, variables = small_model(norm_ratio=norm_ratio)
    probe = Probe(description, variables, make_mesh())
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 16, 3), np.uint8)
    rows = np.array([4, 0, 2])
    found = {overlay.name: overlay for overlay in make_overlays(probe, images, rows)}
    assert set(found) == {"q", "k", "attention", *(["plain"] if norm_ratio else [])}
    maps = probe(images[rows])
    q = token_norm(maps.q_norm[:, -1])[:, 1:]
    bottom, top = found["q"].bottom, found["q"].top
    np.testing.assert_allclose([bottom, top], np.quantile(q, (0.005, 0.995)), rtol=1e-3)
    shown = bottom + found["q"].levels / 255 * (top - bottom)
    np.testing.assert_allclose(shown, np.clip(q, bottom, top), atol=(top - bottom) / 255 + 1e-3 * top)
    attention = maps.attention[:, -1].mean(1)[:, 1:]
    tops = np.array(found["attention"].top)[:, None]
    np.testing.assert_allclose(found["attention"].levels / 255 * tops, attention, atol=tops.max() / 255)
    np.testing.assert_allclose(found["q"].low, q.min(1), rtol=1e-3)
    if norm_ratio:
        plain = probe(images[rows], strength=0.0).attention[:, -1].mean(1)[:, 1:]
        np.testing.assert_allclose(found["plain"].high, plain.max(1), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "--report .*file is a file; name a folder"),
        ("file/inside", "--report: cannot write in .*inside: Not a directory"),
        ("taken", "--report: .*index.html is a folder"),
        ("/proc", "--report: cannot write in /proc: "),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_images_are_embedded(tmp_path, monkeypatch, name, message):
    write_night(tmp_path / "night", frames=1)
    save_weights(tmp_path / "weights", *small_model(), {})
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "index.html").mkdir(parents=True)
    monkeypatch.setattr(Embedder, "__call__", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(InputError, match=message):
        evaluate_run("", str(tmp_path / "weights"), "", small_config(tmp_path), report=str(tmp_path / name))


def test_a_page_of_a_model_whose_attention_cannot_be_shown_has_the_rest(tmp_path, capsys):
    write_night(tmp_path / "night", frames=1)
    save_weights(tmp_path / "weights", *small_model(sie=True, cameras=(1, 2)), {})
    config = small_config(tmp_path)
    result, files = evaluate_run("", str(tmp_path / "weights"), "", config, report=str(tmp_path / "out"))
    assert "the page shows no attention: the attention of a ViT with model.jpm or model.sie" in capsys.readouterr().out
    page = files[-1].read_text()
    assert f"{100 * result['mAP']:.1f}" in page
    assert '"kinds":[]' in page
    assert "Attention is shown" not in page
