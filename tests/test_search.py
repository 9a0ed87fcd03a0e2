"""`nrsrd search` finds the most similar crops of a gallery, exactly or with an index."""

import csv
import datetime
import json
import re
import shutil

import numpy as np
import pytest
from people import paths_in, run, write_calibration

from nrsrd_jax.errors import InputError
from nrsrd_jax.gallery import embed as embedding
from nrsrd_jax.gallery import matching
from nrsrd_jax.gallery.store import Gallery
from nrsrd_jax.retrieval import Embedder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("arguments", "message"), [
    (["--where", "nonsense >"], "does not fit the gallery"),
    # The command puts the condition into brackets. A condition that closes them could undo the other filters.
    (["--where", "1=1) OR (1=1"], "the brackets .* do not match"),
    (["--where", "camera = c1"], "does not fit the gallery.*with texts in single quotes"),
    (["--camera", "c7"], "none of the 12 crops .* fits .*; its cameras are c1, c2$"),
    (["--since", "2026-11-01"], "no crop has a time: embed the crops again with a --pattern"),
    (["--since", "yesterday"], "--since: .*is not a time"),
    (["--approximate"], "has no index"),
    (["--not-same-camera"], "has no camera"),
    (["--normalize", "camera"], "crops among the queries have no camera"),
    (["--report", "."], "is a folder"),
])  # fmt: skip
def test_a_wrong_argument_of_search_gives_one_line(gallery, crops, nrsrd, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        nrsrd("search", next(crops.iterdir()), "--gallery", gallery, *arguments)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_a_gallery_is_refused(tmp_path, crops, nrsrd):
    with pytest.raises(InputError, match="is not a gallery; nrsrd embed makes one"):
        nrsrd("search", crops, "--gallery", tmp_path)
    assert not (tmp_path / "crops.lance").exists()


def test_a_gallery_without_crops_says_what_to_do(gallery, crops, nrsrd, tmp_path):
    """A gallery can become empty by nrsrd forget, and all its files can vanish."""
    query = tmp_path / "query.jpg"
    shutil.copy(next(crops.iterdir()), query)
    Gallery.open(gallery).mark(paths_in(gallery), vanished=True)
    with pytest.raises(InputError, match=r"the files of all 12 crops of .* have vanished; put them back and run"):
        nrsrd("search", query, "--gallery", gallery)
    nrsrd("forget", gallery, "--where", "true", "--yes")
    with pytest.raises(InputError, match=r"holds no crops; add some with nrsrd embed$"):
        nrsrd("search", query, "--gallery", gallery)


def test_a_search_that_depends_on_all_crops_is_marked_transductive(gallery, crops, nrsrd):
    arguments = "search", next(crops.iterdir()), "--gallery", gallery
    assert "transductive" not in nrsrd(*arguments)
    assert "transductive" in nrsrd(*arguments, "--normalize", "gallery")


def test_a_search_does_not_write_to_the_gallery(gallery, crops, nrsrd, tmp_path, model):
    """Compare modification times, because read-only permissions do not stop root, which tests may run as."""
    before = {path: path.stat().st_mtime_ns for path in gallery.rglob("*")}
    nrsrd("search", crops, "--gallery", gallery, "--output", tmp_path / "m.json")
    assert {path: path.stat().st_mtime_ns for path in gallery.rglob("*")} == before


def test_columns_of_a_manifest_can_be_searched_by(crops, model, nrsrd, tmp_path):
    names = sorted(path.name for path in crops.iterdir())
    rows = [f"crops/{name},{name[5:7]},2026-11-27T0{i % 10}:00:00+01:00,floor {i % 2}" for i, name in enumerate(names)]
    (tmp_path / "list.csv").write_text("\n".join(["Path,Camera,Time,Floor", *rows]))
    nrsrd("embed", tmp_path / "list.csv", "--model", model, "--gallery", tmp_path / "g")
    table, _ = Gallery.open(tmp_path / "g").read("floor = 'floor 1'")
    assert len(table) == 6
    assert table["time"].to_pylist()[0] == datetime.datetime(2026, 11, 27, 0, tzinfo=datetime.UTC)
    place = ["--gallery", tmp_path / "g", "--output", tmp_path / "m.json", "--where", "floor = 'floor 1'"]
    shown = nrsrd("search", "--like", crops / names[0], *place, "--since", "2026-11-27T02", "--until", "20261127060000")
    matches = json.loads((tmp_path / "m.json").read_text())["queries"][0]["matches"]
    assert {match["floor"] for match in matches} == {"floor 1"}
    assert all("2026-11-27T02" <= match["time"] < "2026-11-27T06" for match in matches)
    assert len(matches) == 2
    assert "among 2 crops" in shown


def test_matches_are_the_most_similar_crops_the_best_first(gallery, crops, nrsrd, tmp_path):
    nrsrd(
        "search", crops, "--gallery", gallery, "--top", 3, "--output", tmp_path / "m.json", "--csv", tmp_path / "m.csv"
    )
    table, features = Gallery.open(gallery).read()
    paths = table["path"].to_pylist()
    units = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    queries = json.loads((tmp_path / "m.json").read_text())["queries"]
    assert [query["path"] for query in queries] == paths
    for row, query in enumerate(queries):
        similarity = units @ units[row]
        # A query does not match itself.
        similarity[row] = -2
        best = np.argsort(-similarity, kind="stable")[:3]
        assert [match["path"] for match in query["matches"]] == [paths[i] for i in best]
        np.testing.assert_allclose([m["similarity"] for m in query["matches"]], similarity[best], atol=2e-6)
    with (tmp_path / "m.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["query"], line["path"]) for line in lines] == [
        (query["path"], match["path"]) for query in queries for match in query["matches"]
    ]


def test_a_search_in_batches_equals_a_search_over_all_crops_at_once(gallery, monkeypatch):
    opened = Gallery.open(gallery)
    queries = matching.from_gallery(opened, paths_in(gallery))
    limits = {"top": 5, "where": "", "other_cameras": False}
    # These sizes do not divide the twelve crops, so the last batch and block are incomplete.
    monkeypatch.setattr("nrsrd_jax.gallery.store.BATCH", 5)
    monkeypatch.setattr(matching, "QUERIES", 7)
    monkeypatch.setattr(matching, "BLOCK", 5)
    apart = matching.search(opened, queries, **limits)
    whole = matching.search_whole(opened, queries, **limits, normalize="none", rerank=None)
    for a, b in zip(apart, whole, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_allclose(a.similarity, b.similarity, atol=1e-12)


def test_of_equal_similarities_the_earlier_crop_comes_first():
    similarity = np.array([0.5, 0.9, 0.5, 0.5, 0.9, 0.1])
    assert matching.best_first(similarity, 3).tolist() == [1, 4, 0]
    assert matching.best_first(similarity, 9).tolist() == [1, 4, 0, 2, 3, 5]


def test_matches_below_the_threshold_are_left_out(gallery, crops, nrsrd, tmp_path):
    nrsrd("search", crops, "--gallery", gallery, "--threshold", "0.999", "--output", tmp_path / "m.json")
    queries = json.loads((tmp_path / "m.json").read_text())["queries"]
    kept = [match["similarity"] for query in queries for match in query["matches"]]
    assert len(kept) < 12 * 10
    assert min(kept, default=1) >= 0.999


def test_a_calibration_gives_the_threshold_and_how_rare_similar_strangers_are(gallery, crops, model, nrsrd, tmp_path):
    calibration = write_calibration(tmp_path / "c.json", model)
    page = tmp_path / "p.html"
    arguments = ["search", crops, "--gallery", gallery, "--threshold", calibration, "--output", tmp_path / "m.json"]
    shown = nrsrd(*arguments, "--fmr", "0.01", "--report", page)
    assert "stranger in" in shown
    assert "12 with matches of a similarity of at least 0.9000 among 12 crops" in shown
    result = json.loads((tmp_path / "m.json").read_text())
    assert result["threshold"] == 0.9
    matches = [match for query in result["queries"] for match in query["matches"]]
    assert matches
    assert all(match["similarity"] >= 0.9 and match["strangers"] >= 100 for match in matches)
    assert "stranger in" in page.read_text()
    assert "below a similarity of 0.9000 are left out" in page.read_text()
    with pytest.raises(InputError, match="too few for a false-match rate"):
        nrsrd(*arguments, "--fmr", "1e-9")
    # Without a calibration --fmr would have no effect.
    with pytest.raises(SystemExit):
        nrsrd("search", crops, "--gallery", gallery, "--threshold", "0.5", "--fmr", "0.1")
    with pytest.raises(InputError, match="leave out --normalize"):
        nrsrd(*arguments, "--normalize", "gallery")


def test_a_calibration_of_another_model_is_refused_if_given_and_ignored_if_found(
    gallery, crops, model, tmp_path, nrsrd
):
    other = write_calibration(tmp_path / "c.json", model, weights_sha256="0" * 64)
    with pytest.raises(InputError, match="calibrates another model"):
        nrsrd("search", crops, "--gallery", gallery, "--threshold", other)
    copy = shutil.copytree(model, tmp_path / "copy")
    write_calibration(copy / "calibration.json", model, feature="neck")
    done = run("-m", "nrsrd_jax.search", crops, "--gallery", gallery, "--model", copy, "--output", tmp_path / "m.json")
    assert "calibrates another model" in done.stderr
    assert "meaning" not in (tmp_path / "m.json").read_text()
    write_calibration(copy / "calibration.json", model)
    run("-m", "nrsrd_jax.search", crops, "--gallery", gallery, "--model", copy, "--output", tmp_path / "m.json")
    assert "meaning" in (tmp_path / "m.json").read_text()


def test_a_damaged_gallery_is_reported_as_damaged(gallery, crops, nrsrd):
    for file in (gallery / "crops.lance/data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot use the gallery .* missing or damaged"):
        nrsrd("search", "--like", next(crops.iterdir()), "--gallery", gallery)


def test_an_index_finds_the_matches_of_the_exact_search(tmp_path, model, nrsrd):
    """Features are in well-separated groups, so even a coarse index finds the nearest."""
    embedder = Embedder.load(model)
    gallery = Gallery.create(tmp_path / "g", embedding.about(embedder, model))
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(64, embedder.width))
    features = np.repeat(centres, 8, 0) + 0.05 * rng.normal(size=(512, embedder.width))
    gallery.add([{"path": f"/{i:03d}.jpg"} for i in range(512)], features)
    shown = nrsrd("index", tmp_path / "g", "--check-recall", "--queries", 600)
    assert re.search(
        r"finds [\d.]+% \(512 queries\); a search for one crop takes [\d.]+ ms instead of [\d.]+ ms", shown
    )
    limits = {"top": 7, "where": "", "other_cameras": False}
    queries = matching.from_gallery(gallery, ["/000.jpg", "/100.jpg"])
    near = matching.search_approximately(Gallery.open(tmp_path / "g"), queries, **limits)
    exact = matching.search(gallery, queries, **limits)
    for a, b in zip(near, exact, strict=True):
        assert set(a.rows) == set(b.rows)


def test_a_search_with_an_index_prints_no_warning(tmp_path, model, crops):
    """LanceDB's Rust code writes warnings to stderr directly, so the search runs as a command."""
    embedder = Embedder.load(model)
    gallery = Gallery.create(tmp_path / "g", embedding.about(embedder, model))
    # LanceDB cannot make this kind of index from fewer vectors.
    features = np.random.default_rng(0).normal(size=(256, embedder.width))
    gallery.add([{"path": f"/{i:03d}.jpg"} for i in range(256)], features)
    matching.make_index(gallery)
    assert run("-m", "nrsrd_jax.search", crops, "--gallery", gallery.uri, "--approximate").stderr == ""
