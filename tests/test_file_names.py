"""Test that file names give the right identities and cameras, and that other files are skipped or refused."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrsrd_jax.data import datasets
from nrsrd_jax.data.check import EXPECTED
from nrsrd_jax.data.readers import LAYOUTS
from nrsrd_jax.errors import InputError

pytestmark = pytest.mark.slow


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
        assert not any(len(paths) for reason, paths in found.skipped.items() if reason not in EXPECTED)
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
        InputError, match=rf"{tmp_path} is not the folder of data set {name}: it is in {home}; give that folder"
    ):
        datasets.read_dataset(name, tmp_path)
    if "/" not in outside:
        touch(tmp_path / "Copy", *inside)
        with pytest.raises(InputError, match=rf"2 folders in it look like one: {home}, {tmp_path / 'Copy'}; give one"):
            datasets.read_dataset(name, tmp_path)


def test_an_archive_that_is_not_unpacked_is_refused(tmp_path):
    (tmp_path / "m.zip").touch()
    with pytest.raises(InputError, match=r"m.zip is a file: unpack it"):
        datasets.read_dataset("market1501", tmp_path / "m.zip")
