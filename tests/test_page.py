"""Test the report's page in a browser: its content, mouse and keyboard, and small and large screens."""

import re
from pathlib import Path

import numpy as np
import pytest
from browsing import opened
from people import small_config, small_model, write_calibration, write_images, write_night
from playwright.sync_api import expect

from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.report import page
from nrsrd_jax.retrieval.result import evaluate_run

pytestmark = pytest.mark.slow

BROKEN = "<img src=x onerror=window.broken=1>"
# This text names a folder, because a file name cannot contain a slash.
HOSTILE = "</script><script>window.broken=1<!--"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Evaluate two data sets whose paths contain HTML. Return the page, the result and the exported features."""
    place = tmp_path_factory.mktemp("report")
    root = place / HOSTILE / "night"
    write_night(root, frames=1)
    write_images(root / "query", range(102, 106), cameras=(2,), frames=1, seed=1)
    write_images(root / "query", [200], cameras=(1,), frames=1)
    # Label an image of person 105 as person 100, so that one query is ranked wrongly.
    (root / "query" / "0105_c2_000000.jpg").rename(root / "query" / "0100_c2_000000.jpg")
    for folder in ("query", "bounding_box_test"):
        for index, path in enumerate(sorted((root / folder).iterdir())):
            # The last ending stands for a byte that is not UTF-8.
            ending = [BROKEN, ", 'quoted\" & so", "\n&lt;b&gt;", "\udcff"][index % 4]
            path.rename(path.with_name(f"{path.stem}{ending}.jpg"))
    write_night(place / "plain", frames=1)
    save_weights(place / HOSTILE / "run", *small_model(norm_ratio=NormRatio()), {})
    (place / HOSTILE / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    # With these values, re-ranking changes the metrics of this small gallery.
    config = small_config(place, **{"eval.rerank.k1": 4, "eval.rerank.k2": 1})
    config.eval.data.name, config.eval.data.root = "night600,market1501", f"{root},{place / 'plain'}"
    result, files = evaluate_run(
        "", str(place / HOSTILE / "run"), str(place / "r.json"), config, rerank=True, lights=(1.0, 0.1),
        features=str(place / "f.npz"), report=str(place / "out"),
    )  # fmt: skip
    assert files[-1] == place / "out" / "index.html"
    return files[-1], result, dict(np.load(place / "f.npz"))


@pytest.fixture
def tab(chromium, report):
    """Open the report's page. At the end, check that it loaded no file, logged nothing and ran no file name as code."""
    with opened(chromium, report[0]) as tab:
        yield tab


def browser_of(tab, which=0):
    return tab.locator(f'[data-browser="{which}"]')


def chosen(tab):
    return browser_of(tab).locator('.row[aria-selected="true"]')


def test_file_names_are_shown_as_text(tab, report):
    _, _, features = report
    names = [Path(path).name for path in features["night600/query_paths"].tolist()]
    rows = browser_of(tab).locator(".row .name")
    shown = rows.evaluate_all("nodes => nodes.map((node) => node.textContent)")
    assert sorted(shown) == sorted(name.replace("\udcff", "\\udcff") for name in names)
    assert any(BROKEN in name for name in shown)
    assert HOSTILE in tab.locator("h1").inner_text()
    tab.locator("summary").first.click()
    expect(tab.get_by_role("rowheader", name="checkpoint", exact=True)).to_be_visible()


def test_the_page_shows_the_numbers_of_the_result(tab, report):
    """Check both data sets and their mean: with and without re-ranking, by camera, brightness and light."""
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
    # This checkpoint belongs to no run, so there are no training curves.
    assert tab.locator("#training").count() == 0


def test_filters_show_the_chosen_queries(tab, report):
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
    expect(browser.locator("article")).to_contain_text("No query matches")
    browser.get_by_label("Outcome").select_option("all")
    browser.get_by_label("Camera").select_option("2")
    expect(browser.locator(".row")).to_have_count(int((cameras == 2).sum()))
    expect(chosen(tab)).to_have_count(1)


def test_queries_can_be_ordered_from_worst_from_best_or_by_name(tab, report):
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


def test_a_click_shows_the_ranking_of_a_query_and_the_address_keeps_it(tab, report):
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


def test_the_page_can_be_used_with_the_keyboard_alone(tab):
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
    # With random weights, NRA may change the attention too little to be seen.
    assert len(drawn) >= 3
    box = browser.get_by_role("listbox")
    # The next query shows the same kind of map.
    box.press("ArrowDown")
    expect(canvas).to_be_visible()
    browser.get_by_role("button", name="picture", exact=True).click()
    expect(canvas).to_be_hidden()


def test_pictures_are_brightened_unless_switched_off(tab):
    picture = browser_of(tab).locator(".large .picture")
    expect(browser_of(tab).get_by_label("Brighten")).to_be_checked()
    assert css(picture, "filter") == "none"
    browser_of(tab).get_by_label("Brighten").uncheck()
    assert re.fullmatch(r"brightness\(0\.\d+\)|brightness\(1\)", css(picture, "filter"))
    # The box is the same for all data sets.
    expect(browser_of(tab, 1).get_by_label("Brighten")).not_to_be_checked()


def css(locator, name):
    return locator.evaluate("(node, name) => getComputedStyle(node)[name]", name)


def test_choosing_a_false_match_rate_shows_its_threshold(tab):
    section = tab.locator("#set-0")
    choice, output = section.get_by_label("False-match rate"), section.locator("output")
    # There are fewer than 100 impostor pairs, so no smaller rate can be measured.
    assert choice.locator("option").all_inner_texts() == ["1 in 10"]
    pattern = r"above ([\d.]+) %: true-match rate [\d.]+ %, false-match rate (0\.\d+)"
    found = re.search(pattern, output.inner_text())
    assert found
    assert 0 < float(found[1]) < 100
    assert float(found[2]) <= 0.1
    shown = section.locator('[data-chart="similarities"] .rule text').text_content()
    assert float(shown.split()[1]) == pytest.approx(float(found[1]), abs=0.2)


def test_a_ranking_shows_similarities_in_per_cent_in_falling_order(tab):
    texts = browser_of(tab).locator(".card .facts").all_inner_texts()
    shares = [float(re.match(r"(-?[\d.]+) % similar", text)[1]) for text in texts]
    assert shares == sorted(shares, reverse=True)
    assert 0 <= min(shares) <= max(shares) <= 100
    assert "similarity after re-ranking to the query" in browser_of(tab).inner_text()


def test_the_axis_of_the_cmc_curve_starts_at_zero(tab):
    ticks = tab.locator('#set-0 [data-chart="cmc"] text[text-anchor="end"]').all_text_contents()
    assert (ticks[0], ticks[-1]) == ("0", "100")


def test_every_table_says_that_it_is_reranked(tab):
    headings = tab.locator('#set-0 th[scope="rowgroup"]').all_inner_texts()
    assert len(headings) == 3
    assert all(heading.endswith(", re-ranked") for heading in headings)


def test_figures_fill_the_width_of_a_large_screen(chromium, report):
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(report[0].as_uri())
    for figures in tab.locator(".figures").all():
        width = figures.bounding_box()["width"]
        boxes = [figure.bounding_box() for figure in figures.locator("figure").all()]
        rows = {round(box["y"]): 0 for box in boxes}
        for box in boxes:
            rows[round(box["y"])] += box["width"]
        assert min(rows.values()) > width - 40
    browser = browser_of(tab)
    ends = [part.bounding_box()["y"] + part.bounding_box()["height"] for part in browser.locator(".split > *").all()]
    assert ends[0] == pytest.approx(ends[1], abs=2)
    tab.close()


def test_a_page_warns_about_a_gallery_of_one_person(tmp_path, chromium):
    """Check too a single query, a protocol without a word for the images it leaves out, and a calibration."""
    write_night(tmp_path / "night", frames=1)
    for path in [*(tmp_path / "night/query").iterdir(), *(tmp_path / "night/bounding_box_test").iterdir()]:
        if not path.name.startswith("0100"):
            path.unlink()
    save_weights(tmp_path / "weights", *small_model(), {})
    write_calibration(tmp_path / "weights/calibration.json", tmp_path / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "LEFT_OUT_WORDS", {})
        _, files = evaluate_run("", str(tmp_path / "weights"), "", small_config(tmp_path), report=str(tmp_path / "out"))
    tab = chromium.new_page()
    tab.goto(files[-1].as_uri())
    expect(tab.locator(".warning")).to_contain_text("all 2 gallery images show one person")
    expect(browser_of(tab).get_by_role("status")).to_have_text("1 of 1 query")
    expect(tab.locator(".counts")).to_contain_text("1 query, of which 0")
    expect(browser_of(tab).locator(".card.junk .verdict")).to_contain_text("left out by the protocol")
    assert "1 queries" not in tab.content()
    thresholds = (
        "on 200 people (calibration.json): one stranger in 10 is as near as 50.00 %, one stranger in 100 is as near"
    )
    expect(tab.locator("#set-0")).to_contain_text(thresholds)
    near = browser_of(tab).locator(".card .facts").all_inner_texts()
    assert all(re.search(r"stranger in [\d,]+ is this near", text) for text in near)
    tab.close()


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


def test_a_page_that_would_be_too_large_leaves_out_pictures_of_the_best_queries(tmp_path, monkeypatch, chromium):
    """Check that it says how many are missing, keeps every ranking and shows the worst query."""
    write_night(tmp_path / "night", frames=1)
    save_weights(tmp_path / "weights", *small_model(), {})

    def size():
        _, files = evaluate_run("", str(tmp_path / "weights"), "", small_config(tmp_path), report=str(tmp_path / "out"))
        return files[-1].stat().st_size

    # The limit is a little below the size of the page, so that a few pictures must go.
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
