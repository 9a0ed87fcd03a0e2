"""Caches on disk return what was written or are made again with a warning, and images are identified by hashes."""

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from people import ROOT, small_config, small_model, write_images, write_night
from PIL import Image

from nrsrd_jax import check, checkpoint
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.data import datasets, sealed
from nrsrd_jax.data.images import cached_images, cached_pixels_sha256, pixels_sha256
from nrsrd_jax.errors import InputError
from nrsrd_jax.inputs import read_targets, stamps
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval import Embedder
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.retrieval.scoring import cached_features

# ml_collections loads config files with a deprecated function.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")]
SIZE = 32, 16
PIXELS = (12, *SIZE, 3), np.uint8
FEATURES = (6, 5), np.float32


def decoded(tmp_path):
    paths = sorted((tmp_path / "images").iterdir())
    return cached_images(paths, SIZE, "bicubic", tmp_path / "cache")


def embedded(tmp_path):
    values = np.arange(30, dtype=np.float32).reshape(FEATURES[0])
    return cached_features(tmp_path / "cache" / "features-1.npy", lambda: values.copy(), FEATURES[0])


def kept(tmp_path):
    return next((tmp_path / "cache").glob("*.npy"))


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", (1, 2, 3))
    return tmp_path


def zeroed(path, shape, dtype):
    content = bytearray(path.read_bytes())
    # These bytes lie behind the header, in the array.
    content[200:240] = bytes(40)
    path.write_bytes(content)


def scribbled(content):
    return lambda path, shape, dtype: path.write_bytes(content)


def saved(array):
    return lambda path, shape, dtype: np.save(path, array(shape, dtype))


def declared(path, shape, dtype):
    """Write a header that declares 320 TiB."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'shape': (", b"'shape': (999999999999, ", 1)[: len(content)])


DAMAGE = {
    "some bytes are zero": (zeroed, "its content is not what was written"),
    "truncated": (lambda path, *_: os.truncate(path, path.stat().st_size - 9), "truncated"),
    "longer": (lambda path, *_: path.write_bytes(path.read_bytes() + b"\0"), "bytes, not"),
    "empty": (scribbled(b""), "it has 0 bytes"),
    "a zip file": (scribbled(b"PK\3\4" + bytes(9)), "bytes, not"),
    "zeros throughout": (lambda path, *_: path.write_bytes(bytes(path.stat().st_size)), "another type or shape"),
    "a scalar": (saved(lambda shape, dtype: dtype(0)), "bytes, not"),
    "another shape": (saved(lambda shape, dtype: np.zeros((shape[0], 2, 2, 3), dtype)), "bytes, not"),
    "another type": (saved(lambda shape, dtype: np.zeros(shape, np.float64)), "bytes, not"),
    "objects": (saved(lambda shape, dtype: np.zeros(shape, dtype).astype(object)), "bytes, not"),
    "a header of 320 TiB": (declared, "another type or shape"),
    "of the version before, without a seal": (saved(np.zeros), "of an old version"),
}  # fmt: skip


@pytest.mark.parametrize("make", [decoded, embedded])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_reported_in_one_line_and_made_again(images, capsys, name, make):
    before = np.array(make(images))
    damage, reason = DAMAGE[name]
    damage(kept(images), *(PIXELS if make is decoded else FEATURES))
    capsys.readouterr()
    np.testing.assert_array_equal(make(images), before)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert reason in told.err
    assert f"warning: the {'decoded images' if make is decoded else 'features'} in {kept(images)}" in told.err
    np.testing.assert_array_equal(make(images), before)
    assert capsys.readouterr().err == ""


def test_a_cache_of_other_images_is_not_used(images, capsys):
    """The file is complete and has the right shape and size; only the name that its seal includes differs."""
    before = np.array(decoded(images))
    name = kept(images).name
    write_images(images / "images", (1, 2, 3), seed=9)
    decoded(images)
    other = next(path for path in (images / "cache").glob("*.npy") if path.name != name)
    (images / "cache" / name).replace(other)
    after = decoded(images)
    assert "its content is not what was written" in capsys.readouterr().err
    assert not np.array_equal(before, after)


# Every example writes the file anew, so all of them may use one folder.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**20), st.integers(1, 255))
def test_every_changed_byte_is_detected(tmp_path, place, change):
    path = tmp_path / "a.npy"
    sealed.write(path, np.float32, (40, 3), lambda out: b"note")
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"it holds an array of another|its content is not"):
        sealed.read(path, np.float32, (40, 3))


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (1, 1), (3, sealed.BLOCK // 4 + 5)])
def test_arrays_of_any_size_are_read_back_with_their_note(tmp_path, shape):
    values = np.random.default_rng(0).random(shape, np.float32)

    def fill(out):
        out[...] = values
        return b"n" * 32

    for array, note in (
        sealed.write(tmp_path / "a.npy", np.float32, shape, fill),
        sealed.read(tmp_path / "a.npy", np.float32, shape) or (),
    ):
        np.testing.assert_array_equal(array, values)
        assert note == b"n" * 32
        assert not array.flags.writeable
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values)


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_images_are_cached_and_a_full_disk_is_reported_before_decoding(images, monkeypatch, has_fallocate):
    """macOS does not have os.posix_fallocate."""
    if not has_fallocate:
        monkeypatch.delattr(os, "posix_fallocate")
    before = np.array(decoded(images))
    np.testing.assert_array_equal(decoded(images), before)
    kept(images).unlink()
    # The header is written before the space is reserved, so only a reservation can fail here.
    monkeypatch.setattr("nrsrd_jax.data.images.decode_many", pytest.fail)
    if has_fallocate:
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(os, "fstatvfs", lambda file: SimpleNamespace(f_bavail=4, f_frsize=4096))
    with pytest.raises(InputError, match=r"cannot write decoded images to .*: No space left on device; set data"):
        decoded(images)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot limit a process to some cores")
def test_a_process_uses_as_many_threads_as_it_may_use_cores():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += "from nrsrd_jax.data.sealed import THREADS; print(THREADS)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("make", "suffix"), [(decoded, ".npy"), (decoded, ".lock"), (embedded, ".npy")])
def test_a_link_in_the_cache_folder_is_not_followed(images, make, suffix):
    make(images)
    link = kept(images).with_suffix(suffix)
    mine = images / "thesis.txt"
    mine.write_text("years of work")
    kept(images).unlink()
    link.unlink(missing_ok=True)
    link.symlink_to(mine)
    with pytest.raises(InputError, match="it is a symbolic link; remove it") as refusal:
        make(images)
    assert "\n" not in str(refusal.value)
    assert mine.read_text() == "years of work"


@pytest.mark.parametrize("make", [decoded, embedded])
@pytest.mark.parametrize("obstacle", [os.mkfifo, os.mkdir])
def test_a_cache_that_is_not_a_regular_file_is_refused(images, make, obstacle):
    make(images)
    path = kept(images)
    path.unlink()
    obstacle(path)
    with pytest.raises(InputError, match="not a regular file"):
        make(images)


def test_loaded_images_do_not_change_if_another_process_writes_the_cache(images):
    first = decoded(images)
    before = np.array(first)
    path = kept(images)
    # A writer that changed the file in place would change the array, which is a map of the file.
    sealed.write(path, PIXELS[1], PIXELS[0], lambda out: b"")
    np.testing.assert_array_equal(first, before)
    path.unlink()
    np.testing.assert_array_equal(first, before)


def test_partial_files_of_a_killed_writer_are_removed_after_a_day(images):
    cache = images / "cache"
    cache.mkdir()
    for name, age in (("old", 2 * sealed.ABANDONED), ("new", 60)):
        (cache / f".{name}.partial").write_text("")
        os.utime(cache / f".{name}.partial", (0, time.time() - age))
    decoded(images)
    assert [path.name for path in cache.glob("*.partial")] == [".new.partial"]


def test_the_hash_of_pixels_depends_on_contents_and_order_but_not_on_names(images):
    first = sorted((images / "images").iterdir())
    for path in first:
        (images / "b").mkdir(exist_ok=True)
        (images / "b" / f"other-{path.name}").write_bytes(path.read_bytes())
    other = sorted((images / "b").iterdir())
    expected = pixels_sha256(first)
    assert expected == pixels_sha256(other) != pixels_sha256(first[::-1])
    assert expected == cached_pixels_sha256(first, SIZE, "bilinear", images / "cache")
    assert expected == cached_pixels_sha256(first, SIZE, "bilinear", images / "cache")
    Image.new("RGB", (20, 40)).save(first[3])
    assert expected != pixels_sha256(first) == cached_pixels_sha256(first, SIZE, "bilinear", images / "cache")
    with pytest.raises(InputError, match=r"cannot read the image .*gone"):
        pixels_sha256([*first, images / "gone"])


def write_msmt17(root, blurred):
    """Write MSMT17 V1 or, with `blurred`, V2, which has the same lists and names but other pixels."""
    folders = ("mask_train_v2", "mask_test_v2") if blurred else ("train", "test")
    for part, folder, cameras in (("train", folders[0], (1, 2)), ("val", folders[0], (1, 2)),
                                  ("query", folders[1], (1,)), ("gallery", folders[1], (2,))):  # fmt: skip
        lines = []
        for identity in range(2):
            for camera in cameras:
                name = f"{identity:04d}/{identity:04d}_000_{camera:02d}_0303morning_{part}.png"
                (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 32), (9 * identity, 9 * camera, 99 * blurred)).save(root / folder / name)
                lines.append(f"{name} {identity}\n")
        (root / f"list_{part}.txt").write_text("".join(lines))
    return root


def test_a_result_distinguishes_msmt17_v1_from_v2(tmp_path):
    """Both have the same lists, but other versions and pixels. The hashes do not depend on the image cache."""
    save_weights(tmp_path / "weights", *small_model(1), {})
    rows = []
    for version in ("V1", "V2"):
        root = write_msmt17(tmp_path / version, version == "V2")
        config = small_config(tmp_path, data__root=str(root), data__name="msmt17")
        result = evaluate_run("", str(tmp_path / "weights"), str(tmp_path / f"{version}.json"), config, {})[0]
        rows.append(result["targets"]["msmt17"])
        config.data.cache = "none"
        options = read_options(config)
        assert stamps(options, read_targets(options)["msmt17"]).items() <= rows[-1].items()
    v1, v2 = rows
    assert (v1["version"], v2["version"]) == ("V1", "V2")
    for part in ("query", "gallery"):
        assert v1[f"{part}_list_sha256"] == v2[f"{part}_list_sha256"]
        assert v1[f"{part}_pixels_sha256"] != v2[f"{part}_pixels_sha256"]


def checked(monkeypatch, capsys, *arguments):
    """Return the lines that `check` prints."""
    monkeypatch.setattr("sys.argv", ["check", *map(str, arguments)])
    with pytest.raises(SystemExit):
        check.main()
    return capsys.readouterr().out.splitlines()


def test_check_prints_the_same_version_and_hashes_as_a_result(tmp_path, monkeypatch, capsys):
    root = write_msmt17(tmp_path, blurred=True)
    lines = checked(monkeypatch, capsys, "msmt17", root)
    data = datasets.read_dataset("msmt17", root)
    assert "the version is V2" in lines
    for split in ("train", "query", "gallery"):
        expected = pixels_sha256(getattr(data, split).paths)
        assert f"SHA-256 of the {split} images' files {expected}" in lines


def test_a_split_with_an_unreadable_image_has_no_hash(tmp_path, monkeypatch, capsys):
    root = write_night(tmp_path)
    next((root / "query").iterdir()).write_bytes(b"")
    lines = checked(monkeypatch, capsys, "night600", root)
    assert [line.split()[3] for line in lines if "images' files" in line] == ["train", "gallery"]


def test_an_evaluation_hashes_the_weights_once_until_they_are_replaced(tmp_path, monkeypatch):
    save_weights(tmp_path / "model", *small_model(), {})
    embedder, counted = Embedder.load(tmp_path / "model"), []
    monkeypatch.setattr(checkpoint, "weights_hash", lambda variables: str(counted.append(variables) or len(counted)))
    first = embedder.fingerprint()
    assert (embedder.identity()["weights_sha256"], embedder.fingerprint()) == ("1", first)
    embedder.variables = {**embedder.variables}
    assert embedder.identity()["weights_sha256"] == "2"
    assert embedder.fingerprint() != first


def test_an_option_added_later_keeps_the_identity_of_earlier_models(model):
    embedder = Embedder.load(model)
    values = dataclasses.asdict(embedder.description)
    for name in ("provenance", "sie_factor"):
        del values[name]
    text = json.dumps(values, sort_keys=True, default=str)
    assert embedder.identity()["model_sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("feature", ["cls", "centred"])
def test_a_gallery_of_whole_local_features_is_of_another_model(tmp_path, feature):
    """The features of the necks, and centred ones, once had each local feature of TransReID whole, not a quarter."""
    description, variables = small_model(size=(64, 32), jpm=True)
    for name, neck in variables["batch_stats"].items():
        if name.startswith("bottleneck"):
            neck["mean"] = np.ones_like(neck["mean"])
    save_weights(tmp_path / "model", description, variables, {})
    embedder = Embedder.load(tmp_path / "model", feature=feature)
    values = dataclasses.asdict(description)
    for name in ("provenance", "sie_factor"):
        del values[name]
    earlier = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    assert (embedder.identity()["model_sha256"] == earlier) == (feature == "cls")
