"""Test that every layout on disk is read into the right splits, identities and cameras."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from people import small_config, write_images, write_night
from PIL import Image

from nrsrd_jax.data import datasets
from nrsrd_jax.data.readers import LAYOUTS
from nrsrd_jax.errors import InputError
from nrsrd_jax.inputs import read_records, read_targets
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.training import train


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
    ("protocol", "cameras", "ids"), [("", (1, 2), {3}), ("1-3", (1, 3), {3, 5}), ("2-3", (2, 3), {3})]
)
def test_knight_trains_on_even_identities_and_tests_on_a_pair_of_cameras(tmp_path, protocol, cameras, ids):
    home = tmp_path / "NightPerson" / "Person"
    write(home, "2/cam1_001.jpg", "4/cam3_001.jpg", *(f"3/cam{c}_00{c}.jpg" for c in (1, 2, 3)),
          "5/cam1_001.jpg", "5/cam3_001.jpg", "7/cam2_001.jpg")  # fmt: skip
    data = datasets.read_dataset("knight", tmp_path, protocol=protocol)
    assert set(data.train.pids) == {2, 4}
    assert set(data.query.pids) == set(data.gallery.pids) == ids
    assert set(data.query.cameras) == {cameras[0]}
    assert set(data.gallery.cameras) == {cameras[1]}


def test_an_unknown_protocol_is_refused(tmp_path):
    write_night(tmp_path)
    with pytest.raises(InputError, match=r"data.protocol is '9'; of night600 choose one of: it has none"):
        datasets.read_dataset("night600", tmp_path, protocol="9")
    with pytest.raises(InputError, match="of knight choose one of: 1-2, 1-3, 2-3"):
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


@pytest.mark.parametrize(("text", "message"), [
    ("path,pid,camera\n", "m.csv has no column split in its first line .*takes the columns path"),
    ("", "has no column"),
    ("path,pid,camera,split\na,1,1,train\nb,1,1,test\n", "m.csv, line 3: it takes a path, .* not \"test\""),
    ("path,pid,camera,split\na\0,1,1,train\n", "line 2"),
    ("path,pid,camera,split\na,1\n", "line 2: it takes a path"), ('path,pid,camera,split\n"a', "cannot read"),
])  # fmt: skip
def test_an_error_in_a_manifest_names_the_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        datasets.read_dataset("manifest", manifest(tmp_path, text))


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


def test_spaces_in_a_manifest_do_not_make_a_new_identity(tmp_path):
    text = "path,pid,camera,split\nimages/b.jpg, 7 ,1,train\nimages/c.jpg,7,1, train\nimages/b.jpg,-1,1,train\n"
    assert datasets.read_dataset("manifest", manifest(tmp_path, text)).train.pids.tolist() == [7, 7]


def touch(root, *names):
    """Create empty files and return `root`. Readers only look at names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# For each layout: the pattern of its file names (identity, camera, running number, NightReID's camera), their folder,
# and other folders that must exist.
PRINTED = {
    "night600": ("{0:04d}_c{1}_{2:06d}.jpg", "bounding_box_train", ("query", "bounding_box_test")),
    "market1501": ("{0:04d}_c{1}s1_{2:06d}_03.jpg", "bounding_box_train", ("query", "bounding_box_test")),
    "rgbnt201": ("{0:06d}_cam{1}_0_{2:02d}.jpg", "train_171/RGB", ("test/RGB",)),
    "nightreid": ("{0:04d}{3}C1_{2:03d}.jpg", "bounding_box_train", ("query", "bounding_box_test")),
    "knight": ("{0}/cam{1}_{2:03d}.jpg", "Person", ()),
    "bright": ("{0:04d}_c{1:03d}_{2}.jpg", ".", ()),
    "folders": ("{0}/{2}_c{1}.jpg", "train", ()),
    "manifest": ("{0}_{1}_{2}.jpg", ".", ()),
    "msmt17": ("{0:04d}/{0:04d}_000_{1:02d}_0303morning_{2:04d}.jpg", "train", ("test",)),
}
CAMERAS = "L1", "L2", "L3", "R1", "R2", "R3"
people = st.integers(-1, 3) | st.integers(-(10**20), 10**20)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(people, st.integers(0, 20) | st.integers(0, 10**10)), min_size=1, max_size=5), st.data())
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_name_gives_the_identity_and_camera_it_was_made_from_or_is_refused(name, pairs, data):
    """Check that no name is read as another identity or camera. Where names are free, only equality counts."""
    pattern, home, beside = PRINTED[name]
    written = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for i, (pid, camera) in enumerate(pairs):
            written[pattern.format(pid, camera, i, CAMERAS[camera % 6])] = (
                pid,
                camera % 6 if name == "nightreid" else camera,
            )
        touch(root / home, *written)
        touch(root, *(f"{place}/{next(iter(written))}" for place in beside))
        if name == "manifest":
            zero = st.sampled_from(["{}", " {} ", "{}.0"])
            lines = [
                f"{path},{data.draw(zero).format(p)},{data.draw(zero).format(c)},train"
                for path, (p, c) in written.items()
            ]
            (root / "m.csv").write_text("\n".join(["path,pid,camera,split", *lines]))
        for part in ("train", "val", "query", "gallery") if name == "msmt17" else ():
            text = "".join(f"{path} {pid}\n" for path, (pid, _) in written.items())
            (root / f"list_{part}.txt").write_text(text if part == "train" else "")
        try:
            found = datasets.survey(name, root / "m.csv" if name == "manifest" else root)
        except InputError:
            return
        assert not any(len(paths) for reason, paths in found.skipped.items() if "junk" not in reason)
        splits = (found.train, found.query, found.gallery) if name == "knight" else (found.train,)
        back = {
            path.relative_to(root / home).as_posix(): (int(pid), int(camera))
            for split in splits
            for path, pid, camera in zip(split.paths, split.pids, split.cameras, strict=True)
        }
    expected = {path: written[path] for path in back}
    # These layouts replace names that are not numbers by ranks, so only equality can be compared.
    if name in ("folders", "manifest"):
        for i in (0, 1):
            pairs_of = {(values[i], expected[path][i]) for path, values in back.items()}
            assert len(pairs_of) == len({a for a, _ in pairs_of}) == len({b for _, b in pairs_of})
    else:
        assert back == expected


@pytest.mark.parametrize(
    "name", ["10001R3C_0.jpg", "0001_c1x_0.jpg", "0001_c1s1x.jpg", "copy 0001_c1_0.jpg", "a0001_c2.jpg"]
)
def test_a_file_name_must_match_as_a_whole(tmp_path, name):
    home = touch(tmp_path, *(f"bounding_box_train/{n}" for n in ("0001R3C_0.jpg", "0001_c1_0.jpg", name)),
                 "query/0001_c1_0.jpg", "bounding_box_test/0001_c1_0.jpg")  # fmt: skip
    for source in ("market1501", "nightreid"):
        train = datasets.survey(source, home).train
        read = dict(zip([path.name for path in train.paths], train.pids.tolist(), strict=True))
        assert read.get(name) in (None, 10001)


NIGHT = ("bounding_box_train/1_c1_0.jpg", "query/1_c1_0.jpg", "bounding_box_test/1_c2_0.jpg")


def test_skipped_files_are_counted_in_one_line(tmp_path, capsys):
    touch(tmp_path, *NIGHT, *(f"bounding_box_train/{name}" for name in (
        "1_c1_0.TIF", "1_c1_1.tif", "1_c1_0.gif", "none", "._1_c1_0.jpg", "desktop.ini", "-1_c1_0.jpg",
        "@eaDir/1_c1_0.jpg", ".ipynb_checkpoints/1_c1_0-checkpoint.jpg", "__MACOSX/1_c1_0.jpg", "notes/read.txt",
        "1_c1_1.JFIF")))  # fmt: skip
    assert len(datasets.read_dataset("market1501", tmp_path).train) == 2
    (line,) = capsys.readouterr().out.splitlines()
    for part in ("2 with suffix .tif", "1 with suffix .gif", "1 with suffix none", "5 hidden",
                 "1 of identity -1 (junk)", "1 sub-folders without images"):  # fmt: skip
        assert part in line


def test_hidden_folders_are_not_identities(tmp_path):
    people = [f"train/{name}/c1_0.jpg" for name in ("1", "2", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "@EADIR")]
    data = datasets.read_dataset("folders", touch(tmp_path, *people, ".git/train/3/c1_0.jpg"))
    assert data.train.pids.tolist() == [1, 2]
    assert len(data.skipped["hidden or of the system"]) == 5


@pytest.mark.parametrize("name", ["unknown", "UNKNOWN", "nan", "None", "?", "null", "_unknown_"])
def test_folders_of_unknown_people_are_skipped(tmp_path, name):
    data = datasets.read_dataset(
        "folders", touch(tmp_path, "train/1/c1_0.jpg", f"train/{name}/c1_0.jpg", f"train/{name}/c2_0.jpg")
    )
    assert data.train.pids.tolist() == [1]
    assert len(data.skipped["of unknown identity"]) == 2


def test_folders_001_and_1_are_one_person_and_so_are_two_spellings_of_an_accent(tmp_path):
    data = datasets.read_dataset("folders", touch(tmp_path, "train/001/c1.jpg", "train/2/c1.jpg", "gallery/1/c2.jpg"))
    assert data.train.pids.tolist() == [1, 2]
    assert data.gallery.pids.tolist() == [1]
    touch(tmp_path, "train/c\u00e9line/c1.jpg", "gallery/ce\u0301line/c2.jpg", "train/-1/c1.jpg")
    data = datasets.read_dataset("folders", tmp_path)
    assert data.gallery.pids.tolist() == [data.train.pids[0], data.train.pids[2]]
    assert len(data.train) == 3


@pytest.mark.parametrize(("name", "extra"), [
    ("market1501", "bounding_box_train/more/deep/2_c1_0.jpg"), ("folders", "train/1/c1/c1_0.jpg"),
    ("knight", "2/more/cam1_0.jpg"), ("bright", "more/1_c1_0.jpg"), ("folders", "Test/1/c1_0.jpg"),
])  # fmt: skip
def test_images_in_sub_folders_are_refused_with_their_count(tmp_path, name, extra):
    usual = {
        "market1501": NIGHT,
        "folders": ("train/1/c1_0.jpg",),
        "knight": ("2/cam1_0.jpg",),
        "bright": ("1_c1_0.jpg",),
    }[name]
    root = touch(tmp_path, *usual, extra)
    if extra.startswith("Test"):
        (line,) = datasets.read_dataset(name, root).remarks()
        assert line == "not read: 1 in folders other than train, query and gallery"
        return
    with pytest.raises(InputError, match=r"^1 images lie in sub-folders, .* would not be read"):
        datasets.read_dataset(name, root)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "manifest"])
@pytest.mark.parametrize("outside", ["Archive", "Some/Archive"])
def test_the_error_names_the_data_folder_inside_an_unpacked_archive(tmp_path, name, outside):
    inside = {
        "msmt17": ("list_train.txt", "train/1.jpg"), "rgbnt201": ("train_171/RGB/1_cam1.jpg",),
        "knight": ("Person/1/cam1_0.jpg",), "bright": ("1_c1_0.jpg",), "folders": ("Train/1/c1_0.jpg",),
    }.get(name, NIGHT)  # fmt: skip
    home = touch(tmp_path / outside, *inside)
    touch(tmp_path / "__MACOSX" / outside, *inside)
    with pytest.raises(
        InputError, match=rf"{tmp_path} is not the folder of data set {name}: it is in {home}; give that"
    ):
        datasets.read_dataset(name, tmp_path)
    if "/" not in outside:
        touch(tmp_path / "Copy", *inside)
        with pytest.raises(InputError, match=rf"2 folders in it are: {home}, {tmp_path / 'Copy'}; give one"):
            datasets.read_dataset(name, tmp_path)


def test_an_archive_that_is_not_unpacked_is_refused(tmp_path):
    (tmp_path / "m.zip").touch()
    with pytest.raises(InputError, match=r"m.zip is a file: unpack it"):
        datasets.read_dataset("market1501", tmp_path / "m.zip")
