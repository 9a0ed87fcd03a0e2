"""`nrsrd cluster` writes the groups of a gallery's crops as a table, and shows them on a page."""

import csv
import datetime
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from browsing import opened
from people import write_images

from nrsrd_jax import cluster as cluster_command
from nrsrd_jax.errors import InputError, say
from nrsrd_jax.gallery.store import About, Gallery
from nrsrd_jax.report import groups as groups_page
from nrsrd_jax.retrieval.clustering import cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Make crops of five people, two from each of two cameras, and their gallery, without tracks.

    The gallery also has a crop without a file, and one that is marked as vanished.
    """
    place = tmp_path_factory.mktemp("clustering")
    write_images(place / "crops", range(5))
    paths = sorted((place / "crops").iterdir())
    start = datetime.datetime(2026, 11, 27, 19, 30, tzinfo=datetime.UTC)
    rows = [
        {
            "path": str(path),
            "person": path.name[:4],
            "camera": path.name[5:7],
            "time": start + datetime.timedelta(minutes=number),
            "brightness": number / 20,
        }
        for number, path in enumerate(paths)
    ]
    centres = np.random.default_rng(0).normal(size=(5, 8))
    features = centres[[int(row["person"]) for row in rows]] + 0.05 * np.random.default_rng(1).normal(size=(20, 8))
    rows += [{"path": str(place / "lost.jpg"), "camera": "<b>c9</b>"}, {"path": "/vanished.jpg"}]
    about = About("model", {"feature": "cls"}, 8, "vit_tiny", "0.1.0")
    gallery = Gallery.create(place / "gallery", about)
    # The last two crops are far from every person.
    gallery.add(rows, np.concatenate([features, 9 - features[:2]]))
    gallery.mark(["/vanished.jpg"], vanished=True)
    return place


def command(place, *options, status=0):
    """Run nrsrd cluster in a folder, within this process. Return its stdout and stderr."""
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.chdir(place)
        patch.setattr(sys, "argv", ["nrsrd cluster", *map(str, options)])
        if status:
            with pytest.raises((InputError, SystemExit)) as refused:
                cluster_command.main()
            if refused.errisinstance(InputError):
                say(refused.value, error=True)
        else:
            cluster_command.main()
    return output.getvalue(), errors.getvalue()


def read(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_command_writes_a_row_for_each_crop(gallery, tmp_path):
    # A person has four crops, so more neighbours would be crops of other people.
    output = command(gallery, "--gallery", "gallery", "--k1", "4", "--k2", "1", "--output", tmp_path / "g.csv")[0]
    rows = read(tmp_path / "g.csv")
    assert list(rows[0])[:2] == ["path", "group"]
    assert len(rows) == 21
    assert len({(row["person"], row["group"]) for row in rows}) == 6
    assert rows[-1] | {"path": ""} == dict.fromkeys(rows[0], "") | {"camera": "<b>c9</b>"}
    assert rows[0]["time"] == "2026-11-27T19:30:00+00:00"
    lines = output.splitlines()
    assert lines[0].startswith("21 crops, k1 4: at most 0.")
    assert "of the 20 crops with a known person: precision of pairs 1.000, recall 1.000, F 1.000, NMI 1.0" in lines[1]
    assert lines[-1] == f"5 groups; 1 crop in no group; written to {tmp_path / 'g.csv'}"


def test_the_command_keeps_crops_of_one_camera_at_one_time_apart(gallery, tmp_path):
    """All crops fall within an hour, so with --same-time 3600 a group has at most one crop of each camera."""
    usual = "--gallery", "gallery", "--k1", "4", "--k2", "1", "--where", "camera LIKE 'c%'", "--output"
    output = command(gallery, *usual, tmp_path / "g.csv", "--same-time", "3600")[0]
    assert "20 crops share camera and time with another" in output
    rows = [row for row in read(tmp_path / "g.csv") if row["group"]]
    # Each person has crops of two cameras, so at least ten crops are left in groups, and the comparison is not empty.
    assert len({(row["group"], row["camera"]) for row in rows}) == len(rows) >= 10
    command(gallery, *usual, tmp_path / "h.csv", "--same-time", "none")
    assert len({row["group"] for row in read(tmp_path / "h.csv")}) == 5


def test_tracks_stay_together_and_several_crops_of_a_track_at_one_time_are_reported(tmp_path):
    """A track belongs to one camera, so track 1 of two cameras is two tracks."""
    time = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)
    rows = [{"path": f"/{i}.jpg", "camera": f"c{i // 3}", "track": "1", "time": time} for i in range(6)]
    gallery = Gallery.create(tmp_path / "gallery", About("model", {}, 6, "vit_tiny", "0.1.0"))
    gallery.add(rows, np.eye(6))
    errors = command(tmp_path, "--gallery", "gallery", "--k1", "1", "--k2", "1", "--must-link", "track")[1]
    assert [row["group"] for row in read(tmp_path / "groups.csv")] == ["0", "0", "0", "1", "1", "1"]
    assert "warning: some tracks have several crops with the same time" in errors


@pytest.mark.parametrize("how", ["gallery", "camera", "brightness"])
def test_normalising_makes_groups_independent_of_a_camera_a_brightness_or_a_large_number(tmp_path, how):
    """Each person has eight crops from two cameras and at four brightnesses. One of these shifts the features."""
    random = np.random.default_rng(0)
    person, crop = np.divmod(np.arange(40), 8)
    features = random.normal(size=(5, 32))[person] + 0.05 * random.normal(size=(40, 32))
    if how == "gallery":
        features[:, 0] = 100 * random.normal(size=40)
    else:
        features += 10 * random.normal(size=(4, 32))[crop % {"camera": 2, "brightness": 4}[how]]
    gallery = Gallery.create(tmp_path / "gallery", About("model", {}, 32, "vit_tiny", "0.1.0"))
    rows = [
        {"path": f"/{i}.jpg", "person": str(person[i]), "camera": f"c{crop[i] % 2}", "brightness": crop[i] % 4 / 4}
        for i in range(40)
    ]
    gallery.add(rows, features)
    usual = "--gallery", "gallery", "--k1", "7", "--k2", "1"
    assert "F 1.000" not in command(tmp_path, *usual)[0]
    assert "F 1.000" in command(tmp_path, *usual, "--normalize", how)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gallery", "nothing"], "nothing is not a gallery; nrsrd embed makes one"),
        (["--gallery", "gallery", "--must-link", "track"], "no crop of gallery has a track; embed crops with tracks"),
        (["--gallery", "gallery", "--where", "camera = 'c7'"], "has no crops with camera = 'c7'"),
        (["--gallery", "gallery", "--where", "person IS NULL", "--output", "crops"], "crops is a folder"),
        (["--gallery", "gallery", "--report", "groups.csv"], "two files to read or write are the same"),
        (["--gallery", "gallery", "--eps", "1"], "argument --eps: 1 is not between 0 and 1"),
        (["--gallery", "gallery", "--same-time", "soon"], "argument --same-time: soon is not a number of seconds"),
        (["--gallery", "gallery", "--k1", "0"], "argument --k1: 0 is not a whole number of at least 1"),
        (["--gallery", "gallery", "--min-size", "1"], "a group has at least 2 crops"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(gallery, options, message):
    errors = command(gallery, *options, status=2)[1]
    assert message in errors
    assert errors.count("\n") == 1
    assert not (gallery / "groups.csv").exists()


def test_the_page_opens_in_a_browser(gallery, tmp_path, chromium):
    """The most doubtful groups come first, each with its weakest link first.

    The page loads no other file, and a name in it cannot run a script.
    """
    table, features = Gallery.open(gallery / "gallery").read("vanished IS NULL")
    found = cluster(features, eps=0.6, k1=4, k2=1)
    file = tmp_path / "groups.html"
    with pytest.MonkeyPatch.context() as patch:
        # With these limits the page has neither all crops of a group nor all groups.
        patch.setattr(groups_page, "CROPS", 3)
        patch.setattr(groups_page, "MOST", 13)
        groups_page.write_groups(file, table, found, ["<img src=x onerror=window.broken=1>"], "all are in g.csv")
    with opened(chromium, file, 390) as tab:
        assert tab.locator("h1").inner_text() == "5 groups of 21 crops"
        order = [int(text.split()[1]) for text in tab.locator("section h2").all_inner_texts()]
        assert order == np.argsort(-found.doubt, kind="stable")[:4].tolist()
        assert "Not shown: 1 group with smaller doubts; all are in g.csv." in tab.locator("header").inner_text()
        assert tab.get_by_text("4 crops, 1 of them not shown").count() == 4
        first = tab.locator("section").first.locator(".card")
        assert first.count() == 3
        assert [("weakest link" in text) for text in first.all_inner_texts()] == [True, True, False]
        names = [Path(table["path"][int(crop)].as_py()).name for crop in found.weakest[order[0]]]
        assert all(name in text for name, text in zip(names, first.all_inner_texts(), strict=False))
        assert "camera c1" in first.all_inner_texts()[0] + first.all_inner_texts()[2]
        assert "2026-11-27 19:" in first.all_inner_texts()[0]
        assert tab.locator("section img").count() == 12
        assert tab.locator("section img").first.evaluate("(image) => image.complete && image.naturalWidth > 0")
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.textContent") == "Skip to the first row"
        tab.keyboard.press("n")


def test_a_page_without_groups_says_so(tmp_path, gallery):
    table, features = Gallery.open(gallery / "gallery").read("vanished IS NULL")
    groups_page.write_groups(tmp_path / "g.html", table, cluster(features, eps=0.6, min_size=22), [], "")
    assert "<h1>0 groups of 21 crops</h1>" in (tmp_path / "g.html").read_text()
