"""The losses equal the official ones in value and gradient, and stay finite where the official ones do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrsrd_jax.losses import (
    consistency_loss,
    dkd_loss,
    id_loss,
    relation_loss,
    spread_loss,
    total_loss,
    triplet_loss,
)


def value_and_gradient(loss, x):
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(x))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    return value, gradient


@pytest.mark.parametrize(("name", "smoothing"), [("ce", 0.0), ("ls", 0.1)])
def test_id_loss_equals_the_official_one(golden, name, smoothing):
    g = golden("losses")
    value, gradient = value_and_gradient(lambda x: id_loss(x, g["labels"], label_smoothing=smoothing), g["logits"])
    np.testing.assert_allclose(value, g[f"{name}_f64"], rtol=1e-6)
    np.testing.assert_allclose(gradient, g[f"{name}_grad"], atol=1e-7)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("form", "margin"), [("soft", None), ("m03", 0.3)])
def test_triplet_loss_equals_the_official_one(golden, form, margin, normalize):
    g = golden("losses")
    name = f"tri_{form}_norm{normalize:d}"

    def loss(x):
        return triplet_loss(x, g["labels"], margin=margin, normalize=normalize)

    value, gradient = value_and_gradient(loss, g["feats"])
    np.testing.assert_allclose(value, g[f"{name}_f64"], rtol=1e-6)
    np.testing.assert_allclose(gradient, g[f"{name}_grad"], atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_triplet_loss_with_identical_rows_equals_the_official_one(golden, normalize):
    g = golden("losses")
    name = f"dup_soft_norm{normalize:d}"
    value, _ = value_and_gradient(lambda x: triplet_loss(x, g["labels"], normalize=normalize), g["dup_feats"])
    # In float32 the distance of a row to its copy is up to 0.02 instead of 0.
    np.testing.assert_allclose(value, g[f"{name}_f64"], rtol=2e-5)
    with jax.enable_x64(True):
        feats = g["dup_feats"].astype(np.float64)
        value, gradient = value_and_gradient(lambda x: triplet_loss(x, g["labels"], normalize=normalize), feats)
        np.testing.assert_allclose(value, g[f"{name}_f64"], rtol=1e-7)
        np.testing.assert_allclose(gradient, g[f"{name}_grad_f64"], atol=1e-6)


@pytest.mark.parametrize(("form", "margin"), [("soft", None), ("m03", 0.3)])
def test_a_tie_sends_the_gradient_to_the_first_row(golden, form, margin):
    g = golden("losses")
    value, gradient = value_and_gradient(lambda x: triplet_loss(x, g["int_labels"], margin=margin), g["int_feats"])
    np.testing.assert_allclose(value, g[f"int_{form}"], rtol=1e-6)
    np.testing.assert_allclose(gradient, g[f"int_{form}_grad"], atol=1e-6)


def test_triplet_loss_by_hand():
    features = jnp.array([[0.0], [1.0], [3.0], [7.0]])
    labels = jnp.array([0, 0, 1, 1])
    # The farthest positives of the anchors are at 1, 1, 4, 4; their nearest negatives are at 3, 2, 2, 6.
    np.testing.assert_allclose(triplet_loss(features, labels, margin=0.5), (0 + 0 + 2.5 + 0) / 4, rtol=1e-6)
    gaps = np.array([1 - 3, 1 - 2, 4 - 2, 4 - 6])
    np.testing.assert_allclose(triplet_loss(features, labels), np.log1p(np.exp(gaps)).mean(), rtol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("features", [np.zeros((8, 4)), np.ones((8, 4)), np.full((8, 4), 1e4)])
def test_triplet_loss_is_finite_when_all_rows_are_identical(features, normalize):
    labels = jnp.arange(8) // 4
    value_and_gradient(lambda x: triplet_loss(x, labels, normalize=normalize), features.astype(np.float32))


def test_an_anchor_without_a_negative_adds_nothing_to_the_triplet_loss():
    value, gradient = value_and_gradient(lambda x: triplet_loss(x, jnp.zeros(3, int)), np.eye(3, dtype=np.float32))
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_loss_equals_the_published_code(golden, temperature):
    g = golden("losses")
    name = f"dkd_T{temperature:.0f}"

    def loss(x):
        # The published code of DKD lacks the factor of the paper's eq. 6.
        return dkd_loss(x, g["teacher_logits"], g["labels"], temperature=temperature, nckd_weight="none")

    value, gradient = value_and_gradient(loss, g["logits"])
    np.testing.assert_allclose(value, g[f"{name}_f64"], rtol=1e-6)
    np.testing.assert_allclose(gradient, g[f"{name}_grad"], atol=1e-7)


def test_dkd_loss_of_equation_6_by_hand():
    teacher, student = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.25, 0.5])
    tckd = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    nckd = 0.6 * np.log(0.6 / (1 / 3)) + 0.4 * np.log(0.4 / (2 / 3))
    value = dkd_loss(jnp.log(student)[None], jnp.log(teacher)[None], jnp.array([0]), alpha=2.0, beta=3.0)
    np.testing.assert_allclose(value, 2 * tckd + 3 * 0.5 * nckd, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("nckd_weight", ["target", "none"])
# In float32 the softmax of 200 against 0 is exactly 1, and the logarithm of the rest would be −∞.
@pytest.mark.parametrize(("teacher", "student"), [(200.0, 0.0), (0.0, 200.0), (200.0, -200.0), (1e4, 1e4), (0.0, 0.0)])
def test_dkd_loss_is_finite_when_teacher_or_student_is_certain(teacher, student, nckd_weight, dtype):
    one_hot = np.eye(5, dtype=np.float32)[:3]
    labels = jnp.arange(3)
    teacher_logits, student_logits = jnp.asarray(teacher * one_hot, dtype), jnp.asarray(student * one_hot, dtype)
    value_and_gradient(lambda x: dkd_loss(x, teacher_logits, labels, nckd_weight=nckd_weight), student_logits)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 12]), st.sampled_from(["target", "none"]))
def test_dkd_loss_is_never_negative_and_zero_for_a_perfect_student(seed, classes, nckd_weight):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(2, 6, classes)).astype(np.float32) * 3
    labels = rng.integers(classes, size=6)
    assert dkd_loss(student, teacher, labels, nckd_weight=nckd_weight) > -1e-5
    np.testing.assert_allclose(dkd_loss(teacher, teacher, labels, nckd_weight=nckd_weight), 0, atol=1e-5)
    shifted = dkd_loss(student + 7, teacher - 5, labels, nckd_weight=nckd_weight)
    np.testing.assert_allclose(shifted, dkd_loss(student, teacher, labels, nckd_weight=nckd_weight), atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_relation_loss_is_zero_for_rotated_shifted_and_scaled_features_of_the_teacher(seed, scale):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(6, 4)).astype(np.float32)
    turned = teacher @ np.linalg.qr(rng.normal(size=(4, 4)))[0].astype(np.float32)
    assert relation_loss(scale * turned + 3 * scale, teacher) < 1e-6
    assert relation_loss(rng.normal(size=(6, 9)), teacher) > 1e-3


def test_relation_loss_by_hand():
    student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [9.0], [9.0]])
    # The distances of 1-2, 1-3 and 2-3 are 1, 2, 1 with mean 4/3, and 9, 9, 0 with mean 6. Each is divided by its mean.
    differences = np.array([0.75 - 1.5, 1.5 - 1.5, 0.75 - 0])
    np.testing.assert_allclose(relation_loss(student, teacher), np.square(differences).mean() / 2, rtol=1e-5)


@pytest.mark.parametrize("students", [np.zeros((4, 3)), np.ones((4, 3)), np.eye(4)])
@pytest.mark.parametrize("teachers", [np.zeros((4, 2)), np.full((4, 2), 1e4), np.eye(4)])
def test_relation_loss_is_finite_when_all_rows_are_identical(students, teachers):
    value_and_gradient(lambda x: relation_loss(x, jnp.asarray(teachers, jnp.float32)), students.astype(np.float32))


def test_relation_loss_of_one_image_is_zero():
    assert relation_loss(jnp.ones((1, 3)), jnp.ones((1, 3))) == 0


def test_consistency_loss_by_hand():
    dark, bright = jnp.array([[3.0, 4.0], [0.0, -7.0]]), jnp.array([[5.0, 0.0], [0.0, 2.0]])
    # The cosines are 3/5 and −1. The gradient of 1 − cos at (3, 4) is (−16, 12)/125, and a half of it in the mean.
    value, gradient = value_and_gradient(lambda x: consistency_loss(x, bright), dark)
    np.testing.assert_allclose(value, (0.4 + 2) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-8 / 125, 6 / 125], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(consistency_loss(9 * bright, bright), 0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dark", [np.zeros((4, 3)), np.ones((4, 3)), np.full((4, 3), -1e4), np.full((4, 3), 1e-4)])
@pytest.mark.parametrize("bright", [np.zeros((4, 3)), np.ones((4, 3))])
def test_consistency_loss_is_finite_for_equal_opposite_and_zero_features(dark, bright, dtype):
    target = jnp.asarray(bright, dtype)
    value, _ = value_and_gradient(lambda x: consistency_loss(x, target), jnp.asarray(dark, dtype))
    assert -1e-6 <= value <= 2 + 1e-6


@pytest.mark.parametrize("features", [np.zeros((4, 3)), np.full((4, 3), 1e4), 10 * np.eye(4)[:, :3]])
def test_spread_loss_is_finite_and_pushes_features_apart(features):
    value, _ = value_and_gradient(spread_loss, features.astype(np.float32))
    assert 0 <= value <= 1
    # Features that are nearly equal must not lie where the loss is flat.
    apart = np.random.default_rng(0).normal(0, 1e-3, (8, 3)).astype(np.float32)
    moved = apart - jax.grad(spread_loss)(apart)
    assert (moved.std(0) > 2 * apart.std(0)).all()


def test_the_features_of_bright_images_receive_no_gradient():
    dark, bright = jax.random.normal(jax.random.key(0), (2, 4, 5))
    assert jax.grad(lambda x: consistency_loss(x, bright))(dark).any()
    assert not jax.grad(lambda x: consistency_loss(dark, x))(bright).any()


def test_the_teacher_receives_no_gradient():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 5))
    assert not jax.grad(lambda t: dkd_loss(logits[0], t, jnp.arange(4)))(logits[1]).any()


def test_dkd_loss_refuses_wrong_arguments_by_name():
    with pytest.raises(ValueError, match="choose 'target'"):
        dkd_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(2, int), nckd_weight="teacher")
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        dkd_loss(jnp.zeros((2, 3)), jnp.zeros((2, 4)), jnp.zeros(2, int))


def test_total_loss_is_the_weighted_sum_of_the_given_terms():
    weights = {"id_real": 0.5, "triplet_real": 2.0, "distill": 100.0}
    # A weight may belong to a term that this step lacks, such as the teacher's.
    assert total_loss({"id_real": jnp.array(4.0), "triplet_real": jnp.array(3.0)}, weights) == 8
