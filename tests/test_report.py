"""The report: lists in the metrics' order, thresholds as if all pairs were sorted, pictures within their bytes."""

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import small_config, write_images, write_night
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from nrsrd_jax.analysis.maps import Probe, token_norm
from nrsrd_jax.checkpoint import Description, save_weights
from nrsrd_jax.embedding import Embedder
from nrsrd_jax.errors import InputError
from nrsrd_jax.evaluation import rank_metrics
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.models.reid import initialise
from nrsrd_jax.report import page, pictures
from nrsrd_jax.report.curves import read_curves
from nrsrd_jax.report.overlays import make_overlays
from nrsrd_jax.report.page import by_importance, embedded, worst_first
from nrsrd_jax.report.ranked import RESOLUTION, SMALLEST, Pairs, read_ranking
from nrsrd_jax.result import evaluate_run
from nrsrd_jax.sharding import make_mesh


def ranking(distances, query_ids, gallery_ids, query_views, gallery_views, top=10):
    distances = np.array(distances, np.float32)
    labels = [np.array(x) for x in (query_ids, gallery_ids, query_views, gallery_views)]
    return read_ranking(lambda rows: distances[rows], *labels, top=top)


def test_a_list_by_hand():
    """Query: identity 1, camera 1. Gallery image 2 is of its camera: listed where it is, but not counted."""
    lists, pairs = ranking([[0.5, 0.3, 0.1, 0.3, 0.9]], [1], [1, 2, 1, 3, 1], [1], [2, 1, 1, 1, 2], top=3)
    first = lists[0]
    assert first.gallery.tolist() == [2, 1, 3, 0]  # of equal distances the earlier gallery image
    assert first.outcome == ["left out", "wrong", "wrong", "right"]
    assert first.rank.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(first.distance, np.float32([0.1, 0.3, 0.3, 0.5]))
    assert (pairs.genuine.sum(), pairs.impostor.sum()) == (2, 2)


def test_many_images_left_out_do_not_crowd_a_list():
    """Twenty copies of the query's own camera are nearest: five are shown, fifteen told of."""
    distances = [*np.linspace(0.1, 0.2, 20), 0.5, 0.6]
    lists, _ = ranking([distances], [1], [1] * 21 + [2], [1], [1] * 20 + [2, 2])
    assert lists[0].gallery.tolist() == [0, 1, 2, 3, 4, 20, 21]
    assert (lists[0].rank.tolist(), lists[0].hidden) == ([0] * 5 + [1, 2], 15)


def test_a_first_match_beyond_the_list_ends_it_with_its_rank():
    lists, _ = ranking([[0.1, 0.1, 0.3, 0.2, 0.1]], [1], [2, 3, 1, 1, 4], [1], [2, 2, 2, 1, 2], top=2)
    assert lists[0].gallery.tolist() == [0, 1, 2]
    assert (lists[0].outcome, lists[0].rank.tolist()) == (["wrong", "wrong", "right"], [1, 2, 4])


def test_a_query_without_a_match_has_a_list_too():
    lists, _ = ranking([[0.2, 0.1]], [7], [1, 2], [1], [1, 1])
    assert (lists[0].gallery.tolist(), lists[0].outcome) == ([1, 0], ["wrong", "wrong"])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_lists_agree_with_the_metrics(seed):
    """The first right entry's rank is metrics.first_match, also where distances are equal."""
    rng = np.random.default_rng(seed)
    queries, gallery = 4, 20
    distances = rng.integers(-1, 4, (queries, gallery)).astype(np.float32) / 4
    ids = rng.integers(0, 4, queries), rng.integers(0, 4, gallery)
    views = rng.integers(0, 3, queries), rng.integers(0, 3, gallery)
    ids[0][0], views[0][0], ids[1][0], views[1][0] = 0, 0, 0, 1  # one match at least
    metrics = rank_metrics(distances, *ids, *views)
    lists, _ = ranking(distances, *ids, *views, top=3)
    for ranked, first in zip(lists, metrics.first_match, strict=True):
        assert next((r for r, o in zip(ranked.rank, ranked.outcome, strict=True) if o == "right"), 0) == first


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 3.0]))
def test_thresholds_are_those_of_all_pairs_sorted(seed, spread):
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
        exact = impostor[len(impostor) // one_in]  # the nearest impostor that must not pass
        assert exact - max(exact * RESOLUTION, SMALLEST) <= threshold <= exact
        assert false_rate == (impostor < threshold).mean() <= 1 / one_in
        assert true_rate == (genuine < threshold).mean()
    _, of_genuine, of_impostor = pairs.bars(7)
    assert (of_genuine.sum(), of_impostor.sum()) == (len(genuine), len(impostor))


def test_blocks_of_queries_give_what_one_block_gives(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 11), rng.integers(0, 4, 50), rng.integers(0, 3, 11), rng.integers(0, 3, 50)
    distances = rng.random((11, 50))
    whole, pairs = ranking(distances, *labels)
    monkeypatch.setattr("nrsrd_jax.report.ranked.BLOCK_PAIRS", 200)
    parts, again = ranking(distances, *labels)
    assert [r.gallery.tolist() for r in whole] == [r.gallery.tolist() for r in parts]
    np.testing.assert_array_equal(pairs.impostor, again.impostor)


def test_equal_or_negative_distances_are_counted():
    """Rounding may put the distance of two copies a little below 0."""
    pairs = Pairs()
    pairs.add(np.float32([[-1e-7, 0.0, 0.0]]), np.array([[True, False, False]]), np.zeros((1, 3), bool))
    assert pairs.threshold(1)[1:] == (1, 1)
    assert [x.sum() for x in pairs.bars()[1:]] == [1, 2]


def test_pictures_keep_to_their_bytes():
    """Noise, which nothing compresses: fewer bytes give coarser pictures, then fewer, the important ones."""
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


def test_the_worst_queries_and_their_lists_come_first():
    distances = np.float32([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    labels = [np.array(x) for x in ([1, 1, 9], [1, 2, 3], [1, 1, 1], [2, 2, 2])]
    order = worst_first(rank_metrics(distances, *labels))
    assert order.tolist() == [1, 0, 2]  # the last has no match
    lists, _ = ranking(distances, *labels, top=1)
    assert by_importance(order, lists) == [
        ("query", 1), ("gallery", 2), ("gallery", 0), ("query", 0), ("query", 2),
    ]  # fmt: skip


def test_curves_of_a_run_that_was_killed(tmp_path):
    lines = [{"step": i, "epoch": 1, "loss": 3 - i / 1000, "id_real": 1.0, "accuracy_real": 0.5} for i in range(1000)]
    lines += [{"step": 1000, "epoch": 1, "mAP": 0.25, "rank1": 0.5, "queries": 4}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 1001, "lo')
    loss, accuracy, evaluation = read_curves(tmp_path)
    assert [series["name"] for series in loss["series"]] == ["loss", "id_real"]
    assert len(loss["series"][0]["points"]) == 300
    assert loss["series"][0]["points"][0] == [1.5, 2.9985]  # the mean of the first four
    assert accuracy["series"][0]["points"][0][1] == 50
    assert [series["points"] for series in evaluation["series"]] == [[[1000, 25]], [[1000, 50]]]
    assert read_curves(tmp_path / "elsewhere") == []


def test_no_text_ends_the_script_that_holds_it():
    text = embedded({"<!--": "</script>&amp;\u2028'\""})
    assert not set(text) & set("<>&")
    assert json.loads(text) == {"<!--": "</script>&amp;\u2028'\""}


@pytest.mark.parametrize("norm_ratio", [None, NormRatio()])
def test_maps_are_those_of_the_probe(norm_ratio):
    """Within half of a step of 255: norms on one scale for all, attention on each image's own."""
    description, variables = model(norm_ratio)
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


def model(norm_ratio):
    description = Description("vit_tiny", 2, (32, 16), (0.5,) * 3, (0.5,) * 3, norm_ratio=norm_ratio)
    return description, initialise(description.create_model(), jax.random.key(0), (32, 16))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "--report .*file is a file; name a folder"),
        ("file/inside", "--report: cannot write in .*inside: Not a directory"),
        ("taken", "--report: .*index.html is a folder"),
        ("/proc", "--report: cannot write in /proc: "),
    ],
)
def test_a_report_that_cannot_be_written_ends_before_images_are_embedded(tmp_path, monkeypatch, name, message):
    write_night(tmp_path / "night", frames=1)
    save_weights(tmp_path / "weights", *model(None), {})
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "index.html").mkdir(parents=True)
    monkeypatch.setattr(Embedder, "__call__", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(InputError, match=message):
        evaluate_run("", str(tmp_path / "weights"), "", small_config(tmp_path), report=str(tmp_path / name))


BROKEN = "<img src=x onerror=window.broken=1>"
HOSTILE = "</script><script>window.broken=1<!--"  # in a path: a file's own name has no slash


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Folder with index.html: two data sets under names that a browser must not run, and what their metrics were."""
    place = tmp_path_factory.mktemp("report")
    root = place / HOSTILE / "night"
    write_night(root, frames=1)
    write_images(root / "query", range(102, 106), cameras=(2,), frames=1, seed=1)
    write_images(root / "query", [200], cameras=(1,), frames=1)
    (root / "query" / "0105_c2_000000.jpg").rename(root / "query" / "0100_c2_000000.jpg")  # is taken for another
    for folder in ("query", "bounding_box_test"):
        for index, path in enumerate(sorted((root / folder).iterdir())):
            ending = [BROKEN, ", 'quoted\" & so", "\n&lt;b&gt;", "\udcff"][index % 4]
            path.rename(path.with_name(f"{path.stem}{ending}.jpg"))
    write_night(place / "plain", frames=1)
    save_weights(place / HOSTILE / "run", *model(NormRatio()), {})
    (place / HOSTILE / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    config = small_config(place, **{"eval.rerank.k1": 4, "eval.rerank.k2": 1})  # makes these numbers others
    config.eval.data.name, config.eval.data.root = "night600,market1501", f"{root},{place / 'plain'}"
    result, files = evaluate_run(
        "", str(place / HOSTILE / "run"), str(place / "r.json"), config, rerank=True, lights=(1.0, 0.1),
        features=str(place / "f.npz"), report=str(place / "out"),
    )  # fmt: skip
    assert files[-1] == place / "out" / "index.html"
    return files[-1], result, dict(np.load(place / "f.npz"))


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        reason = "no chromium is installed to open the report with: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags = [*options.split(), "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, report):
    """The report's page, open; at the end nothing may have been loaded, complained of, or run that was a name."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(5000)
    faults = []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda request: faults.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    tab.goto(report[0].as_uri())
    yield tab
    assert not faults
    assert tab.evaluate("window.broken") is None
    tab.close()


def browser_of(tab, which=0):
    return tab.locator(f'[data-browser="{which}"]')


def chosen(tab):
    return browser_of(tab).locator('.row[aria-selected="true"]')


def test_names_are_shown_as_they_are(tab, report):
    _, _, features = report
    names = [Path(path).name for path in features["night600/query_paths"].tolist()]
    rows = browser_of(tab).locator(".row .name")
    shown = rows.evaluate_all("nodes => nodes.map((node) => node.textContent)")
    assert sorted(shown) == sorted(name.replace("\udcff", "\\udcff") for name in names)
    assert any(BROKEN in name for name in shown)
    assert HOSTILE in tab.locator("h1").inner_text()
    tab.locator("summary").first.click()
    expect(tab.get_by_role("rowheader", name="checkpoint", exact=True)).to_be_visible()


def test_the_page_has_the_numbers_of_the_result(tab, report):
    """Of both data sets, with and without re-ranking, by camera, brightness and light; their mean."""
    _, result, _ = report
    night = result["targets"]["night600"]
    assert night["mAP"] != night["without_rerank"]["mAP"]
    assert f"{100 * result['mAP']:.1f} %" in tab.locator("section[aria-labelledby=mean]").inner_text()
    for index, row in enumerate(result["targets"].values()):
        section = tab.locator(f"#set-{index}")
        numbers = [row, row["without_rerank"], *row["by_camera"].values(), *row["by_brightness"].values()]
        for values in numbers + row["illumination"]:
            assert f"{100 * values['mAP']:.1f}" in section.inner_text()
        assert section.locator("svg[role=img]").count() == 3
    assert tab.locator("#training").count() == 0  # a checkpoint of no run has no curves


def test_filters_show_what_they_say(tab, report):
    first = report[2]["night600/first_match"]
    cameras = report[2]["night600/query_cameras"]
    expected = {"all": first >= 0, "right": first == 1, "wrong": first > 1, "beyond": first > 10, "none": first == 0}
    assert expected["none"].sum() == 1
    browser = browser_of(tab)
    for outcome, mask in expected.items():
        browser.get_by_label("Outcome").select_option(outcome)
        expect(browser.locator(".row")).to_have_count(int(mask.sum()))
        expect(browser.get_by_role("status")).to_have_text(f"{mask.sum()} of {len(first)} queries")
    browser.get_by_label("Outcome").select_option("beyond")
    expect(browser.locator("article")).to_contain_text("No query is like this")
    browser.get_by_label("Outcome").select_option("all")
    browser.get_by_label("Camera").select_option("2")
    expect(browser.locator(".row")).to_have_count(int((cameras == 2).sum()))
    expect(chosen(tab)).to_have_count(1)


def test_queries_are_ordered(tab, report):
    precision = report[2]["night600/average_precision"]
    worst = np.argsort(np.where(np.isnan(precision), 2, precision), kind="stable")
    browser = browser_of(tab)

    def order():
        return [int(x) for x in browser.locator(".row").evaluate_all("rows => rows.map((row) => row.dataset.query)")]

    np.testing.assert_array_equal(precision[order()], precision[worst])
    browser.get_by_label("Order").select_option("best")
    best = precision[order()]
    assert np.isnan(best[-1])
    assert best[:-1].tolist() == sorted(best[:-1], reverse=True)
    browser.get_by_label("Order").select_option("name")
    assert order() == list(range(len(precision)))


def test_a_clicked_query_shows_its_ranking_and_the_address_keeps_it(tab, report):
    _, _, features = report
    browser = browser_of(tab)
    browser.locator('[data-query="3"]').click()
    expect(chosen(tab)).to_have_attribute("data-query", "3")
    identity, first = (features[f"night600/{name}"][3] for name in ("query_pids", "first_match"))
    expect(browser.locator("article")).to_contain_text(f"identity {identity} · camera")
    expect(browser.locator("article .facts").first).to_contain_text(f"first match at {first}")
    card = browser.locator(".card.right").first
    expect(card).to_contain_text(f"✓ rank {first}: right")
    expect(card).to_contain_text(f"identity {identity}")
    expect(browser.locator(".card.junk .verdict").first).to_have_text("– same camera, left out")
    borders = [
        browser.locator(f".card.{kind}").first.evaluate("card => getComputedStyle(card).borderTopStyle")
        for kind in ("right", "wrong", "junk")
    ]
    assert len(set(borders)) == 3
    assert tab.url.endswith("#night600/3")
    tab.reload()
    expect(chosen(tab)).to_have_attribute("data-query", "3")
    tab.evaluate("location.hash = '#night600/5'")
    expect(chosen(tab)).to_have_attribute("data-query", "5")
    for address in ("#night600/999", "#elsewhere/0", "#night600/x", "#%"):
        tab.evaluate("address => { location.hash = address }", address)
    expect(chosen(tab)).to_have_attribute("data-query", "5")


def test_the_keyboard_is_enough(tab):
    browser = browser_of(tab)
    box = browser.get_by_role("listbox")
    order = browser.locator(".row").evaluate_all("rows => rows.map((row) => row.dataset.query)")
    box.focus()
    assert box.evaluate("box => getComputedStyle(box).outlineStyle") != "none"
    for key, place in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", -1), ("Home", 0), ("ArrowUp", 0)):
        box.press(key)
        expect(chosen(tab)).to_have_attribute("data-query", order[place])
        assert box.get_attribute("aria-activedescendant") == chosen(tab).get_attribute("id")
    name = chosen(tab).locator(".name").inner_text()
    box.press("Enter")
    expect(browser.locator("article h3")).to_be_focused()
    expect(browser.locator("article h3")).to_have_text(name)
    tab.keyboard.press("Tab")
    expect(browser.get_by_role("button", name="Next")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(chosen(tab)).to_have_attribute("data-query", order[1])
    expect(browser.get_by_role("button", name="Next")).to_be_focused()


def test_maps_are_drawn_over_the_query(tab):
    browser = browser_of(tab)
    canvas = browser.locator("canvas.overlay")
    expect(canvas).to_be_hidden()
    drawn = set()
    for name in ("Q norm", "K norm", "CLS attention, NRA at λ = 1", "CLS attention without NRA"):
        button = browser.get_by_role("button", name=name, exact=True)
        button.press("Enter")
        expect(canvas).to_be_visible()
        expect(button).to_have_attribute("aria-pressed", "true")
        assert re.search(r"here [\d.e-]+ to [\d.e-]+", browser.locator(".scale").inner_text())
        drawn.add(canvas.evaluate("canvas => canvas.toDataURL()"))
    assert len(drawn) >= 3  # at random weights NRA may change little
    box = browser.get_by_role("listbox")
    box.press("ArrowDown")  # the next query shows the same map
    expect(canvas).to_be_visible()
    browser.get_by_role("button", name="picture", exact=True).click()
    expect(canvas).to_be_hidden()


def test_pictures_are_as_recorded_until_brightened(tab):
    picture = browser_of(tab).locator(".large .picture")
    assert re.fullmatch(r"brightness\(0\.\d+\)|brightness\(1\)", css(picture, "filter"))
    browser_of(tab).get_by_label("Brighten").check()
    assert css(picture, "filter") == "none"
    expect(browser_of(tab, 1).get_by_label("Brighten")).to_be_checked()  # of all data sets


def css(locator, name):
    return locator.evaluate("(node, name) => getComputedStyle(node)[name]", name)


def test_a_false_match_rate_gives_its_threshold(tab):
    section = tab.locator("#set-0")
    choice, output = section.get_by_label("False-match rate"), section.locator("output")
    assert choice.locator("option").all_inner_texts() == ["1 in 10"]  # of fewer than 100 impostor pairs
    pattern = r"below ([\d.e-]+): true-match rate [\d.]+ %, false-match rate (0\.\d+)"
    found = re.search(pattern, output.inner_text())
    assert found
    assert float(found[2]) <= 0.1
    assert float(section.locator(".rule text").last.text_content().split()[1]) == pytest.approx(
        float(found[1]), rel=1e-3
    )


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_never_wider_than_the_screen(chromium, report, width, scheme):
    tab = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.goto(report[0].as_uri())
    for summary in tab.locator("summary").all():
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")
    tab.close()


def test_a_page_that_would_be_too_large_leaves_out_pictures_of_the_best(tmp_path, monkeypatch, chromium):
    """It says how many, keeps all lists, and shows the worst query."""
    write_night(tmp_path / "night", frames=1)
    save_weights(tmp_path / "weights", *model(None), {})

    def size():
        _, files = evaluate_run("", str(tmp_path / "weights"), "", small_config(tmp_path), report=str(tmp_path / "out"))
        return files[-1].stat().st_size

    limit = size() - 2000
    monkeypatch.setattr(page, "PAGE_BYTES", limit)
    assert limit - 1000 < size() <= limit
    tab = chromium.new_page()
    tab.goto((tmp_path / "out" / "index.html").as_uri())
    missing = int(re.search(r"(\d+) pictures are not in this page", browser_of(tab).inner_text())[1])
    assert 0 < missing < 16
    expect(browser_of(tab).locator("img.picture").first).to_be_visible()
    browser_of(tab).get_by_role("listbox").press("End")
    expect(browser_of(tab).locator(".card .missing").first).to_have_text("no picture")
    assert browser_of(tab).locator(".row").count() == 4
    tab.close()
