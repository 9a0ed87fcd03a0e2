"""Test the images, normalisation and loss of a train step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from people import small_config, write_images, write_night

from nrsrd_jax.data_options import Data
from nrsrd_jax.inputs import pixel_statistics
from nrsrd_jax.losses import TERMS, consistency_loss
from nrsrd_jax.models import create_model, initialise
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.step import Preparation, Teacher, make_objective

pytestmark = pytest.mark.slow

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
USUAL = {"flip": 0.5, "pad": 10, "erasing": 0.5, "degradation": {}}


def batch(dark=False, count=32):
    images = np.random.default_rng(0).integers(1, 256, (count, 32, 16, 3), np.uint8)
    domain = {"images": images, "labels": np.arange(count) // 4}
    return {"real": domain, "aux": domain | ({"dark_images": images // 4} if dark else {})}


def prepare(dark, **options):
    teacher = Teacher(create_model("vit_tiny", classes=5), **PLAIN)
    inputs = Preparation(**PLAIN, **USUAL | options)(jax.random.key(0), batch(dark), teacher)
    return {name: np.asarray(images) for name, images in inputs.items()}


def test_teacher_and_student_see_the_same_flip_and_crop():
    inputs = prepare(dark=True, erasing=0.0)
    np.testing.assert_allclose(inputs["aux"], np.floor(inputs["teacher"] * 255 / 4 + 1e-3) / 255, atol=1e-6)
    # The images were flipped or moved.
    assert not np.allclose(inputs["teacher"], batch()["aux"]["images"] / 255)


def test_only_the_students_images_are_erased():
    inputs = prepare(dark=True, erasing=1.0)
    assert inputs["teacher"].min() >= 0
    assert inputs["teacher"].max() <= 1
    # Erased areas hold Gaussian noise, some of which is negative.
    for name in ("aux", "real"):
        assert (inputs[name] < 0).any((1, 2, 3)).all()


def test_without_dark_images_the_student_sees_degraded_ones():
    inputs = prepare(dark=False, erasing=0.0, pad=0, degradation={"preset": "low_noise"})
    assert inputs["aux"].mean() < 0.6 * inputs["teacher"].mean()
    assert inputs["real"].mean() == pytest.approx(inputs["teacher"].mean(), rel=1e-5)


def test_the_bright_view_shows_the_dark_images_and_changes_no_other_input():
    plain, both = prepare(dark=True), prepare(dark=True, bright=True)
    for name in plain:
        np.testing.assert_array_equal(plain[name], both[name])
    assert both.keys() - plain.keys() == {"bright"}
    # The teacher's preparation is that of the student here.
    np.testing.assert_array_equal(both["bright"], both["teacher"])
    own = prepare(dark=True, bright=True, erasing=0.0, brighten=0.9)
    assert own["bright"].mean() > 1.2 * own["teacher"].mean()


def test_a_curriculum_darkens_from_epoch_to_epoch_until_the_light_of_the_preset():
    still = {"flip": 0.0, "pad": 0, "erasing": 0.0, "degradation": {"preset": "low_noise"}}

    def inputs(epoch, curriculum):
        preparation = Preparation(**PLAIN, **still, curriculum=curriculum)
        return preparation(jax.random.key(0), batch() | {"epoch": np.int32(epoch)})

    usual = inputs(0, 0)
    means = [inputs(epoch, 4)["aux"].mean() for epoch in range(6)]
    assert means[:5] == sorted(means[:5], reverse=True)
    assert len(set(np.asarray(means[:5]).tolist())) == 5
    for epoch in (4, 5, 100):
        np.testing.assert_allclose(inputs(epoch, 4)["aux"], usual["aux"], atol=1.1 / 255)
    # Only the auxiliary images change.
    np.testing.assert_array_equal(inputs(0, 4)["real"], usual["real"])


def test_consistency_compares_the_models_own_views_and_the_bright_view_has_no_gradient():
    model = create_model("vit_tiny", classes=2, aux_classes=2, depth=1, drop_path=0.0)
    variables = jax.jit(functools.partial(initialise, model, image_size=(32, 16)))(key=jax.random.key(0))
    views = jax.random.normal(jax.random.key(1), (3, 4, 32, 16, 3))
    inputs, labels = dict(zip(("real", "aux", "bright"), views, strict=True)), jnp.array([0, 0, 1, 1])
    objective = make_objective(model, {"consistency": 2.0})

    def loss(params, inputs):
        given = params, variables["batch_stats"], inputs, {"real": labels, "aux": labels}, jax.random.key(2), None
        return objective(*given)

    (value, (_, metrics)), (gradient, moved) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(
        variables["params"], inputs
    )
    dark, bright = (model.apply(variables, inputs[name])["parts"][0]["features"] for name in ("aux", "bright"))
    np.testing.assert_allclose(metrics["consistency"], consistency_loss(dark, bright), rtol=1e-4)
    assert value == 2 * metrics["consistency"]
    assert any(leaf.any() for leaf in jax.tree.leaves(gradient))
    assert moved["aux"].any()
    assert not moved["bright"].any()


def test_student_and_teacher_have_their_own_normalisation():
    teacher = Teacher(create_model("vit_tiny", classes=5), mean=(0.5,) * 3, std=(0.5,) * 3)
    still = {"flip": 0.0, "pad": 0, "erasing": 0.0, "degradation": {}}
    preparation = Preparation(mean=(0.1, 0.2, 0.3), std=(0.1, 0.2, 0.4), **still)
    inputs = preparation(jax.random.key(0), batch(), teacher)
    images = batch()["aux"]["images"] / 255
    np.testing.assert_allclose(inputs["teacher"], (images - 0.5) / 0.5, atol=1e-6)
    np.testing.assert_allclose(inputs["real"], (images - [0.1, 0.2, 0.3]) / [0.1, 0.2, 0.4], atol=1e-5)


def test_student_and_teacher_have_their_own_brightening():
    still = {"flip": 0.0, "pad": 0, "erasing": 0.0, "degradation": {}, "brighten": 0.8}
    dark = batch(dark=True)
    teacher = Teacher(create_model("vit_tiny", classes=5), **PLAIN, brighten=0.7)
    inputs = Preparation(**PLAIN, **still)(jax.random.key(0), dark, teacher)
    sources = {"real": ("real", "images", 0.8), "aux": ("aux", "dark_images", 0.8), "teacher": ("aux", "images", 0.7)}
    for name, (domain, key, level) in sources.items():
        images = dark[domain][key] / 255
        gamma = np.log(level) / np.log(images.mean((1, 2, 3), keepdims=True))
        np.testing.assert_allclose(inputs[name], images**gamma, atol=1e-5)


def test_pixel_statistics_are_measured_after_brightening():
    images = np.random.default_rng(0).integers(0, 60, (20, 32, 16, 3), np.uint8)
    mean, _ = pixel_statistics(Data(mean="dataset", brighten=0.4), images)
    np.testing.assert_allclose(mean, 0.4, atol=0.05)


def test_pixel_statistics_are_measured_on_the_training_images():
    measured = Data(mean="dataset", std="dataset")
    images = np.random.default_rng(0).integers(0, 200, (20, 32, 16, 3), np.uint8)
    mean, std = pixel_statistics(measured, images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)) / 255, atol=1e-4)
    np.testing.assert_allclose(std, images.std((0, 1, 2)) / 255, atol=1e-4)
    assert pixel_statistics(Data(mean="dataset", std="0.1,0.2,0.3"), images)[1] == (0.1, 0.2, 0.3)
    # Black images must not lead to a division by zero.
    assert pixel_statistics(measured, images * 0)[1] == (0.0039,) * 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_loss_and_its_gradients_are_finite_for_extreme_inputs(dtype):
    """Use identical images, attention queries of length 0 in the last block, and a teacher that is certain."""
    student = create_model("vit_tiny_ics", classes=2, aux_classes=2, depth=1, norm_ratio=NormRatio(), dtype=dtype)
    teacher_model = create_model("vit_tiny", classes=2, depth=1, dtype=dtype)
    variables, teacher_variables = (
        jax.jit(functools.partial(initialise, model, image_size=(32, 16)))(key=jax.random.key(0))
        for model in (student, teacher_model)
    )
    teacher_variables["params"]["classifier"]["kernel"] *= 1e6
    inputs = dict.fromkeys(("real", "aux", "teacher", "bright"), jnp.full((4, 32, 16, 3), 0.5))
    labels = dict.fromkeys(("real", "aux"), jnp.array([0, 0, 1, 1]))
    # These are all the losses that a ViT has.
    weights = {name: 1.0 for name, term in TERMS.items() if not term.own and name != "center_real"}
    objective = make_objective(student, weights, teacher=Teacher(teacher_model, **PLAIN))
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    qkv = variables["params"]["base"]["blocks_0"]["attn"]["qkv"]
    # The attention queries are random at first, then zero.
    for kernel in (qkv["kernel"], qkv["kernel"].at[:, :192].set(0)):
        qkv["kernel"] = kernel
        (loss, (_, metrics)), grads = gradient(
            variables["params"], variables["batch_stats"], inputs, labels, jax.random.key(1), teacher_variables
        )
        assert np.isfinite(loss)
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit_tiny_ics"])
def test_one_pass_over_both_domains_equals_two_passes(backbone):
    """Check that each domain is normalised by itself, and that running statistics are updated domain by domain."""
    model = create_model(backbone, classes=3, aux_classes=4, depth=2, drop_path=0.0)
    variables = jax.jit(functools.partial(initialise, model, image_size=(32, 16)))(key=jax.random.key(0))
    variables["batch_stats"] = jax.tree.map(lambda x: x + 0.5, variables["batch_stats"])
    real, aux = jax.random.normal(jax.random.key(1), (2, 6, 32, 16, 3)) * jnp.array([1, 3])[:, None, None, None, None]

    apply = jax.jit(
        lambda variables, images, domains: model.apply(
            variables, images, train=True, mutable=["batch_stats"], domains=domains
        ),
        static_argnums=2,
    )
    out, updates = apply(variables, jnp.stack([real, aux], axis=1).reshape(-1, *real.shape[1:]), 2)
    for index, images in enumerate((real, aux)):
        alone, moved = apply(variables, images, 1)
        (both,), (single,) = out["parts"], alone["parts"]
        for name in ("features", "neck"):
            np.testing.assert_allclose(both[name][index::2], single[name], atol=2e-5)
        for domain in ("real", "aux"):
            np.testing.assert_allclose(both["logits"][domain][index::2], single["logits"][domain], atol=2e-5)
        variables = variables | moved
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), updates, moved)


def test_training_with_dark_images_from_disk_works(tmp_path):
    from nrsrd_jax.training import train

    write_night(tmp_path / "night")
    write_images(tmp_path / "aux", range(200, 210))
    write_images(tmp_path / "dark", range(200, 209))
    config = small_config(tmp_path, "nra_mdl", aux__dark_root=str(tmp_path / "dark"), train__epochs=1)
    assert 0 < train(config, tmp_path / "run", jax.devices()[:1])["mAP"] <= 1
