"""`nrsrd calibrate` on small manifests and data sets: the files that it writes and the input that it refuses."""

import itertools
import json
import sys

import numpy as np
import pytest
from people import run, small_config, small_model, write_images, write_night

from nrsrd_jax import calibrate
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.data.images import decode
from nrsrd_jax.errors import InputError
from nrsrd_jax.retrieval.calibration import load_calibration
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.result import evaluate_run, full_table

pytestmark = pytest.mark.slow

PEOPLE = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with model/, and crops/ of twelve people in cameras 1 and 2, which crops.csv lists."""
    place = tmp_path_factory.mktemp("calibrate")
    save_weights(place / "model", *small_model(1), {})
    write_images(place / "crops", range(PEOPLE), frames=2, suffix=".png")
    rows = [f"crops/{path.name},person {int(path.name[:4])},{path.name[6]}" for path in crops(place)]
    (place / "crops.csv").write_text("\n".join(["path,person,camera", *rows]))
    return place


def crops(place):
    return sorted((place / "crops").glob("*.png"))


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nrsrd calibrate", *map(str, arguments)])
    calibrate.main()


def table(place, change, name="changed.csv"):
    """Write a manifest with the rows of crops.csv, each changed by `change`."""
    header, *rows = (place / "crops.csv").read_text().splitlines()
    (place / name).write_text("\n".join([header, *(change(*row.split(",")) for row in rows)]))
    return place / name


def test_the_rates_in_the_file_match_the_features_of_the_crops(place):
    """The expected rates are computed here from features. The file names its model, and the plot is beside it."""
    done = run(
        *("-m", "nrsrd_jax.calibrate", "--model", place / "model", "--data", place / "crops.csv"),
        *("--output", place / "c.json", "--fmr", "0.2,0.1"),
    )
    assert done.stdout.splitlines()[-1] == f"written to {place / 'c.json'}, {place / 'c.png'}"
    assert not done.stderr
    assert (place / "c.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((place / "c.json").read_text())
    embedder = Embedder.load(place / "model")
    features = embedder(np.stack([decode(path, (32, 16), "bilinear") for path in crops(place)]))
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    names = [(path.name[:4], path.name[6]) for path in crops(place)]
    both = list(itertools.combinations(range(len(names)), 2))
    genuine = [i for i, j in enumerate(both) if names[j[0]][0] == names[j[1]][0] and names[j[0]][1] != names[j[1]][1]]
    impostor = [i for i, j in enumerate(both) if names[j[0]][0] != names[j[1]][0]]
    similarity = np.array([units[i] @ units[j] for i, j in both])
    assert (found["people"], found["genuine_pairs"], found["impostor_pairs"]) == (12, len(genuine), len(impostor))
    assert [row["fmr_wanted"] for row in found["pairs"]] == [0.2, 0.1]
    for row in found["pairs"]:
        # Another batch size rounds differently, and a bin of similarities is 7.6e-6 wide.
        slack = 1.5e-5
        low, high = (np.mean(similarity[impostor] >= row["threshold"] + shift) for shift in (slack, -slack))
        assert low - 1e-8 <= row["fmr"] <= high + 1e-8
        low, high = (np.mean(similarity[genuine] < row["threshold"] + shift) for shift in (-slack, slack))
        assert low - 1e-8 <= row["fnmr"] <= high + 1e-8
        assert row["fnmr_interval"][0] <= row["fnmr"] <= row["fnmr_interval"][1]
    assert {"gallery_people", "top", "threshold", "fpir", "fnir"} <= found["searches"][0].keys()
    load_calibration(place / "c.json").check_model(embedder.identity())
    with pytest.raises(InputError, match="another model"):
        load_calibration(place / "c.json").check_model(Embedder.load(place / "model", flip=True).identity())


def test_a_data_set_is_calibrated_on_its_test_people_and_written_beside_the_model(place, monkeypatch, capsys, tmp_path):
    write_night(tmp_path / "night", identities=3, frames=1)
    write_images(tmp_path / "night/bounding_box_test", range(100, 112), frames=1, seed=5)
    call(monkeypatch, "--model", place / "model", "--data", "night600", tmp_path / "night")
    found = json.loads((place / "model/calibration.json").read_text())
    # There are four queries, and two gallery images of each person.
    assert (found["people"], found["crops"]) == (12, 28)
    assert load_calibration(place / "model").people == 12
    assert "a false-match rate of 0.01 would need 25 people" in capsys.readouterr().out


def test_too_many_cameras_for_rates_by_pair_are_reported():
    told = {"crops": 99, "people": 30, "genuine_pairs": 9, "impostor_pairs": 9, "refused": []}
    assert "21 cameras: rates by pair of cameras are written for at most 20" in calibrate.closing(
        told | {"cameras": 21}
    )
    assert not any(
        "cameras:" in line for cameras in (20, None) for line in calibrate.closing(told | {"cameras": cameras})
    )


def test_copies_and_unknown_people_are_left_out_and_reported(place, monkeypatch, capsys):
    (place / "copy.png").write_bytes(crops(place)[0].read_bytes())
    manifest = table(place, lambda *row: ",".join(row))
    manifest.write_text(manifest.read_text() + "\ncopy.png,person 0,1\nabsent.png,unknown,1\n")
    call(monkeypatch, "--model", place / "model", "--data", manifest, "--output", place / "d.json")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["1 crop of unknown people left out", "1 copy of other crops left out"]
    assert json.loads((place / "d.json").read_text())["crops"] == 4 * PEOPLE


def test_without_cameras_all_pairs_of_a_persons_crops_count(place, monkeypatch):
    manifest = table(place, lambda path, person, _: f"{path},{person},")
    call(monkeypatch, "--model", place / "model", "--data", manifest, "--output", place / "d.json")
    found = json.loads((place / "d.json").read_text())
    assert (found["genuine_pairs"], found["same_camera"]) == (6 * PEOPLE, True)
    assert "cameras" not in found["groups"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda path, person, camera: f"{path},one,{camera}", "the crops show 1 person: add crops of another"),
    (lambda path, person, camera: f"{path},{person},1", "no person has crops of two cameras.*--same-camera"),
    (lambda path, person, camera: f"{path},{path},1", "no person has crops of two cameras"),
    (lambda path, person, camera: f"{path},{path},", "no person has more than one crop"),
    (lambda path, person, camera: f"{path},{len(person) % 2},{camera}", r"2 people are too few .* 0\.1: it needs 9"),
    (lambda path, person, camera: f"{path},unknown,{camera}", "has no crops of known people"),
    (lambda path, person, camera: f"{path},{person},{camera if '_c2' in path else ''}", "line 2: .* is not a camera"),
    (lambda path, person, camera: f"crops/one.png,{person},{camera}", "line 4: .* before, with another label"),
    (lambda path, person, camera: f",{person},{camera}", "line 2: the path is empty"),
    (lambda path, person, camera: f"no/{path},{person},{camera}", r"cannot read the image .*no/crops.*47 more of 48"),
])  # fmt: skip
def test_wrong_labels_are_refused(place, monkeypatch, change, message):
    manifest = table(place, change)
    with pytest.raises(InputError, match=message):
        call(monkeypatch, "--model", place / "model", "--data", manifest, "--output", place / "e.json")
    assert not (place / "e.json").exists()


def test_an_image_labelled_as_two_people_is_named(place, monkeypatch):
    (place / "copy.png").write_bytes(crops(place)[0].read_bytes())
    manifest = table(place, lambda *row: ",".join(row))
    manifest.write_text(manifest.read_text() + "\ncopy.png,person 1,1\n")
    with pytest.raises(InputError, match=r"0000_c1_000000\.png and .*copy\.png are the same picture.*two people"):
        call(monkeypatch, "--model", place / "model", "--data", manifest, "--output", place / "e.json")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--model", "absent", "--data", "crops.csv"], "absent does not exist; give a checkpoint"),
    (["--model", "model", "--data", "absent.csv"], "there is no file absent.csv; give a CSV file"),
    (["--model", "model", "--data", "crops"], "crops is not a manifest; .* --data NAME crops"),
    (["--model", "model", "--data", "night600"], "night600 is not a manifest; .* --data night600 DIR"),
    (["--model", "model", "--data", "night600", "crops"], "crops has no folder bounding_box_train"),
    (["--model", "model", "--data", "night6000", "crops"], "'night6000'; choose one of night600"),
    (["--model", "model", "--data", "a", "b", "c"], "give a manifest .* or the name of a data set"),
    (["--model", "model", "--data", "unlabelled.csv"], "no column person or pid.*path,person,camera"),
    (["--model", "model", "--data", "twice.csv"], "has both columns, person and pid: remove one"),
    (["--model", "model", "--data", "empty.csv"], "lists no crops"),
    (["--model", "model", "--data", "crops.csv", "--feature", "neck"], "the neck of these weights was never trained"),
    (["--model", "model", "--data", "crops.csv", "--fmr", "0.001"], r"12 people are too few .* it needs 78"),
    (["--model", "model", "--data", "crops.csv", "--output", "o.png"], "is the name of the plot; give a name"),
    (["--model", "model", "--data", "crops.csv", "--output", "crops"], "crops is a folder; name a file"),
])  # fmt: skip
def test_wrong_arguments_are_refused(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    (place / "unlabelled.csv").write_text("path,camera\ncrops/a.png,1\n")
    (place / "twice.csv").write_text("path,person,pid\ncrops/a.png,1,1\n")
    (place / "empty.csv").write_text("path,person\n")
    with pytest.raises(InputError, match=message):
        call(monkeypatch, *arguments)


@pytest.mark.parametrize("text", ["0", "1", "2", "-0.1", "nan", "much", "0.1,,0.2", ""])
def test_an_impossible_rate_is_refused(place, monkeypatch, capsys, text):
    with pytest.raises(SystemExit):
        call(monkeypatch, "--model", place / "model", "--data", place / "crops.csv", f"--fmr={text}")
    assert f"argument --fmr: {text}: give rates above 0 and below 1" in capsys.readouterr().err


def test_a_calibration_is_never_written_through_a_link(place, monkeypatch, tmp_path):
    for name in ("calibration.json", "calibration.png"):
        # Another test of this file writes the calibration of this model.
        (place / "model" / name).unlink(missing_ok=True)
        (place / "model" / name).symlink_to(tmp_path / "victim")
        with pytest.raises(InputError, match=f"{name} is a symbolic link; remove it, or name another --output"):
            call(monkeypatch, "--model", place / "model", "--data", place / "crops.csv")
        (place / "model" / name).unlink()
    assert not (tmp_path / "victim").exists()


def test_queries_of_people_who_are_not_in_the_gallery_are_counted(place):
    """They are not counted as errors in mAP or in the table of pairs, and the terminal shows their number."""
    home = place / "open"
    write_night(home / "night", frames=1)
    write_images(home / "night/query", [300, 301, 302], cameras=(1,), frames=1)
    write_images(home / "night/bounding_box_test", range(106, 136), frames=1)
    config = small_config(home, data__cache="none")
    result, files = evaluate_run("", str(place / "model"), str(home / "r.json"), config)
    row = json.loads(files[0].read_text())["targets"]["night600"]
    assert (result["queries"], result["queries_without_match"]) == (7, 3)
    assert (row["open_set"]["queries"], row["open_set"]["gallery_people"]) == (3, 36)
    assert "3 queries of night600 show people who are not in the gallery" in full_table(result)
