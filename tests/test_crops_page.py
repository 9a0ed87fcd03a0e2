"""The page of a search in a browser: it shows queries and matches, obeys keys, and runs no script in a file name."""

import os
import sys

import pytest
from browsing import opened
from people import small_model, write_images
from playwright.sync_api import expect

from nrsrd_jax import embed, search
from nrsrd_jax.checkpoint import save_weights

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=window.broken=1>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Make the page of three queries among twelve crops. A query's file name is HTML, and a crop's file is missing."""
    place = tmp_path_factory.mktemp("search")
    write_images(place / "crops", range(3))
    write_images(place / "queries", range(3), cameras=(3,), frames=1)
    first = sorted((place / "queries").iterdir())[0]
    first.rename(first.with_name(f"{HOSTILE}.jpg"))
    save_weights(place / "model", *small_model(), {})
    gallery = ["--gallery", str(place / "g")]
    with pytest.MonkeyPatch.context() as patch:
        pattern = ["--pattern", r"_(?P<camera>c\d)_"]
        patch.setattr(sys, "argv", ["", str(place / "crops"), "--model", str(place / "model"), *gallery, *pattern])
        embed.main()
        # The gallery keeps the crop's features, but the page cannot show its picture.
        os.remove(place / "crops" / "0001_c1_000000.jpg")
        patch.setattr(
            sys, "argv", ["", str(place / "queries"), *gallery, "--top", "12", "--report", str(place / "p.html")]
        )
        search.main()
    return place / "p.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_shows_each_query_and_its_matches_without_a_verdict(chromium, page, width):
    with opened(chromium, page, width) as tab:
        assert tab.locator(".item").count() == 3
        # A row has the query and all twelve crops.
        assert tab.locator(".item").first.locator(".card").count() == 13
        assert tab.locator(".card.main").count() == 3
        text = tab.locator("body").inner_text()
        assert f"queries/{HOSTILE}.jpg" in text
        assert f"File names are relative to {page.parent}" in text
        assert "similarity 0." in text
        assert "camera c2" in text
        # The file of one crop is missing.
        assert "1 picture not in this page" in text
        assert not set("✓✗") & set(text)
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_keys_move_between_rows_and_switch_brightening(chromium, page):
    with opened(chromium, page) as tab:
        tab.keyboard.press("n")
        tab.keyboard.press("ArrowDown")
        expect(tab.locator("#row-2")).to_be_focused()
        tab.keyboard.press("p")
        expect(tab.locator("#row-1")).to_be_focused()
        picture = tab.locator(".card .picture").first
        assert picture.evaluate("node => getComputedStyle(node).filter") == "none"
        tab.keyboard.press("b")
        assert picture.evaluate("node => getComputedStyle(node).filter").startswith("brightness(0.")
        expect(tab.get_by_label("Brighten")).not_to_be_checked()


def test_the_page_prints_without_its_controls(chromium, page):
    with opened(chromium, page) as tab:
        tab.emulate_media(media="print")
        expect(tab.locator(".controls")).to_be_hidden()
        expect(tab.locator(".card .picture").first).to_be_visible()
