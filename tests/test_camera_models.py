"""A model with a vector for each camera (model.sie) embeds crops with their cameras, or refuses them at the start."""

import json
from pathlib import Path

import numpy as np
import pytest
from people import small_model, write_images

from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.data.images import decode
from nrsrd_jax.errors import InputError
from nrsrd_jax.gallery.store import Gallery
from nrsrd_jax.retrieval import Embedder

pytestmark = pytest.mark.slow

PATTERN = r"_c(?P<camera>\d)_"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a model of the cameras 1, 2 and 5, and with crops of the cameras 1 and 2."""
    place = tmp_path_factory.mktemp("sie")
    save_weights(place / "model", *small_model(sie=True, cameras=(1, 2, 5)), {})
    write_images(place / "crops", range(6))
    return place


def test_crops_and_queries_are_embedded_with_the_cameras_in_their_names(place, nrsrd, tmp_path):
    options = "--model", place / "model", "--gallery", tmp_path / "g", "--pattern", PATTERN
    assert "24 crops embedded" in nrsrd("embed", place / "crops", *options)
    table, features = Gallery.open(tmp_path / "g").read()
    images = np.stack([decode(Path(path), (32, 16), "bilinear") for path in table["path"].to_pylist()])
    embedder = Embedder.load(place / "model")
    # Sorted by name, each person has two crops of camera 1 and two of camera 2. The crops have no camera 5, whose
    # vector must give other features.
    own, other = (embedder(images, cameras=np.array(cameras)) for cameras in ([1, 1, 2, 2] * 6, [5] * 24))
    np.testing.assert_allclose(features, own, rtol=1e-4, atol=1e-4)
    assert np.abs(own - other).max() > 0.01

    query = tmp_path / "0009_c5_000000.jpg"
    write_images(tmp_path, [9], cameras=[5], frames=1)
    with pytest.raises(InputError, match=r"0009_c5_000000.jpg is unknown, but this model \(model.sie\)"):
        nrsrd("search", query, "--gallery", tmp_path / "g")
    # The search returns all 24 crops, so that every similarity is compared.
    nrsrd(
        *("search", query, "--gallery", tmp_path / "g"),
        *("--pattern", PATTERN, "--output", tmp_path / "m.json", "--top", "30"),
    )
    found = json.loads((tmp_path / "m.json").read_text())["queries"][0]["matches"]
    feature = embedder(decode(query, (32, 16), "bilinear")[None], cameras=np.array([5]))[0]
    cosines = features @ feature / np.linalg.norm(features, axis=1) / np.linalg.norm(feature)
    assert [match["similarity"] for match in found] == pytest.approx(sorted(cosines, reverse=True), abs=1e-4)


def test_a_crop_is_embedded_again_if_its_camera_is_corrected(place, nrsrd, tmp_path):
    crop = next((place / "crops").iterdir())
    for camera, shown in ((1, "1 crop embedded"), (1, "1 unchanged"), (2, "1 crop embedded")):
        (tmp_path / "list.csv").write_text(f"path,camera\n{crop},{camera}\n")
        printed = nrsrd("embed", tmp_path / "list.csv", "--model", place / "model", "--gallery", tmp_path / "g")
        assert shown in printed


@pytest.mark.parametrize(("pattern", "camera"), [("", "unknown"), (r"_(?P<camera>c\d)_", '"c1"')])
def test_without_known_cameras_no_gallery_is_made(place, nrsrd, tmp_path, pattern, camera):
    words = rf"_c1_000000.jpg is {camera}, but this model \(model.sie\) needs .* one of 1, 2, 5: give it by --pattern"
    with pytest.raises(InputError, match=words):
        nrsrd("embed", place / "crops", "--model", place / "model", "--gallery", tmp_path / "g", "--pattern", pattern)
    assert not (tmp_path / "g").exists()


def test_calibrate_takes_cameras_from_the_table_and_select_refuses_the_model(place, nrsrd, tmp_path):
    rows = [f"{path},{path.name[:4]},{path.name[6]}" for path in (place / "crops").iterdir()]
    (tmp_path / "with.csv").write_text("\n".join(["path,person,camera", *rows]))
    (tmp_path / "without.csv").write_text("\n".join(["path,person", *(row[:-2] for row in rows)]))
    choice = "--model", place / "model", "--output", tmp_path / "c.json", "--fmr", "0.5"
    with pytest.raises(InputError, match=r"unknown, but this model \(model.sie\)"):
        nrsrd("calibrate", *choice, "--same-camera", "--data", tmp_path / "without.csv")
    nrsrd("calibrate", *choice, "--same-camera", "--data", tmp_path / "with.csv")
    with pytest.raises(InputError, match=r"give models without model\.sie"):
        nrsrd("select", place / "crops", "--source", place / "model", "--tuned", place / "model", "--output", "x.csv")
