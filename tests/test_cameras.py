"""The camera in a file name is a separate field, which is read completely or refused."""

import pytest

from nrsrd_jax.data import datasets
from nrsrd_jax.errors import InputError

NIGHT = ("bounding_box_train/1_c1_0.jpg", "query/1_c1_0.jpg", "bounding_box_test/1_c2_0.jpg")


def touch(root, *names):
    """Create empty files in `root` and return it. Readers only look at names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_letters_in_a_random_name_are_not_a_camera(tmp_path, capsys):
    """The c4 in 7c4a, the c123 in a UUID and the c4 in a MAC address are not cameras."""
    names = (
        "00-1b-c4-00-11-22.jpg",
        "x_00-1B-C4-00-11-22_7.jpg",
        "001b.c400.1122.jpg",
        "5eda92d8-64ac-c123-d707-107e855c3844.jpg",
        "7c4a.jpg",
        "xc3.jpg",
        "c3x.jpg",
    )
    data = datasets.read_dataset("folders", touch(tmp_path, *(f"train/a/{name}" for name in names), "train/b/c.jpg"))
    assert set(data.train.cameras) == {0}
    assert (
        "no file name has a camera as a separate field (c3, cam3): every image has camera 0" in capsys.readouterr().out
    )


@pytest.mark.parametrize(("name", "camera"), [
    ("c3", 3), ("x-CAM012.y", 12), ("0001_c013_4", 13), ("a c2 b", 2), ("0001-c3-000", 3), ("1-c3", 3), ("1.c3.07", 3),
    ("x_CAM03_1", 3),
])  # fmt: skip
def test_a_camera_is_a_separate_field_with_all_its_digits_between_any_separators(tmp_path, name, camera):
    assert datasets.read_dataset("folders", touch(tmp_path, f"train/a/{name}.jpg")).train.cameras.tolist() == [camera]


def test_two_cameras_in_a_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="1 of 1 file names do not have one camera"):
        datasets.read_dataset("folders", touch(tmp_path, "train/a/c1_c2.jpg"))


# A reader that stops behind the first digits would find camera 1 in each of these names.
HALVES = ["1_c1-2.jpg", "1_c1.5.jpg", "1_cam1.5.jpg", "cam1-2_a.jpg", "1_c1s1-2.jpg", "1_c1,5.jpg"]


@pytest.mark.parametrize("name", HALVES)
def test_part_of_a_camera_field_is_not_read_as_a_camera(tmp_path, name):
    official = {
        "market1501": (NIGHT, "bounding_box_train"), "night600": (NIGHT, "bounding_box_train"),
        "rgbnt201": (("train_171/RGB/1_cam1.jpg", "test/RGB/1_cam1.jpg"), "train_171/RGB"),
        "knight": (("Person/2/cam1_0.jpg",), "Person/2"),
        "bright": (("bounding_box_train/1_c1_0.jpg",), "bounding_box_train"),
    }  # fmt: skip
    for source, (usual, home) in official.items():
        with pytest.raises(InputError, match="no identity and camera in its name"):
            datasets.read_dataset(source, touch(tmp_path / source, *usual, f"{home}/{name}"))
