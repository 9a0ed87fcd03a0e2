"""Images on the device: brightening, normalisation, and for training flip, pad and crop, random erasing.

Each function takes images [B, H, W, 3]. A random function draws separate numbers for each image from one key, so with
the same key a bright image and its dark version are flipped and cropped alike. The distributions are those of the
official TransReID-SSL.
"""

import math

import jax
import jax.numpy as jnp

# timm also gives up after 10 draws. All are made at once, without a loop whose length would depend on the data.
ERASING_TRIES = 10


def flip_and_crop(key: jax.Array, images: jax.Array, *, flip: float, pad: int) -> jax.Array:
    """Mirror images at random, then pad them with zeros and crop them back to their size at a random place.

    Args:
        key: a JAX random key. Equal keys give equal flips and crops for equal shapes.
        images: [B, H, W, C].
        flip: the probability of mirroring an image left to right, in 0..1.
        pad: pixels added on each side, at least 0.

    Returns:
        [B, H, W, C], of the type of `images`.

    Source:
        The official code of TransReID-SSL.

    Example:
        >>> import jax
        >>> from nrsrd_jax.augment import flip_and_crop
        >>> images = jax.numpy.arange(3.0).reshape(1, 1, 3, 1)
        >>> flip_and_crop(jax.random.key(0), images, flip=1.0, pad=0).ravel().tolist()
        [2.0, 1.0, 0.0]
    """
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


def brighten(images: jax.Array, level: float) -> jax.Array:
    """Brighten each image whose mean is below `level` by gamma correction, x ** (log level / log mean).

    The power is at most 1, so no image becomes darker. All pixels and channels of an image have the same power, which
    does not depend on other images. The new mean is near `level`, not equal to it, because a power of a mean is not a
    mean of powers.

    Args:
        images: float [B, H, W, C] in 0..1.
        level: the mean that dark images are brightened to, in 0..1; 0 for no change.

    Returns:
        [B, H, W, C] in 0..1, of the type of `images`.

    Source:
        Gamma correction with γ from the image's mean, as in automatic exposure.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.augment import brighten
        >>> round(brighten(jnp.full((1, 2, 2, 3), 0.01), 0.4).mean().item(), 3)
        0.4
    """
    if not level:
        return images
    mean = images.mean((1, 2, 3), keepdims=True, dtype=jnp.float32)
    # A mean of 0 would turn a black image white (0 ** 0 is 1), and a mean of 1 would divide by 0.
    gamma = jnp.minimum(jnp.log(level) / jnp.log(jnp.clip(mean, 1 / 255, 1 - 1 / 255)), 1)
    return images ** gamma.astype(images.dtype)


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Normalise images per channel, (x − mean) / std.

    Args:
        images: float [B, H, W, C] in 0..1.
        mean: C numbers in 0..1.
        std: C numbers above 0.

    Returns:
        [B, H, W, C], of the type of `images`.

    Source:
        The official code of TransReID-SSL, where mean and std are 0.5.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.augment import normalize
        >>> normalize(jnp.array([[[[0.0, 0.5, 1.0]]]]), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).ravel().tolist()
        [-1.0, 0.0, 1.0]
    """
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def prepared(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], level: float) -> jax.Array:
    """Convert uint8 images [B, H, W, C] to a network's input at test time: float32, brightened and normalised."""
    return normalize(brighten(images.astype(jnp.float32) / 255, level), mean, std)


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: str = "log",
    fill: tuple[float, ...] | None = None,
) -> jax.Array:
    """Fill a random rectangle of some images with N(0, 1) noise per pixel and channel, or with one colour.

    The rectangle's height/width is in 0.3..1/0.3. The first of 10 draws that fits inside the image is used. If no draw
    fits, the image does not change.

    Args:
        key: a JAX random key.
        images: float [B, H, W, 3], normalised.
        probability: the probability of erasing from an image, in 0..1.
        area: the smallest and the largest area of the rectangle, as fractions of the area of the image.
        aspect: the distribution of height/width: "log" for log-uniform, or "uniform" as in the code of BoT.
        fill: the colour, a number per channel in the units of `images`; None for noise.

    Returns:
        [B, H, W, 3], of the type of `images`.

    Source:
        Zhong et al. 2020. The defaults are those of timm's mode "pixel", which the official code of TransReID-SSL uses.

    Example:
        >>> import jax
        >>> from nrsrd_jax.augment import random_erasing
        >>> images = jax.numpy.zeros((4, 32, 16, 3))
        >>> erased = jax.jit(random_erasing)(jax.random.key(0), images, probability=1.0) != 0
        >>> shares = erased.mean((1, 2, 3))  # of each image
        >>> bool(0 < shares.min() and shares.max() < 0.5)
        True
    """
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 6)
    tries = (batch, ERASING_TRIES)
    target = jax.random.uniform(keys[0], tries, minval=area[0], maxval=area[1]) * height * width
    if aspect == "log":
        ratio = jnp.exp(jax.random.uniform(keys[1], tries, minval=math.log(0.3), maxval=math.log(1 / 0.3)))
    else:
        ratio = jax.random.uniform(keys[1], tries, minval=0.3, maxval=1 / 0.3)
    h, w = jnp.round(jnp.sqrt(target * ratio)), jnp.round(jnp.sqrt(target / ratio))
    fits = (h < height) & (w < width)
    # If no draw fits, this is the first draw, and `erased` below excludes the image.
    first = jnp.argmax(fits, axis=1)[:, None]
    h, w = (jnp.take_along_axis(x, first, axis=1)[:, 0].astype(jnp.int32) for x in (h, w))
    top = jax.random.randint(keys[2], (batch,), 0, height - h + 1)
    left = jax.random.randint(keys[3], (batch,), 0, width - w + 1)
    erased = jax.random.bernoulli(keys[4], probability, (batch,)) & fits.any(axis=1)

    def inside(start, length, size):  # [B, size]
        position = jnp.arange(size)[None, :]
        return (position >= start[:, None]) & (position < (start + length)[:, None])

    mask = inside(top, h, height)[:, :, None] & inside(left, w, width)[:, None, :] & erased[:, None, None]
    noise = jax.random.normal(keys[5], images.shape, images.dtype) if fill is None else jnp.array(fill, images.dtype)
    return jnp.where(mask[..., None], noise, images)
