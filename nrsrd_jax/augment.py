"""Training augmentation on the device: flip, pad and crop, random erasing, normalisation.

Each function takes images [B, H, W, 3] and draws per image from one key, so the same key moves a bright image and its
dark twin alike. The distributions are those of the official TransReID-SSL.
"""

import math

import jax
import jax.numpy as jnp

ERASING_TRIES = 10


def flip_and_crop(key: jax.Array, images: jax.Array, *, flip: float, pad: int) -> jax.Array:
    """Mirrors with probability `flip`, then pads `pad` black pixels on each side and crops back at a random place."""
    flip_key, top_key, left_key = jax.random.split(key, 3)
    batch, height, width, channels = images.shape
    mirrored = jax.random.bernoulli(flip_key, flip, (batch, 1, 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    padded = jnp.pad(images, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    top = jax.random.randint(top_key, (batch,), 0, 2 * pad + 1)
    left = jax.random.randint(left_key, (batch,), 0, 2 * pad + 1)

    def crop(image, y, x):
        return jax.lax.dynamic_slice(image, (y, x, 0), (height, width, channels))

    return jax.vmap(crop)(padded, top, left)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """(x − mean) / std per channel, of images in 0..1."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def random_erasing(key: jax.Array, images: jax.Array, *, probability: float) -> jax.Array:
    """Fills one rectangle with N(0, 1) noise per pixel (Zhong et al. 2020, as timm's 'pixel' mode), with `probability`.

    Its area is uniform in 0.02..1/3 of the image's, its height/width log-uniform in 0.3..1/0.3; of 10 draws the first
    that fits inside the image is taken, and if none fits the image stays. For normalised images.
    """
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 6)
    tries = (batch, ERASING_TRIES)
    target = jax.random.uniform(keys[0], tries, minval=0.02, maxval=1 / 3) * height * width
    ratio = jnp.exp(jax.random.uniform(keys[1], tries, minval=math.log(0.3), maxval=math.log(1 / 0.3)))
    h, w = jnp.round(jnp.sqrt(target * ratio)), jnp.round(jnp.sqrt(target / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = (jnp.take_along_axis(x, first, axis=1)[:, 0].astype(jnp.int32) for x in (h, w))
    top = jax.random.randint(keys[2], (batch,), 0, height - h + 1)
    left = jax.random.randint(keys[3], (batch,), 0, width - w + 1)
    erased = jax.random.bernoulli(keys[4], probability, (batch,)) & fits.any(axis=1)

    def inside(start, length, size):  # [B, size]
        position = jnp.arange(size)[None, :]
        return (position >= start[:, None]) & (position < (start + length)[:, None])

    mask = inside(top, h, height)[:, :, None] & inside(left, w, width)[:, None, :] & erased[:, None, None]
    noise = jax.random.normal(keys[5], images.shape, images.dtype)
    return jnp.where(mask[..., None], noise, images)
