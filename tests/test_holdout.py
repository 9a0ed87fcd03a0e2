"""With data.holdout, people held out of training select the best checkpoint, and training reads no test data."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from people import run, small_config, train_command, write_images, write_night

from nrsrd_jax.checkpoint import load
from nrsrd_jax.data.datasets import Split
from nrsrd_jax.data.protocol import hold_out
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import read_metrics
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


@st.composite
def splits(draw):
    rows = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=60))
    pids, cameras = np.array(rows).T
    return Split(tuple(f"{i}.jpg" for i in range(len(rows))), pids, cameras)


@given(splits(), st.floats(0.01, 0.9))
def test_held_out_people_have_matches_across_cameras_and_are_not_in_training(split, share):
    """Each image is in one of the two sets and no person in both. Every query has a match. The draw is repeatable."""
    try:
        rest, target = hold_out(split, share)
    except InputError:
        several = [pid for pid in split.identities if len(set(split.cameras[split.pids == pid])) > 1]
        needed = max(2, round(share * len(split.identities)))
        assert len(several) < needed or len(split.identities) < needed + 2
        return
    assert set(rest.paths) | set(target.gallery.paths) == set(split.paths)
    assert not set(rest.identities) & set(target.gallery.identities)
    assert target.matched.all()
    pairs = list(zip(target.query.pids, target.query.cameras, strict=True))
    gallery = zip(target.gallery.pids, target.gallery.cameras, strict=True)
    # A person is a query once per camera.
    assert len(set(pairs)) == len(pairs) == len(set(gallery))
    assert hold_out(split, share)[0].paths == rest.paths


def test_training_evaluates_on_held_out_people_and_eval_on_the_test_data(tmp_path):
    root = tmp_path / "night"
    write_night(root, identities=10)
    config = small_config(tmp_path, train__epochs=3, data__holdout=0.2, eval__every=1)
    score = train(config, tmp_path / "run", jax.devices()[:1])["mAP"]
    rows = [row for row in read_metrics(tmp_path / "run") if "mAP" in row]
    # Two people are held out, and each is a query from both cameras.
    assert (len(rows), rows[-1]["mAP"], rows[-1]["queries"]) == (3, score, 4)
    description, _ = load(tmp_path / "run", make_mesh())
    assert description.classes == 8
    assert not any("night600" in name for name in description.provenance["data"])
    result, files = evaluate_run(str(tmp_path / "run"))
    assert (result["queries"], files[0].name) == (4, "result.json")
    assert list(result["targets"]) == ["night600"]
    assert result["selected_by"] == "the best mAP on people held out of training"


def test_too_few_people_to_hold_out_are_refused_before_training(tmp_path):
    write_images(tmp_path / "night/bounding_box_train", range(8), cameras=(1,))
    write_images(tmp_path / "night/query", [100], cameras=(1,))
    write_images(tmp_path / "night/bounding_box_test", [100], cameras=(2,))
    with pytest.raises(InputError, match=r"data.holdout=0.2 needs 2 people with images from several cameras.* are 8 "):
        train(small_config(tmp_path, data__holdout=0.2), tmp_path / "run", jax.devices()[:1])


def test_held_out_people_must_not_be_in_the_auxiliary_domain(tmp_path):
    root = write_night(tmp_path / "night", identities=10)
    options = {"aux.enabled": True, "aux.bright_root": str(root / "bounding_box_train"), "data.holdout": 0.2}
    with pytest.raises(InputError, match=r"aux.bright_root has 8 images of people who are held out"):
        train(small_config(tmp_path, **options), tmp_path / "run", jax.devices()[:1])


def test_the_output_says_that_held_out_people_were_evaluated(tmp_path):
    write_night(tmp_path / "night", identities=10)
    config = small_config(tmp_path, data__holdout=0.2, train__epochs=1)
    done = run(*train_command(config, tmp_path / "run"))
    assert "held out of training for evaluation: 2 people, 4 queries, 8 in the gallery" in done.stdout
    assert " on people held out of training; the run is in" in done.stdout.splitlines()[-1]
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["holdout"] == 0.2
