"""The labelled crops of a gallery can be evaluated, also with queries of people who are not in the gallery."""

import json
import shutil

import numpy as np
import pytest
from people import run, small_config

from nrsrd_jax.errors import InputError
from nrsrd_jax.gallery import embed as embedding
from nrsrd_jax.gallery.evaluation import evaluate_gallery
from nrsrd_jax.gallery.store import Gallery
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval import Embedder, rank_features

pytestmark = pytest.mark.slow

PEOPLE, UNLABELLED = 30, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    """Make a gallery of 30 people seen by two cameras, and 5 crops without a known person.

    Return it and the features of the labelled crops, float32 [60, D].
    """
    embedder = Embedder.load(model)
    place = tmp_path_factory.mktemp("gallery") / "g"
    gallery = Gallery.create(place, embedding.about(embedder, model))
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(PEOPLE, embedder.width))
    # With this much noise some matches are wrong, so the score depends on the order.
    features = np.repeat(centres, 2, 0) + 4 * rng.normal(size=(2 * PEOPLE, embedder.width))
    rows = [
        {"path": f"/{i:02d}.jpg", "person": f"who {i // 2}", "camera": f"c{1 + i % 2}", "brightness": i / 99}
        for i in range(2 * PEOPLE)
    ]
    rows += [{"path": f"/x{i}.jpg", "person": "unknown" if i else None, "camera": "c1"} for i in range(UNLABELLED)]
    gallery.add(rows, np.concatenate([features, rng.normal(size=(UNLABELLED, embedder.width))]))
    return place, features.astype(np.float32)


def options(tmp_path, **chosen):
    return read_options(small_config(tmp_path, **chosen))


def test_each_labelled_crop_is_a_query_and_the_scores_are_those_of_the_features(made, tmp_path):
    gallery, features = made
    people, cameras = np.repeat(np.arange(PEOPLE), 2), np.tile([1, 2], PEOPLE)
    expected = rank_features(features, features, people, people, cameras, cameras)
    result = evaluate_gallery(str(gallery), "", options(tmp_path))
    assert result["mAP"] == pytest.approx(expected.mAP)
    assert 0.1 < result["mAP"] < 0.9
    assert (result["labelled"], result["crops"]) == (2 * PEOPLE, 2 * PEOPLE + UNLABELLED)
    assert set(result["targets"]["gallery"]["by_camera"]) == {"c1", "c2"}
    normalised = evaluate_gallery(str(gallery), "", options(tmp_path, eval__normalize="brightness"))
    assert normalised["transductive"]
    assert normalised["mAP"] != result["mAP"]


def test_queries_of_people_who_are_not_in_the_gallery_are_counted_and_reported(made, tmp_path):
    gallery = shutil.copytree(made[0], tmp_path / "g")
    # Without these crops, camera 2 has not seen two of the people.
    Gallery.open(gallery).table.delete("path IN ('/01.jpg', '/03.jpg')")
    command = ["--gallery", gallery, "--queries", "camera = 'c1'", "--output", tmp_path / "r.json"]
    shown = run("eval.py", *command).stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["queries"], result["queries_without_match"]) == (PEOPLE, 2)
    found = result["targets"]["gallery"]["open_set"]
    assert (found["queries"], found["gallery_people"]) == (2, PEOPLE - 2)
    assert "2 queries of gallery show people who are not in the gallery" in shown
    assert f"{100 * found['searches'][0]['fpir']:.1f} % of them are taken for somebody" in shown
    assert "58 of 63 crops have a person; 5 without a known person left out" in shown


@pytest.mark.parametrize(("queries", "message"), [
    ("camera = 'c9'", "none of the labelled crops of .* fit camera = 'c9'"),
    ("path != ''", "all of the labelled crops of .* fit path != ''"),
    ("nonsense =", "the condition nonsense = does not fit the gallery"),
])  # fmt: skip
def test_a_condition_that_leaves_nothing_to_compare_is_named(made, tmp_path, queries, message):
    with pytest.raises(InputError, match=message):
        evaluate_gallery(str(made[0]), queries, options(tmp_path))


def test_a_gallery_without_labels_says_how_to_label_it(made, tmp_path):
    gallery = shutil.copytree(made[0], tmp_path / "g")
    Gallery.open(gallery).table.delete("person != 'unknown'")
    with pytest.raises(InputError, match=r"no person is known among the 5 crops of .*: label some crops in a table"):
        evaluate_gallery(str(gallery), "", options(tmp_path))


@pytest.mark.parametrize(("flag", "message"), [
    ("--workdir=runs/x", "--workdir does not apply to --gallery"),
    ("--config.eval.flip=True", "--config.eval.flip has no effect with --gallery"),
])  # fmt: skip
def test_options_that_have_no_effect_on_a_gallery_are_refused(made, flag, message):
    assert message in run("eval.py", "--gallery", made[0], flag, status=2).stderr
