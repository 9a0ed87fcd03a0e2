"""`nrsrd check` reports what would stop or spoil training, and training can leave out the images of its fix list."""

import contextlib
import io
import os
import re
import sys
import zlib
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from people import small_config, write_images, write_night
from PIL import Image

from nrsrd_jax.check import main
from nrsrd_jax.checkpoint import load
from nrsrd_jax.data.images import decode, read_rgb
from nrsrd_jax.data.picture import MAX_PIXELS
from nrsrd_jax.errors import InputError
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import check_run, train

# ml_collections loads a config file with the deprecated load_module.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")]
SMALL = "--config.train.batch_size=16", "--config.train.instances=2"


def check(*arguments, status=0):
    """Run `nrsrd check …` in this process. Assert that it exits with `status`, and return its stdout."""
    with (
        mock.patch.object(sys, "argv", ["check", *map(str, arguments)]),
        contextlib.redirect_stdout(io.StringIO()) as out,
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert end.value.code == status, out.getvalue()
    return SimpleNamespace(stdout=out.getvalue())


def big_png(path, width, height):
    """Write a PNG whose header claims width × height pixels, although the file holds no pixel."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.fixture
def planted(tmp_path):
    """Make a data set in the Night600 layout with one fault of each kind."""
    root = write_night(tmp_path / "night")
    folder = root / "bounding_box_train"
    good = next(folder.iterdir()).read_bytes()
    (folder / "0001_c1_zero.jpg").write_bytes(b"")
    (folder / "0001_c1_cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "0001_c1_text.jpg").write_text("no image")
    Image.new("RGB", (1, 1)).save(folder / "0001_c1_dot.jpg")
    big_png(folder / "0001_c1_big.png", 6000, 9000)
    Image.new("RGB", (20, 40)).save(folder / "nobody.jpg")
    (folder / "0001_c1_loop.jpg").symlink_to("0001_c1_loop.jpg")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 2**16, (40, 20), np.uint16)).save(folder / "0002_c1_sixteen.png")
    Image.fromarray(rng.integers(0, 255, (40, 20, 4), np.uint8), "CMYK").save(folder / "0002_c1_cmyk.jpg")
    Image.fromarray(rng.integers(0, 255, (40, 20, 4), np.uint8), "RGBA").save(folder / "0002_c1_rgba.png")
    write_images(folder, [77], cameras=(1,), frames=1)
    (folder / "0077_c1_000000.jpg").rename(folder / "0077_c1_Größe.jpg")
    write_images(root / "query", [300], cameras=(1,), frames=1)
    write_images(root / "bounding_box_test", [1], cameras=(2,), frames=1)
    (root / "query" / "Thumbs.db").write_text("")
    return root


def test_each_fault_is_one_line_and_training_works_without_the_listed_images(planted, tmp_path):
    done = check("night600", planted, "--fix-list", tmp_path / "bad.txt", status=1)
    lines = done.stdout.splitlines()
    for kind, part in [
        ("fault", "0001_c1_zero.jpg"), ("fault", "0001_c1_cut.jpg"), ("fault", "0001_c1_text.jpg"),
        ("fault", "0001_c1_big.png: 6000×9000 pixels are more than"), ("fault", "nobody.jpg: no identity and camera"),
        ("fault", "0001_c1_loop.jpg"), ("warning", "0001_c1_dot.jpg: 1×1 pixels are too few to show a person"),
        ("warning", "train: identities with a single image: 1 (77)"),
        ("warning", "not read: 1 hidden or of the system (Thumbs.db)"),
        ("warning", "0300_c1_000000.jpg: this query has no match"),
        ("warning", "the published ones (in brackets): train images 42 (14462), query images 5 (2180), gallery"),
        ("fault", "9 identities, but a batch of 64 takes 16 with 4 images each"),
        ("warning", "identities in training and in test: 1 (1)"), ("warning", "mode I;16, read as RGB (0002_c1_six"),
        ("warning", "mode CMYK, read as RGB (0002_c1_cmyk"), ("warning", "mode RGBA, read as RGB (0002_c1_rgba"),
    ]:  # fmt: skip
        assert sum(line.startswith(f"{kind}: ") and part in line for line in lines) == 1, part
    assert lines[-2] == "7 faults, 9 warnings"
    assert lines[-1].startswith("7 paths written")
    again = check("night600", planted, "--exclude", tmp_path / "bad.txt", *SMALL)
    config = small_config(tmp_path, train__epochs=1)
    with pytest.raises(InputError, match=r"nobody\.jpg"):
        train(config, tmp_path / "run", jax.devices()[:1])
    config.data.exclude = str(tmp_path / "bad.txt")
    assert 0 < train(config, tmp_path / "run", jax.devices()[:1])["mAP"] <= 1
    stamped = load(tmp_path / "run", make_mesh())[0].provenance["data"]["train"]
    assert f"SHA-256 of the train list {stamped}" in again.stdout.splitlines()


def test_a_broken_image_stops_the_run_also_without_a_cache(tmp_path):
    root = write_night(tmp_path / "night")
    # Without a cache, training decodes an image when its batch comes, so a broken one could end it after hours.
    config = small_config(tmp_path, data__cache="none")
    for folder in ("bounding_box_train", "query"):
        broken = next((root / folder).iterdir())
        good = broken.read_bytes()
        broken.write_bytes(good[:200])
        with pytest.raises(InputError, match=re.escape(str(broken))):
            train(config, tmp_path / "run", jax.devices()[:1])
        broken.write_bytes(good)


def test_check_prints_counts_and_pixel_statistics_of_a_clean_data_set(tmp_path):
    root = write_night(tmp_path)
    done = check("night600", root, *SMALL)
    shown = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:4]}
    assert shown == {"train": ["32", "8", "2"], "query": ["4", "4", "1"], "gallery": ["12", "6", "2"]}
    everything = np.stack([read_rgb(path) for path in sorted(root.glob("bounding_box_train/*.jpg"))]) / 255
    for name, values in (("mean", everything.mean((0, 1, 2))), ("std", everything.std((0, 1, 2)))):
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"training pixels' {name}"))
        assert line.endswith(",".join(f"{value:.4f}" for value in values))


@pytest.mark.parametrize("dark", [True, False])
def test_check_suggests_brightening_only_for_dark_training_images(tmp_path, dark):
    root = write_night(tmp_path)
    for path in root.glob("bounding_box_train/*.jpg"):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        # The advice is for images with a mean below a quarter of the range; these have at most an eighth or at least a
        # half.
        Image.fromarray(pixels // 8 if dark else 128 + pixels // 8).save(path)
    assert ("data.brighten" in check("night600", root, *SMALL).stdout) == dark


def without_matches(tmp_path):
    """Make a data set whose gallery lacks the second camera, so that no query has a match.

    The training images still have two cameras.
    """
    root = write_night(tmp_path / "night")
    for path in (root / "bounding_box_test").glob("*_c2_*"):
        path.unlink()
    return root


def without_cameras(tmp_path):
    root = write_night(tmp_path / "night")
    for path in root.rglob("*_c2_*"):
        path.unlink()
    return root


def too_few_people(tmp_path):
    root = write_night(tmp_path / "night")
    for path in (root / "bounding_box_train").glob("0000_*"):
        path.unlink()
    return root


def one_person(tmp_path):
    root = write_night(tmp_path / "night")
    for path in (root / "bounding_box_train").iterdir():
        if not path.name.startswith("0000"):
            path.unlink()
    return root


@pytest.mark.parametrize(("make", "message"), [
    (without_matches, "none of the 4 queries of night600 has a match by the cross-camera protocol"),
    (without_cameras, "for data without cameras set --config.eval.protocol=all-cameras"),
    (too_few_people, "the training images show 7 identities, but a batch of 16 takes 8 with 2 images each"),
    (one_person, "the training images show a single identity"),
])  # fmt: skip
def test_check_reports_what_training_refuses_in_the_same_words(tmp_path, make, message):
    root = make(tmp_path)
    lines = check("night600", root, *SMALL, status=1).stdout.splitlines()
    (fault,) = [line for line in lines if line.startswith("fault: ")]
    assert message in fault
    with pytest.raises(InputError) as refusal:
        train(small_config(tmp_path), tmp_path / "run")
    assert fault == f"fault: {refusal.value}"
    assert lines[-1].startswith("1 faults")


def test_all_cameras_is_advised_only_for_data_without_cameras(tmp_path):
    """On data with cameras, all-cameras would count the easy matches from the query's own camera."""
    done = check("night600", without_matches(tmp_path), *SMALL, status=1)
    assert "all-cameras" not in done.stdout
    assert "look at the identities and cameras in the names (cameras read: 1, 2)" in done.stdout


def test_one_camera_is_enough_for_the_all_cameras_protocol(tmp_path):
    root = without_cameras(tmp_path)
    done = check("night600", root, *SMALL, "--config.eval.protocol", "all-cameras")
    assert "queries have a match among 6, all-cameras" in done.stdout
    assert check_run(small_config(tmp_path, eval__protocol="all-cameras"), tmp_path / "run").records.targets


def test_check_reads_all_data_that_a_config_file_names(tmp_path):
    """Training, test and auxiliary images are read, and a missing teacher checkpoint is a fault too."""
    write_night(tmp_path / "night")
    write_images(tmp_path / "aux", range(8))
    (tmp_path / "own.py").write_text(
        "from nrsrd_jax import config\n\n\ndef get_config(variant='baseline'):\n    c = config.get_config(variant)\n"
        f"    c.data.root, c.aux.bright_root = {str(tmp_path / 'night')!r}, {str(tmp_path / 'aux')!r}\n"
        "    c.train.batch_size, c.train.instances, c.teacher.checkpoint = 16, 2, 'nowhere'\n    return c\n"
    )
    done = check("--config", f"{tmp_path / 'own.py'}:mdl")
    assert [line for line in done.stdout.splitlines() if line.endswith(":")] == ["night600:", "aux.bright_root:"]
    assert done.stdout.splitlines()[-1].startswith("0 faults")
    assert "train a teacher with" in check(f"--config={tmp_path / 'own.py'}:nrsrd", status=1).stdout
    (tmp_path / "aux/0001_c1_000000.jpg").write_bytes(b"")
    assert "fault: " + str(tmp_path / "aux/0001_c1") in check("--config", f"{tmp_path / 'own.py'}:mdl", status=1).stdout
    check("--config", f"{tmp_path / 'own.py'}:baseline")


def test_wrong_and_missing_arguments_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data.name is 'crop'; choose one of .*, or crops for a pretraining"):
        check("crop", tmp_path)
    with pytest.raises(InputError, match=r"eval.protocol is 'x'; choose one of"):
        check("night600", tmp_path, "--config.eval.protocol=x")
    for arguments in ((), ("night600",), ("night600", tmp_path, "--config.data.nope=1")):
        check(*arguments, status=2)


def test_a_fix_list_that_cannot_be_written_is_refused_before_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("nrsrd_jax.check.check", pytest.fail)
    with pytest.raises(InputError, match=r"--fix-list .* is a folder; name a file"):
        check("night600", write_night(tmp_path / "night"), "--fix-list", tmp_path)


def test_a_tuple_option_that_is_given_twice_is_refused(tmp_path, capsys):
    check("night600", tmp_path, "--config.image_size=32,16", "--config.image_size", "64,32", status=2)
    message = "error: --config.image_size is given 2 times; give it once, with commas between its numbers\n"
    assert capsys.readouterr().err == message


def test_a_data_set_without_training_images_is_a_fault(tmp_path):
    write_images(tmp_path / "query/1", [1], cameras=(1,))
    write_images(tmp_path / "gallery/1", [1], cameras=(2,))
    assert "fault: there are no training images" in check("folders", tmp_path, status=1).stdout


def test_check_warns_if_frame_numbers_are_read_as_cameras(tmp_path):
    write_images(tmp_path, range(4), cameras=range(3001, 3020))
    assert "warning: 19 cameras" not in check("bright", tmp_path, *SMALL, status=1).stdout
    write_images(tmp_path, range(8), cameras=range(3001, 3061), frames=1)
    assert "warning: 60 cameras for" in check("bright", tmp_path, *SMALL).stdout


def test_named_pipes_and_eps_files_are_refused_whatever_their_suffix(tmp_path):
    """Reading a named pipe would block, and Pillow would start Ghostscript for an EPS file."""
    folder = write_night(tmp_path) / "bounding_box_train"
    os.mkfifo(folder / "0001_c1_pipe.jpg")
    (folder / "0001_c1_eps.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 64\n%%EndComments\nshowpage\n"
    )
    done = check("night600", tmp_path, status=1)
    assert "0001_c1_pipe.jpg: not a regular file" in done.stdout
    assert "0001_c1_eps.jpg: cannot identify image file" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="only POSIX file names can hold any bytes")
def test_a_file_name_may_hold_any_bytes(tmp_path):
    root = write_night(tmp_path)
    name = os.path.join(os.fsencode(root), b"bounding_box_train", b"0001_c1_\xff\n\x1b[31m.jpg")
    with open(name, "wb") as file:
        file.write(b"no image")
    done = check("night600", root, status=1)
    assert "\\x1b[31m" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: big_png(path, 5000, 5000), f"more than the {MAX_PIXELS} that a crop may have"),
    (lambda path: big_png(path, 2**31 - 1, 2**31 - 1), "cannot read the image"),
    (lambda path: Image.new("F", (4, 4)).save(path, "TIFF"), "it is not JPEG, PNG, WebP or BMP"),
])  # fmt: skip
def test_files_that_cannot_be_crops_are_refused_by_name(tmp_path, make, message):
    make(tmp_path / "a.png")
    with pytest.raises(InputError, match=message) as refusal:
        decode(tmp_path / "a.png", (4, 4), "bilinear")
    assert "a.png" in str(refusal.value)


def test_too_few_identities_are_a_fault_also_without_a_batch_size(tmp_path):
    root = write_night(tmp_path / "night")
    message = "fault: the training images show 8 identities, but a batch of 64 takes 16 with 4 images each"
    assert message in check("night600", root, status=1).stdout
    check("night600", root, *SMALL)


def test_crops_without_labels_are_counted_and_each_unreadable_one_is_a_fault(tmp_path):
    """No identities are counted, and a pretraining can leave out the images of the fix list."""
    write_images(tmp_path / "crops/monday", range(8), cameras=(1,), frames=1)
    good = check("crops", tmp_path / "crops").stdout.splitlines()
    assert good[0] == "8 crops without labels"
    assert good[-1] == "0 faults, 0 warnings"
    (tmp_path / "crops/cut.jpg").write_bytes(b"")
    (tmp_path / "list.csv").write_text("path\ncrops/cut.jpg\ncrops/monday/0001_c1_000000.jpg\n")
    for root, count in (("crops", 9), ("list.csv", 2)):
        lines = check("crops", tmp_path / root, "--fix-list", tmp_path / "bad.txt", status=1).stdout.splitlines()
        assert lines[0] == f"{count} crops without labels"
        (fault,) = [line for line in lines if line.startswith("fault: ")]
        assert fault.startswith(f"fault: {tmp_path}/crops/cut.jpg: ")
    pretraining = "--config=dino:small", "--config.train.batch_size=8", f"--config.data.root={tmp_path / 'crops'}"
    assert "cut.jpg" in check(*pretraining, status=1).stdout
    check(*pretraining, f"--config.data.exclude={tmp_path / 'bad.txt'}")
    few = check(*pretraining, f"--config.data.exclude={tmp_path / 'bad.txt'}", "--config.train.batch_size=16", status=1)
    assert "fault: there are 8 images, fewer than train.batch_size 16" in few.stdout
    # A pretraining needs no second identity.
    write_images(tmp_path / "one", range(1), frames=8)
    check("bright", tmp_path / "one", *pretraining[:2])
