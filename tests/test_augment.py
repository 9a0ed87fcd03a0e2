"""Augmentation draws from the official distributions, and draws the same for two versions of an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrsrd_jax.augment import brighten, flip_and_crop, normalize, random_erasing


def images(count=4, height=24, width=12):
    return jax.random.uniform(jax.random.key(9), (count, height, width, 3), minval=0.1)


def test_flip_and_crop_matches_the_official_transform(golden, monkeypatch):
    """With the random numbers of the official code, the pixels are the official ones."""
    g = golden("transforms")
    image = jnp.asarray(g["train_resized_u8"], jnp.float32)[None] / 255
    draws = iter(g["aug_top_left"])
    monkeypatch.setattr(jax.random, "randint", lambda key, shape, *_: jnp.full(shape, next(draws)))
    ours = normalize(flip_and_crop(jax.random.key(0), image, flip=1.0, pad=10)[0], (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_allclose(ours, g["train_flip_pad_crop_norm"].transpose(1, 2, 0), atol=1e-6)


def test_flip_and_crop_shifts_images_and_mirrors_half_of_them():
    pad = 2
    image = images(1)
    batch = jnp.repeat(image, 400, axis=0)
    out = np.asarray(flip_and_crop(jax.random.key(0), batch, flip=0.5, pad=pad))
    outcomes = {}
    for mirrored in (False, True):
        padded = np.pad(np.asarray(image)[0, :, :: -1 if mirrored else 1], [(pad, pad), (pad, pad), (0, 0)])
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                outcomes[padded[top : top + 24, left : left + 12].tobytes()] = (mirrored, top, left)
    drawn = [outcomes[image.tobytes()] for image in out]
    # 400 draws contain each of the 50 outcomes.
    assert len(set(drawn)) == 50
    assert abs(np.mean([mirrored for mirrored, _, _ in drawn]) - 0.5) < 0.1


def test_the_same_key_moves_bright_and_dark_images_alike():
    bright = images()
    key = jax.random.key(3)
    dark, moved = (flip_and_crop(key, x, flip=0.5, pad=10) for x in (bright / 8, bright))
    np.testing.assert_allclose(dark, moved / 8, rtol=1e-6)


def test_without_flip_and_pad_the_image_does_not_change():
    np.testing.assert_array_equal(flip_and_crop(jax.random.key(0), images(), flip=0.0, pad=0), images())


def test_brighten_brings_dark_images_near_the_level_and_keeps_bright_ones():
    # The means of the images are 0.01, 0.05, 0.27 and 0.55.
    batch = images() * jnp.array([0.02, 0.1, 0.5, 1.0])[:, None, None, None]
    out = brighten(batch, 0.4)
    np.testing.assert_allclose(out.mean((1, 2, 3))[:3], 0.4, atol=0.03)
    np.testing.assert_array_equal(out[3], batch[3])
    np.testing.assert_array_equal(brighten(batch, 0.0), batch)


def test_brighten_treats_each_image_separately():
    batch = images() / 8
    np.testing.assert_allclose(brighten(batch, 0.4)[1:2], brighten(batch[1:2], 0.4), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_brighten_leaves_a_black_image_black_and_a_white_one_white(value, dtype):
    image = jnp.full((1, 4, 4, 3), value, dtype)
    out = brighten(image, 0.4)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, image)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 255), min_size=12, max_size=12), st.floats(0.05, 0.95))
def test_brighten_keeps_the_order_of_pixels_and_the_range(pixels, level):
    image = jnp.asarray(pixels, jnp.float32).reshape(1, 2, 2, 3) / 255
    before, after = np.asarray(image).ravel(), np.asarray(brighten(image, level)).ravel()
    assert (after >= before - 1e-6).all()
    assert after.max() <= 1
    assert (np.diff(after[np.argsort(before)]) >= -1e-6).all()


def erased_areas(probability, height=64, width=32, count=600):
    """Apply random erasing to constant images. Return the images and the masks of their erased pixels."""
    blank = jnp.full((count, height, width, 3), 100.0)
    out = np.asarray(random_erasing(jax.random.key(0), blank, probability=probability))
    return out, (out != 100).all(-1)


def test_random_erasing_fills_one_rectangle_of_the_official_sizes():
    out, mask = erased_areas(1.0)
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    # A mask that has as many pixels as its rows times its columns is a full rectangle.
    np.testing.assert_array_equal(mask.sum((1, 2)), rows * columns)
    share = rows * columns / (64 * 32)
    # Areas of 0.02 to 1/3 and ratios of 0.3 to 1/0.3 are drawn, and the sides are then rounded to whole pixels. A large
    # area leaves out tall and wide rectangles, which do not fit in the image.
    assert share.min() > 0.015
    assert share.max() < 0.36
    ratio = rows / columns
    assert 0.25 < ratio.min() < 0.45
    assert 2.3 < ratio.max() < 3.9
    noise = out[mask]
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


def test_random_erasing_changes_images_with_the_given_probability():
    _, mask = erased_areas(0.5)
    # The standard error of the share is 0.02.
    assert abs(mask.any((1, 2)).mean() - 0.5) < 0.06
    _, mask = erased_areas(0.0)
    assert not mask.any()


def test_random_erasing_keeps_an_image_in_which_no_rectangle_fits():
    narrow = jnp.full((8, 40, 1, 3), 7.0)
    np.testing.assert_array_equal(random_erasing(jax.random.key(0), narrow, probability=1.0), narrow)
