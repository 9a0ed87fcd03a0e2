"""Crops are embedded into a gallery. No crop is lost, embedded twice or left out without a warning."""

import dataclasses
import errno
import importlib
import os
import shutil
import sys

import jax
import numpy as np
import pytest
from people import PATTERN, paths_in, run, small_model, start, write_images

from nrsrd_jax import augment
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.data.crops import Source, make_source, parse_time
from nrsrd_jax.data.images import decode
from nrsrd_jax.errors import InputError
from nrsrd_jax.gallery import embed as embedding
from nrsrd_jax.gallery import matching
from nrsrd_jax.gallery.lock import writing
from nrsrd_jax.gallery.store import Gallery
from nrsrd_jax.retrieval import Embedder

pytestmark = pytest.mark.slow


def test_the_gallery_has_the_feature_person_camera_and_brightness_of_each_crop(gallery, crops, model):
    table, features = Gallery.open(gallery).read()
    files = sorted(crops.iterdir())
    assert table["path"].to_pylist() == list(map(str, files))
    images = np.stack([decode(path, (32, 16), "bilinear") for path in files])
    np.testing.assert_allclose(features, Embedder.load(model)(images), rtol=1e-4, atol=1e-4)
    assert table["camera"].to_pylist() == [path.name.split("_")[1] for path in files]
    assert table["person"].to_pylist() == [path.name.split("_")[0] for path in files]
    np.testing.assert_allclose(table["brightness"], (images @ [0.299, 0.587, 0.114]).mean((1, 2)) / 255, rtol=1e-4)


def test_only_new_and_changed_files_are_embedded_and_vanished_ones_are_marked(gallery, crops, model, nrsrd):
    again = ("embed", crops, "--model", model, "--gallery", gallery, "--pattern", PATTERN)
    assert nrsrd(*again).startswith("0 crops embedded, 12 unchanged;")
    first, second, third, *_ = sorted(crops.iterdir())
    before = Gallery.open(gallery).read(f"path = '{second}'")[1][0]
    first.unlink()
    shutil.copy(sorted(crops.iterdir())[-1], second)
    shutil.copy(third, crops / "0009_c9_000000.jpg")
    assert "2 crops embedded" in (shown := nrsrd(*again))
    assert "10 unchanged" in shown
    assert "1 vanished" in shown
    table, features = Gallery.open(gallery).read()
    assert sorted(table["path"].to_pylist()) == sorted(map(str, [first, *crops.iterdir()]))
    gone = [path for path, time in zip(table["path"].to_pylist(), table["vanished"].to_pylist(), strict=True) if time]
    assert gone == [str(first)]
    after = features[table["path"].to_pylist().index(str(second))]
    assert not np.allclose(before, after)
    shutil.copy(third, first)
    # A different file now has the name of the vanished one.
    assert "1 crop embedded" in nrsrd(*again)
    assert Gallery.open(gallery).count("vanished IS NOT NULL") == 0


def test_a_file_that_comes_back_is_not_embedded_again(gallery, crops, model, nrsrd, tmp_path):
    again = ("embed", crops, "--model", model, "--gallery", gallery, "--pattern", PATTERN)
    first = sorted(crops.iterdir())[0]
    first.rename(tmp_path / "away.jpg")
    assert "1 vanished" in nrsrd(*again)
    (tmp_path / "away.jpg").rename(first)
    assert "0 crops embedded, 11 unchanged, 1 there again" in nrsrd(*again)
    assert Gallery.open(gallery).count("vanished IS NOT NULL") == 0


def test_linked_folders_are_not_followed_but_reported(crops, monkeypatch, capsys, tmp_path):
    (crops / "again").symlink_to(crops)
    monkeypatch.setattr(sys, "argv", ["nrsrd embed", str(crops), "--check"])
    importlib.import_module("nrsrd_jax.embed").main()
    said = capsys.readouterr()
    assert "12 crops; known" in said.out
    assert f"1 linked folder was not followed, such as {crops / 'again'};" in said.err


def test_columns_of_crops_can_be_changed_without_embedding_them_again(crops, model, nrsrd, tmp_path):
    nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g")
    _, before = Gallery.open(tmp_path / "g").read()
    shown = nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g", "--pattern", PATTERN)
    assert shown.startswith("0 crops embedded, 12 described anew")
    table, after = Gallery.open(tmp_path / "g").read()
    assert table["camera"].to_pylist() == [os.path.basename(path)[5:7] for path in table["path"].to_pylist()]
    np.testing.assert_array_equal(np.sort(before, 0), np.sort(after, 0))
    # Without --pattern the columns stay.
    assert "12 unchanged" in nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g")


def test_check_shows_what_would_be_read_and_writes_nothing(crops, nrsrd, tmp_path):
    shown = nrsrd("embed", crops, "--pattern", r"_c(?P<camera>\d)_(?P<frame>\d+)", "--check")
    assert "camera 1, frame 000000" in shown
    assert shown.splitlines()[-1] == "12 crops; known: camera of 12, frame of 12; nothing was embedded"
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_shards_together_make_the_same_gallery(crops, model, nrsrd, tmp_path, gallery):
    for shard in (1, 2, 3):
        nrsrd(
            "embed", crops, "--model", model, "--gallery", tmp_path / "s", "--pattern", PATTERN, "--shard", f"{shard}/3"
        )
    parts, whole = (Gallery.open(place).read()[0].sort_by("path") for place in (tmp_path / "s", gallery))
    assert parts.drop(["size"]).to_pylist() == whole.drop(["size"]).to_pylist()


def test_a_killed_embed_continues_and_no_crop_is_lost_or_embedded_twice(model, tmp_path):
    write_images(tmp_path / "crops", range(40), frames=3)
    arguments = ["embed", str(tmp_path / "crops"), "--model", str(model), "--gallery", str(tmp_path / "g")]
    code = f"""
import os, signal, sys, threading
from nrsrd_jax import embed
from nrsrd_jax.gallery import embed as core
from nrsrd_jax.gallery.store import Gallery
core.CHUNK = 4
add, left, delay = Gallery.add, int(sys.argv[1]), float(sys.argv[2])
def killed(*arguments, **options):
    global left
    left -= 1
    if left == 0:
        threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    return add(*arguments, **options)
Gallery.add = killed
sys.argv = {arguments!r}
embed.command()
"""
    # The first process is killed as it begins a write, and the second while it writes or shortly after.
    for writes, delay in ((3, 0), (5, 0.03)):
        process = start(["-c", code, writes, delay])
        assert process.wait(120) == -9
        before = paths_in(tmp_path / "g")
        assert len(before) == len(set(before)) > 0
    done = run("-c", code, 0, 0)
    assert f"{len(before)} unchanged" in done.stdout
    assert paths_in(tmp_path / "g") == sorted(map(str, (tmp_path / "crops").iterdir()))


def test_two_writers_at_once_are_refused(crops, model, nrsrd, tmp_path):
    with writing(tmp_path / "g"), pytest.raises(InputError, match="another process is writing"):
        nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g")
    with writing(tmp_path / "g", "1-of-2"):
        with pytest.raises(InputError, match="another process is writing"):
            nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g", "--shard", "1/2")
        nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g", "--shard", "2/2")
        # Shard 1/3 shares crops with shard 1/2.
        with pytest.raises(InputError, match="another process is writing"):
            nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g", "--shard", "1/3")


@pytest.mark.parametrize("shard", ["", "1-of-2"])
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_gallery_is_written_with_a_warning_on_a_file_system_without_locks(tmp_path, monkeypatch, capsys, shard, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with writing(tmp_path / "g", shard):
        warning = f"warning: {tmp_path / 'g'} cannot be locked ({os.strerror(code)}): write to it from one process at"
        assert capsys.readouterr().err.startswith(warning)
        with writing(tmp_path / "g", shard):
            assert capsys.readouterr().err.count("\n") == 1


def test_a_gallery_refuses_features_of_another_model(gallery, crops, nrsrd, tmp_path):
    save_weights(tmp_path / "other", *small_model(seed=1), {})
    with pytest.raises(InputError, match="features of another model"):
        nrsrd("embed", crops, "--model", tmp_path / "other", "--gallery", gallery)
    query = next(crops.iterdir())
    with pytest.raises(InputError, match="features of another model"):
        nrsrd("search", query, "--model", tmp_path / "other", "--gallery", gallery)
    assert len(paths_in(gallery)) == 12


def test_a_gallery_of_another_feature_of_the_model_names_the_feature_to_give(crops, model, nrsrd, tmp_path):
    own = embedding.about(Embedder.load(model), model)
    Gallery.create(tmp_path / "g", dataclasses.replace(own, identity=own.identity | {"feature": "centred"}))
    with pytest.raises(InputError, match=r"\(feature cls\): give --feature centred, or make another gallery"):
        nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g")


def test_unreadable_crops_are_named_and_the_others_are_embedded(crops, model, nrsrd, tmp_path, capsys):
    (crops / "0000_c1_000000.jpg").write_bytes(b"no picture")
    # This name is not UTF-8, as in old archives.
    (crops / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    arguments = [crops, "--model", model, "--gallery", tmp_path / "g"]
    done = run("-m", "nrsrd_jax.embed", *arguments)
    assert done.stderr.count("warning: left out: ") == 2
    assert "0000_c1_000000.jpg" in done.stderr
    assert "11 crops embedded" in done.stdout
    assert "2 unreadable" in done.stdout
    assert len(paths_in(tmp_path / "g")) == 11


def test_an_embedding_without_a_readable_crop_is_an_error_and_leaves_no_folder(crops, model, nrsrd, tmp_path):
    for path in crops.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="no crop can be read"):
        nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g")
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda place: {"crops": place / "nowhere"}, "nowhere does not exist"),
    (lambda place: {"crops": empty(place)}, "has no crops"),
    (lambda place: {"--pattern": "("}, "is not a regular expression"),
    (lambda place: {"--pattern": r"c\d"}, "has no named group"),
    (lambda place: {"--pattern": r"(?P<vector>c\d)"}, "the column \"vector\" is reserved by the gallery"),
    (lambda place: {"--pattern": r"c(?P<time>\d)"}, "is not a time like"),
    (lambda place: {"--pattern": r"_(?P<time>\d{6})", "--time-format": "%Y"}, "is not a time of the form %Y"),
    (lambda place: {"crops": manifest(place, "path,time\ncrops/0000_c1_000000.jpg,yesterday\n")}, "line 2: .*a time"),
    (lambda place: {"crops": manifest(place, "path,Floor No\na.jpg,1\n")}, "a-z, digits and _"),
    (lambda place: {"crops": manifest(place, "path,similarity\na.jpg,1\n")}, "\"similarity\" is reserved"),
    (lambda place: {"crops": manifest(place, "file\na.jpg\n")}, "has no column path"),
    (lambda place: {"crops": manifest(place, "path,person,,\na.jpg,1,,\na.jpg,2,,\n")}, "lines 2 and 3 differ about"),
    (lambda place: {"--pattern": r"_(?P<time>\d{6})", "--time-format": "%Y%Y"}, "is not a time of the form %Y%Y"),
    (lambda place: {"crops": manifest(place, "path,time\na.jpg,0001-01-01T00:00+14:00\n")}, "is not a time like"),
    (lambda place: {"--model": place / "nowhere"}, "nowhere does not exist"),
    (lambda place: {"--gallery": next((place / "crops").iterdir())}, "cannot write to the gallery"),
])  # fmt: skip
def test_a_wrong_argument_of_embed_gives_one_line(crops, model, nrsrd, tmp_path, change, message):
    usual = {"crops": crops, "--model": model, "--gallery": tmp_path / "g"}
    arguments = usual | change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        nrsrd("embed", arguments.pop("crops"), *(part for pair in arguments.items() for part in pair))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "g").exists()


def empty(place):
    (place / "empty").mkdir()
    return place / "empty"


def manifest(place, text):
    (place / "list.csv").write_text(text)
    return place / "list.csv"


def test_forget_deletes_crops_for_good_but_only_with_yes(gallery, nrsrd):
    assert "4 of 12 crops would be deleted" in nrsrd("forget", gallery, "--where", "person = '0001'")
    assert len(paths_in(gallery)) == 12
    shown = nrsrd("forget", gallery, "--where", "person = '0001'", "--yes")
    assert "4 crops deleted" in shown
    assert "nrsrd embed embeds them again" in shown
    assert not [path for path in paths_in(gallery) if "/0001_" in path]
    content = b"".join(path.read_bytes() for path in gallery.rglob("*") if path.is_file())
    assert b"0001_c1_000000" not in content
    assert b"0002_c1_000000" in content


def test_forget_leaves_no_trace_of_few_crops_among_many_even_after_a_kill(tmp_path, model, nrsrd):
    """LanceDB keeps deleted rows in its index, and in files of which less than a tenth was deleted."""
    embedder = Embedder.load(model)
    gallery = Gallery.create(tmp_path / "g", embedding.about(embedder, model))
    features = np.random.default_rng(0).normal(size=(400, embedder.width)).astype(np.float32)
    gallery.add([{"path": f"/{i:03d}.jpg", "person": f"who{i:03d}", "floor": "1"} for i in range(400)], features)
    nrsrd("index", tmp_path / "g")
    before = set((tmp_path / "g").rglob("*.idx"))
    nrsrd("forget", tmp_path / "g", "--path", "/007.jpg", "--yes")
    # A kill at this point has deleted the row, but not its traces.
    Gallery.open(tmp_path / "g").table.delete("person = 'who008'")
    nrsrd("forget", tmp_path / "g", "--where", "person = 'who008'", "--yes")
    content = b"".join(path.read_bytes() for path in (tmp_path / "g").rglob("*") if path.is_file())
    for i in (7, 8):
        assert f"who{i:03d}".encode() not in content
        assert f"/{i:03d}.jpg".encode() not in content
        assert features[i].tobytes()[:64] not in content
    assert b"who009" in content
    assert not before & set((tmp_path / "g").rglob("*.idx"))
    left = Gallery.open(tmp_path / "g")
    assert matching.has_index(left)
    assert left.about == gallery.about
    table, kept = left.read()
    assert table["person"].to_pylist() == [f"who{i:03d}" for i in range(400) if i not in (7, 8)]
    np.testing.assert_array_equal(kept, np.delete(features, [7, 8], 0))


def test_the_columns_of_a_crop_stay_when_its_file_changes(gallery, crops, model, nrsrd, tmp_path):
    first, second, third, *_ = sorted(crops.iterdir())
    shutil.copy(third, first)
    (tmp_path / "list.csv").write_text(f"path,floor\n{second},2\n")
    nrsrd("embed", crops, tmp_path / "list.csv", "--model", model, "--gallery", gallery)
    table, _ = Gallery.open(gallery).read(f"path IN ('{first}', '{second}')", ("path", "person", "camera", "floor"))
    assert table.sort_by("path").to_pylist() == [
        {"path": str(first), "person": "0000", "camera": "c1", "floor": None},
        {"path": str(second), "person": "0000", "camera": "c1", "floor": "2"},
    ]


def test_a_crop_whose_file_was_damaged_counts_as_vanished(gallery, crops, model, nrsrd):
    first, *_ = sorted(crops.iterdir())
    first.write_bytes(b"no picture")
    assert "1 vanished, 1 unreadable" in nrsrd("embed", crops, "--model", model, "--gallery", gallery)
    assert Gallery.open(gallery).count("vanished IS NULL") == 11


def test_shards_can_add_the_same_column_at_once(gallery):
    # Both open the table before it has the column.
    one, other = Gallery.open(gallery), Gallery.open(gallery)
    feature = np.ones((1, one.about.width))
    one.add([{"path": "/a", "floor": "1"}], feature)
    other.add([{"path": "/b", "floor": "2"}], feature)
    one.add([{"path": "/c"}], feature)
    table, _ = Gallery.open(gallery).read("path IN ('/a', '/b', '/c')", ("floor",))
    assert table["floor"].to_pylist() == ["1", "2", None]


@pytest.mark.parametrize(("text", "time"), [
    ("2026-11-27T19:30:00", "2026-11-27T19:30:00"),
    ("2026-11-27 20:30:00+01:00", "2026-11-27T19:30:00"),
    ("20261127193000", "2026-11-27T19:30:00"),
    ("1795807800", "2026-11-27T19:30:00"),
    ("1795807800000", "2026-11-27T19:30:00"),
])  # fmt: skip
def test_times_are_read_in_the_usual_forms(text, time):
    assert parse_time(text).isoformat() == f"{time}+00:00"


def test_a_name_that_does_not_match_the_pattern_gives_empty_columns(crops):
    (crops / "other.jpg").write_bytes(next(crops.iterdir()).read_bytes())
    source = make_source(crops, PATTERN, "")
    assert isinstance(source, Source)
    values = {os.path.basename(crop.path): crop.values for crop in source.crops()}["other.jpg"]
    assert values == {"person": None, "camera": None}


def test_a_model_that_brightens_embeds_brightened_crops(tmp_path, nrsrd, crops):
    """The model has a description with data.brighten, so its crops are brightened before they are embedded."""
    description, variables = small_model(brighten=0.9)
    save_weights(tmp_path / "bright", description, variables, {})
    nrsrd("embed", crops, "--model", tmp_path / "bright", "--gallery", tmp_path / "g")
    table, features = Gallery.open(tmp_path / "g").read()
    images = np.stack(
        [decode(crops / os.path.basename(path), (32, 16), "bilinear") for path in table["path"].to_pylist()]
    )
    x = augment.normalize(augment.brighten(jax.numpy.asarray(images, np.float32) / 255, 0.9), (0.5,) * 3, (0.5,) * 3)
    direct = description.create_model().apply(variables, x)["embedding"]
    np.testing.assert_allclose(features, direct, rtol=1e-3, atol=1e-3)
