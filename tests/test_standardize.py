"""Test the choice of features and their normalisation by camera or brightness during evaluation."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from people import run, small_config, small_model, write_night
from tensors import random_variables

from nrsrd_jax.build import check_model
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import read_metrics
from nrsrd_jax.options import read_options
from nrsrd_jax.recipes import RECIPES
from nrsrd_jax.retrieval import Embedder, standardize_groups
from nrsrd_jax.retrieval.embedding import default_feature
from nrsrd_jax.retrieval.result import evaluate_run, full_table
from nrsrd_jax.retrieval.standardize import brightness_groups, quantile_groups
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


def features(count, seed=0, width=5):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@given(st.floats(0.01, 100), st.floats(-100, 100))
def test_normalisation_removes_the_scale_and_shift_of_a_camera(scale, shift):
    """Scale and shift all features of one camera. The normalised features stay the same."""
    query, gallery, cameras = features(10), features(30, 1), np.arange(30) % 3
    plain = standardize_groups(query, gallery, cameras[:10], cameras)
    moved = [x.astype(np.float64) for x in (query, gallery)]
    for x, camera in zip(moved, (cameras[:10], cameras), strict=True):
        x[camera == 1] = x[camera == 1] * scale + shift
    for ours, theirs in zip(standardize_groups(*moved, cameras[:10], cameras), plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_groups_get_mean_0_and_deviation_1_and_small_groups_use_all_images():
    # Far from 0, a mean that is not subtracted shows.
    gallery, cameras = features(40) + 100, np.repeat([1, 2, 3], [20, 17, 3])
    _, new = standardize_groups(gallery[:0], gallery, cameras[:0], cameras)
    for camera in (1, 2):
        np.testing.assert_allclose(new[cameras == camera].mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(new[cameras == camera].std(0), 1, atol=1e-4)
    np.testing.assert_allclose(new[-3:], ((gallery - gallery.mean(0)) / gallery.std(0))[-3:], rtol=1e-3, atol=1e-4)


def test_constant_features_and_no_images_give_finite_numbers():
    # The mean of these numbers is rounded, so their deviation may be a little above 0.
    constant = np.full((12, 3), 0.1, np.float32)
    _, new = standardize_groups(constant[:0], constant, np.zeros(0, int), np.zeros(12, int))
    assert not new.any()
    assert standardize_groups(constant[:0], constant[:0], np.zeros(0), np.zeros(0))[0].shape == (0, 3)


def test_brightness_groups_have_equal_sizes():
    luminance = np.arange(40.0)
    query, gallery = brightness_groups(luminance[::4], np.delete(luminance, np.s_[::4]))
    assert np.bincount(np.concatenate([query, gallery])).tolist() == [10, 10, 10, 10]
    assert (np.diff(query) >= 0).all()
    # A stored gallery keeps the luminance in float32, which cannot tell these images apart.
    assert set(quantile_groups(0.5 + 1e-12 * np.arange(40))[0].tolist()) == {3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    write_night(place / "night")
    train(small_config(place, train__epochs=1), place / "run", jax.devices()[:1])
    return place


def test_centred_features_lack_a_constant_and_neck_features_are_scaled(trained):
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 16, 3), np.uint8)
    plain, centred, neck = (Embedder.load(trained / "run", feature=name)(images) for name in ("cls", "centred", "neck"))
    constant = plain - centred
    np.testing.assert_allclose(constant, np.broadcast_to(constant[:1], constant.shape), atol=1e-5)
    assert np.abs(constant).max() > 0.01
    slope = (neck[0] - neck[1]) / (centred[0] - centred[1])
    np.testing.assert_allclose(neck[2] - neck[1], slope * (centred[2] - centred[1]), rtol=1e-2, atol=1e-3)
    assert len({Embedder.load(trained / "run", feature=name).fingerprint() for name in ("cls", "centred", "neck")}) == 3


def test_a_backbone_without_a_trained_neck_has_no_centred_features(tmp_path):
    save_weights(tmp_path / "backbone", *small_model(), {})
    with pytest.raises(InputError, match=r"the neck of these weights was never trained.*set eval.feature=cls"):
        Embedder.load(tmp_path / "backbone", feature="centred")


@pytest.mark.parametrize(
    ("backbone", "options", "feature"),
    [
        ("vit_tiny", {}, "centred"),
        ("vit_tiny", {"jpm": True}, "cls"),
        ("bot_resnet_tiny", {}, "cls"),
        ("ide_resnet_tiny", {}, "cls"),
        ("idf_resnet_tiny", {}, "cls"),
        ("pcb_resnet_tiny", {}, "cls"),
    ],
)
def test_auto_is_the_feature_of_the_methods_own_test_or_centred_for_a_trained_vit(backbone, options, feature):
    description = Description(backbone, 0, (96, 32), (0.5,) * 3, (0.5,) * 3, classes=2, **options)
    assert default_feature(description.spec, random_variables(description, 0)) == feature


def test_a_feature_of_a_neck_is_refused_for_a_model_without_a_neck():
    config = RECIPES["pcb"].config()
    config.eval.feature = "neck"
    with pytest.raises(InputError, match="the feature neck needs a neck, which pcb_resnet50 does not have"):
        check_model(read_options(config))


@pytest.mark.parametrize("how", ["camera", "brightness"])
def test_a_normalised_evaluation_is_marked_and_has_its_own_file(trained, how):
    plain, _ = evaluate_run(str(trained / "run"))
    assert (plain["transductive"], plain["feature"], plain["normalize"]) == (False, "cls", "none")
    assert "transductive" not in full_table(plain)
    overrides = {"eval.normalize": how, "eval.feature": "centred"}
    result, files = evaluate_run(str(trained / "run"), overrides=overrides)
    assert result["transductive"]
    assert f"normalised by {how} (transductive)" in full_table(result)
    assert files[0].name.startswith(f"result-centred-{how}-")


def test_training_evaluates_with_the_chosen_features(trained):
    config = small_config(trained, train__epochs=1, eval__feature="centred", eval__normalize="camera")
    score = train(config, trained / "centred", jax.devices()[:1])["mAP"]
    assert read_metrics(trained / "centred")[-1]["mAP"] == score
    result, _ = evaluate_run(str(trained / "centred"))
    assert (result["mAP"], result["feature"]) == (pytest.approx(score), "centred")


def test_compare_uses_the_features_that_each_run_chose(trained, tmp_path):
    # The test above trains this run, but this test may also run alone.
    if not (trained / "centred").exists():
        config = small_config(trained, train__epochs=1, eval__feature="centred", eval__normalize="camera")
        train(config, trained / "centred", jax.devices()[:1])
    done = run("-m", "nrsrd_jax.compare", trained / "run", trained / "centred", cwd=tmp_path)
    words = "centred features, normalised by camera over the whole test set (transductive)"
    assert f"centred is compared by {words}" in done.stdout
    assert "run is compared by cls features\n" in done.stdout
