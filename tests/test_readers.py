"""Test that every layout on disk is read into the right splits, identities and cameras."""

import json

import jax
import numpy as np
import pytest
from people import small_config, write_images, write_night
from PIL import Image

from nrsrd_jax.data import datasets
from nrsrd_jax.data.check import check, report
from nrsrd_jax.errors import InputError
from nrsrd_jax.inputs import read_records, read_targets
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16)).save(path)
    return root


def rows(split):
    return [(path.name, int(pid), int(camera)) for path, pid, camera in zip(*vars(split).values(), strict=True)]


@pytest.mark.parametrize(("protocol", "query", "gallery"), [
    ("", "query", "bounding_box_test"), ("528", "query", "bounding_box_test"),
    ("528-no-distractors", "query", "bounding_box_test-528-noDistractors"),
    ("1000", "query-1000", "bounding_box_test_withDistractors"),
    ("1000-no-distractors", "query-1000", "bounding_box_test-1000-noDistractors"),
])  # fmt: skip
def test_the_protocol_of_nightreid_chooses_query_and_gallery(tmp_path, protocol, query, gallery):
    folders = ("query", "query-1000", "bounding_box_test", "bounding_box_test-528-noDistractors",
               "bounding_box_test_withDistractors", "bounding_box_test-1000-noDistractors")  # fmt: skip
    write(tmp_path, "bounding_box_train/0007L2C1_000.jpg", *(f"{folder}/0001R3C_{folder}.jpg" for folder in folders))
    data = datasets.read_dataset("nightreid", tmp_path, protocol=protocol)
    assert rows(data.train) == [("0007L2C1_000.jpg", 7, 1)]
    assert rows(data.query) == [(f"0001R3C_{query}.jpg", 1, 5)]
    assert rows(data.gallery) == [(f"0001R3C_{gallery}.jpg", 1, 5)]


@pytest.mark.parametrize(
    ("protocol", "cameras", "ids", "alone"),
    [("", (1, 2), {3}, 3), ("1-3", (1, 3), {3, 5}, 1), ("2-3", (2, 3), {3}, 3)],
)
def test_knight_trains_on_even_identities_and_tests_on_a_pair_of_cameras(tmp_path, protocol, cameras, ids, alone):
    home = tmp_path / "NightPerson" / "Person"
    write(home, "2/cam1_001.jpg", "4/cam3_001.jpg", *(f"3/cam{c}_00{c}.jpg" for c in (1, 2, 3)),
          "5/cam1_001.jpg", "5/cam3_001.jpg", "7/cam2_001.jpg")  # fmt: skip
    data = datasets.read_dataset("knight", tmp_path, protocol=protocol)
    assert set(data.train.pids) == {2, 4}
    assert set(data.query.pids) == set(data.gallery.pids) == ids
    assert set(data.query.cameras) == {cameras[0]}
    assert set(data.gallery.cameras) == {cameras[1]}
    shown = report(data, *check(data))
    assert any(line.startswith("not read: 1 of test people from a camera outside the protocol (") for line in shown)
    assert any(line.startswith(f"not read: {alone} of test people without images from both cameras") for line in shown)


def test_an_unknown_protocol_is_refused(tmp_path):
    write_night(tmp_path)
    with pytest.raises(InputError, match=r"data.protocol is '9'; the protocols of night600 are: none, so leave"):
        datasets.read_dataset("night600", tmp_path, protocol="9")
    with pytest.raises(InputError, match="protocols of knight are: 1-2, 1-3, 2-3"):
        datasets.read_dataset("knight", tmp_path, protocol="9")


def test_folders_named_by_identity_are_read(tmp_path):
    """Use names of people, accents, cameras written c3 or cam3 in file names, and several suffixes in any case."""
    write(tmp_path, "train/anna/a_c1_0.jpg", "train/bert/b_cam12.PNG", "query/céline/x-c2.WebP",
          "gallery/céline/c3.bmp", "gallery/anna/c1_4.jpeg")  # fmt: skip
    (tmp_path / "gallery/anna/Thumbs.db").write_text("no image")
    data = datasets.read_dataset("folders", tmp_path)
    assert rows(data.train) == [("a_c1_0.jpg", 0, 1), ("b_cam12.PNG", 1, 12)]
    assert rows(data.query) == [("x-c2.WebP", 2, 2)]
    assert rows(data.gallery) == [("c1_4.jpeg", 0, 1), ("c3.bmp", 2, 3)]
    assert {reason: [path.name for path in paths] for reason, paths in data.skipped.items()} == {
        "hidden or of the system": ["Thumbs.db"]
    }


def test_folders_without_splits_are_training_images_and_may_lack_cameras(tmp_path):
    write(tmp_path, "0012/a.jpg", "0007/b.jpg")
    data = datasets.read_dataset("folders", tmp_path)
    assert rows(data.train) == [("b.jpg", 7, 0), ("a.jpg", 12, 0)]
    assert len(data.query) == 0
    write(tmp_path, "0012/x_c4.jpg")
    with pytest.raises(InputError, match=r"2 of 3 file names do not have one camera .*b.jpg.*x_c4.jpg, camera 4"):
        datasets.read_dataset("folders", tmp_path)


def manifest(root, text):
    write(root, "images/a,1.jpg", "images/b.jpg", "images/c.jpg")
    (root / "m.csv").write_text(text, encoding="utf-8")
    return root / "m.csv"


def test_a_manifest_gives_split_identity_and_camera(tmp_path):
    file = manifest(tmp_path, 'pid,camera,split,path,note\n7,hall,train,"images/a,1.jpg",x\n'
                    "9,yard,query,images/b.jpg,\n9,hall,gallery,images/c.jpg,\n")  # fmt: skip
    data = datasets.read_dataset("manifest", file)
    assert rows(data.train) == [("a,1.jpg", 7, 0)]
    assert rows(data.query) == [("b.jpg", 9, 1)]
    assert data.gallery.paths == (tmp_path / "images/c.jpg",)


def test_a_manifest_may_lack_cameras(tmp_path):
    data = datasets.read_dataset("manifest", manifest(tmp_path, "path,pid,split\nimages/b.jpg,9,query\n"))
    assert rows(data.query) == [("b.jpg", 9, 0)]


def test_excluded_images_are_left_out(tmp_path):
    write_night(tmp_path / "night", identities=3)
    gone = tmp_path / "night/bounding_box_train/0001_c1_000000.jpg"
    bad = tmp_path / "night/query/who.jpg"
    bad.write_bytes(b"")
    (tmp_path / "list.txt").write_text(f"{gone}\n\n{bad}\n")
    data = datasets.read_dataset("night600", tmp_path / "night", exclude=datasets.read_exclude(tmp_path / "list.txt"))
    assert (len(data.train), len(data.query)) == (11, 4)
    (tmp_path / "far.txt").write_text("bounding_box_train/0001_c1_000000.jpg\n")
    with pytest.raises(InputError, match=r"none of the 1 files in data.exclude .* exists"):
        datasets.read_exclude(tmp_path / "far.txt")
    with pytest.raises(InputError, match=r"data.exclude: cannot read the list .*: No such file"):
        datasets.read_exclude(tmp_path / "none.txt")


def test_several_data_sets_train_together_and_are_evaluated_one_by_one(tmp_path):
    """Check that equal numbers in two data sets are different people and different cameras."""
    write_night(tmp_path / "night")
    write_images(tmp_path / "bright", range(4), cameras=(1, 3))
    config = small_config(tmp_path)
    config.data.name = "night600,bright"
    config.data.root = f"{tmp_path / 'night'},{tmp_path / 'bright'}"
    records = read_records(read_options(config))
    assert len(records.train) == 32 + 16
    assert len(records.train.identities) == 8 + 4
    assert len(np.unique(records.train.cameras)) == 2 + 2
    assert list(records.targets) == ["night600"]

    config.eval.data.name, config.eval.data.root = "night600, night600", f"{tmp_path / 'night'}, {tmp_path / 'night'}"
    assert list(read_targets(read_options(config))) == ["night600-1", "night600-2"]
    home = write(tmp_path / "knight", "3/cam1_1.jpg", "3/cam2_1.jpg", "3/cam3_1.jpg", "2/cam1_1.jpg")
    config.eval.data.name, config.eval.data.root = "knight,knight,night600", f"{home},{home},{tmp_path / 'night'}"
    config.eval.data.protocol = "1-2,1-3,"
    assert list(read_targets(read_options(config))) == ["knight-1-2", "knight-1-3", "night600"]
    config.eval.data.protocol = "1-2"
    with pytest.raises(InputError, match=r"3 data sets .* and 1 protocols \(1-2\); give as many"):
        read_targets(read_options(config))
    config.eval.data.update(name="", root="", protocol="")
    config.data.root = str(tmp_path / "night")
    with pytest.raises(InputError, match=r"2 data sets \(night600,bright\), but 1 roots"):
        read_records(read_options(config))


def test_training_on_two_sets_is_evaluated_on_two_others(tmp_path):
    write_night(tmp_path / "night")
    write_images(tmp_path / "bright", range(4))
    write_night(tmp_path / "other")
    config = small_config(tmp_path, train__epochs=1)
    config.data.name, config.data.root = "night600,bright", f"{tmp_path / 'night'},{tmp_path / 'bright'}"
    config.eval.data.name, config.eval.data.root = "night600,market1501", f"{tmp_path / 'night'},{tmp_path / 'other'}"
    scores = train(config, tmp_path / "run", jax.devices()[:1])
    logged = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    parts = [logged["night600/mAP"], logged["market1501/mAP"]]
    assert scores["mAP"] == logged["mAP"] == pytest.approx(np.mean(parts))
    assert scores["queries"] == 8
    result, _ = evaluate_run(str(tmp_path / "run"))
    assert [row["mAP"] for row in result["targets"].values()] == pytest.approx(parts)
    other = datasets.read_dataset("market1501", tmp_path / "other")
    assert result["targets"]["market1501"]["gallery_list_sha256"] == other.gallery.hash()


@pytest.mark.parametrize("name", ["0001-0002_c1_0.jpg", f"{10**20}_c1_0.jpg", "person-1_c1_0.jpg"])
def test_a_file_name_without_an_identity_is_refused(tmp_path, name):
    write(write_night(tmp_path), f"bounding_box_train/{name}")
    with pytest.raises(InputError, match="no identity and camera in its name, as night600 writes them"):
        datasets.read_dataset("night600", tmp_path)
