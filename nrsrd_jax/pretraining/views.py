"""The random views that DINO compares: crops of several sizes, recoloured and blurred, on the device.

Images are float32 [B, H, W, 3] that hold whole numbers 0..255; each operation rounds as Pillow does.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ..models.position import cubic_kernel

TRIES = 10
JITTER, GREY, FLIP = 0.8, 0.2, 0.5
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)
# The smallest and largest radius in pixels.
BLUR = 0.1, 2.0
# Pillow's weights of red, green and blue. They add up to 2**16.
LUMINANCE = 19595, 38470, 7471
# Pillow's coefficient of the cubic kernel; PyTorch's is −0.75 (models/position.py).
CUBIC = -0.5
# The smallest and largest half height and half width of the ellipse that swap_surroundings keeps, as parts of the
# image, and the width of its edge as a part of the ellipse.
SMALLEST, LARGEST, SOFT = (0.42, 0.25), (0.6, 0.45), 0.05


@dataclasses.dataclass(frozen=True)
class Views:
    """Describe how V views of one size are made from an image.

    Attributes:
        size: (height, width) in pixels.
        scale: the smallest and largest part of the image's area that a view shows.
        ratio: the smallest and largest width / height of that part.
        blur: the probability that each view is blurred [V].
        solarise: the probability that each view is solarised [V]; () for never.
        swap: the probability that a view gets the surroundings of another image of the batch.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    ratio: tuple[float, float]
    blur: tuple[float, ...]
    solarise: tuple[float, ...] = ()
    swap: float = 0.0


def make_views(key: jax.Array, images: jax.Array, views: Views) -> jax.Array:
    """Return random views of each image. Each view draws its own random numbers.

    The order of the four changes of colour is drawn once per call, for all views.

    Args:
        key: a JAX random key.
        images: uint8 [B, H, W, 3].
        views: the description of the views.

    Returns:
        float32 [B, V, h, w, 3] in 0..1.

    Source:
        The augmentation of DINO in the official code of TransReID-SSL.

    Example:
        >>> import jax
        >>> from nrsrd_jax.pretraining.views import Views, make_views
        >>> images = jax.numpy.full((2, 32, 16, 3), 90, "uint8")
        >>> make_views(jax.random.key(0), images, Views((16, 8), (0.05, 0.4), (0.75, 1.33), blur=(0.5, 0.5, 0.5))).shape
        (2, 3, 16, 8, 3)
    """
    (batch, height, width, _), count = images.shape, len(views.blur)
    keys = jax.random.split(key, 6)
    x = jnp.repeat(images.astype(jnp.float32), count, axis=0)

    def chosen(key: jax.Array, *probability: float) -> jax.Array:
        """Draw with one probability for all, or with one for each view of an image."""
        each = jnp.tile(jnp.array(probability), len(x) // len(probability))
        return jax.random.bernoulli(key, each)[:, None, None, None]

    if views.swap:
        swaps = jax.random.split(keys[5])
        x = jnp.where(chosen(swaps[0], views.swap), swap_surroundings(swaps[1], x, count), x)
    x = resize_boxes(x, random_boxes(keys[0], len(x), height, width, views.scale, views.ratio), views.size)

    flips = jax.random.split(keys[1], 3)
    x = jnp.where(chosen(flips[0], FLIP), x[:, :, ::-1], x)
    x = jnp.where(chosen(flips[1], JITTER), jitter(keys[2], x), x)
    x = jnp.where(chosen(flips[2], GREY), grey(x), x)
    blurs = jax.random.split(keys[3])
    radius = jax.random.uniform(blurs[0], (len(x),), minval=BLUR[0], maxval=BLUR[1])
    x = jnp.where(chosen(blurs[1], *views.blur), blur(x, radius), x)
    if views.solarise:
        x = jnp.where(chosen(keys[4], *views.solarise), solarise(x), x)
    return x.reshape(batch, count, *x.shape[1:]) / 255


def swap_surroundings(key: jax.Array, images: jax.Array, count: int) -> jax.Array:
    """Put the middle of each image, where the person stands, into the surroundings of another image of the batch.

    The middle is an ellipse of random size with a soft edge.

    Args:
        key: a JAX random key.
        images: [B·count, H, W, 3]; each image of the batch stands there `count` times in a row.
        count: how often each image occurs.

    Returns:
        [B·count, H, W, 3], whole numbers.
    """
    keys = jax.random.split(key)
    total, height, width, _ = images.shape
    # The shift is the same for all images of the batch, but another one for each copy, so that no two copies of an
    # image need to share their surroundings.
    batch = total // count
    shifts = jax.random.randint(keys[0], (count,), 1, max(batch, 2))
    other = (jnp.arange(batch)[:, None] + shifts) % batch * count
    half = jax.random.uniform(keys[1], (total, 2), minval=jnp.array(SMALLEST), maxval=jnp.array(LARGEST))
    y = ((jnp.arange(height) + 0.5) / height - 0.5)[None, :, None] / half[:, :1, None]
    x = ((jnp.arange(width) + 0.5) / width - 0.5)[None, None, :] / half[:, 1:, None]
    inside = jax.nn.sigmoid((1 - jnp.sqrt(y**2 + x**2)) / SOFT)[..., None]
    return _round(inside * images + (1 - inside) * images[other.reshape(-1)])


def random_boxes(
    key: jax.Array, count: int, height: int, width: int, scale: Sequence[float], limits: Sequence[float]
) -> jax.Array:
    """Draw crops as torchvision's RandomResizedCrop does.

    Takes the first of ten draws that fits; if no draw fits, the largest centred crop of an allowed ratio.

    Args:
        key: a JAX random key.
        count: N.
        height, width: the size of the image in pixels.
        scale: the smallest and largest part of the image's area.
        limits: the smallest and largest width / height.

    Returns:
        float32 [N, 4], whole numbers: top, left, height, width.

    Example:
        >>> import jax
        >>> from nrsrd_jax.pretraining.views import random_boxes
        >>> top, left, height, width = random_boxes(jax.random.key(0), 1000, 64, 32, (0.4, 1.0), (0.75, 1.33)).T
        >>> int((top + height).max()), int((left + width).max())
        (64, 32)
    """
    keys = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(keys[0], (count, TRIES), minval=scale[0], maxval=scale[1])
    bounds = [math.log(limit) for limit in limits]
    ratio = jnp.exp(jax.random.uniform(keys[1], (count, TRIES), minval=bounds[0], maxval=bounds[1]))
    # Halves are rounded to even, as Python's round does in torchvision.
    w, h = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)[:, None]
    w, h = (jnp.take_along_axis(x, first, 1)[:, 0] for x in (w, h))
    top = jnp.floor(jax.random.uniform(keys[2], (count,)) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(keys[3], (count,)) * (width - w + 1))
    full_w, full_h = min(width, round(height * limits[1])), min(height, round(width / limits[0]))
    middle = jnp.array([(height - full_h) // 2, (width - full_w) // 2, full_h, full_w], jnp.float32)
    return jnp.where(fits.any(1)[:, None], jnp.stack([top, left, h, w], axis=1), middle)


def resize_boxes(images: jax.Array, boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cut boxes [B, 4] (top, left, height, width) out of images, and resize them as Pillow's bicubic filter does."""
    height, width = images.shape[1:3]
    across = _resampling(boxes[:, 1], boxes[:, 3], width, size[1])
    down = _resampling(boxes[:, 0], boxes[:, 2], height, size[0])
    # TF32 would change pixels. Pillow resizes across first, and rounds to whole numbers in between.
    exact = jax.lax.Precision.HIGHEST
    x = _round(jnp.einsum("bwW,bHWc->bHwc", across, images, precision=exact))
    return _round(jnp.einsum("bhH,bHwc->bhwc", down, x, precision=exact))


def _resampling(start: jax.Array, length: jax.Array, size: int, target: int) -> jax.Array:
    """Return the weights [B, target, size] of a bicubic filter, which is widened when the image becomes smaller."""
    scale = (length / target)[:, None, None]
    wide = jnp.maximum(scale, 1)
    place = jnp.arange(size)[None, None, :] - start[:, None, None]
    t = jnp.abs(place + 0.5 - (jnp.arange(target)[None, :, None] + 0.5) * scale) / wide
    inside = (place >= 0) & (place < length[:, None, None])
    weights = jnp.where(inside, cubic_kernel(t, CUBIC), 0)
    return weights / weights.sum(2, keepdims=True)


def _round(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)


def jitter(key: jax.Array, images: jax.Array) -> jax.Array:
    """Change brightness, contrast, saturation and hue of each image by random factors, in one random order."""
    *keys, order_key = jax.random.split(key, 5)
    ranges = BRIGHTNESS, CONTRAST, SATURATION, HUE
    factors = [
        jax.random.uniform(k, (len(images), 1, 1, 1), minval=low, maxval=high)
        for k, (low, high) in zip(keys, ranges, strict=True)
    ]
    changes: list[Callable] = [brightness, contrast, saturation, hue]
    branches = [lambda x, change=change, factor=factor: change(x, factor) for change, factor in zip(changes, factors)]  # noqa: B905
    order = jax.random.permutation(order_key, len(branches))
    # This compiles each change once; a choice between all 24 orders would compile each change 24 times.
    return jax.lax.fori_loop(0, len(branches), lambda i, x: jax.lax.switch(order[i], branches, x), images)


def _blend(other: jax.Array | float, images: jax.Array, factor: jax.Array) -> jax.Array:
    # Pillow's blend truncates, where its other operations round.
    return jnp.floor(jnp.clip(other + factor * (images - other), 0, 255))


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply pixels by a factor [B, 1, 1, 1]."""
    return _blend(0.0, images, factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Move pixels away from the mean of the grey image by a factor [B, 1, 1, 1]."""
    # Pillow takes the mean as a whole number.
    mean = jnp.floor(grey(images)[..., :1].mean((1, 2), keepdims=True) + 0.5)
    return _blend(mean, images, factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Move pixels away from the grey image by a factor [B, 1, 1, 1]."""
    return _blend(grey(images), images, factor)


def hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Turn the hue of pixels by a share [B, 1, 1, 1] of the circle, in −0.5..0.5. As in Pillow, hue has 256 steps."""
    r, g, b = images[..., 0], images[..., 1], images[..., 2]
    high, low = images.max(-1), images.min(-1)
    chroma = jnp.where(high > low, high - low, 1)
    rc, gc, bc = ((high - x) / chroma for x in (r, g, b))
    turn = jnp.where(r == high, bc - gc, jnp.where(g == high, 2 + rc - bc, 4 + gc - rc)) / 6
    h = jnp.where(high > low, jnp.floor((turn + 1) % 1 * 255), 0)
    s = jnp.where(high > low, jnp.floor((high - low) / jnp.maximum(high, 1) * 255), 0) / 255
    h = (h + jnp.trunc(shift[..., 0] * 255)) % 256 * 6 / 255
    sector = jnp.floor(h)
    f = h - sector
    p, q, t = (jnp.floor(high * (1 - s * x) + 0.5) for x in (1, f, 1 - f))
    table = ((high, t, p), (q, high, p), (p, high, t), (p, q, high), (t, p, high), (high, p, q))
    which = (sector % 6).astype(jnp.int32)
    return jnp.stack([jax.lax.select_n(which, *(row[c] for row in table)) for c in range(3)], axis=-1)


def grey(images: jax.Array) -> jax.Array:
    """Return the luminance in all three channels."""
    weights = jnp.array(LUMINANCE, jnp.float32)
    y = jnp.floor((images * weights).sum(-1, keepdims=True) / 2**16 + 0.5)
    return jnp.broadcast_to(y, images.shape)


def blur(images: jax.Array, radius: jax.Array) -> jax.Array:
    """Blur each image with a Gaussian of its radius [B] in 0..2.4 pixels, by three box filters, as Pillow does."""
    variance = radius**2 / 3
    # A box covers 2·whole + 1 pixels, and a part of one more pixel at each end.
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    # Boxes of radii up to 2.4 reach at most two pixels to each side.
    distance = jnp.abs(jnp.arange(-2, 3))
    box = jnp.where(distance <= whole[:, None], 1, jnp.where(distance == whole[:, None] + 1, part[:, None], 0))
    box = (box / box.sum(1, keepdims=True))[:, :, None, None, None]  # [B, 5, 1, 1, 1]
    for axis in (2, 1):
        for _ in range(3):
            edges = [(0, 0)] * 4
            edges[axis] = (2, 2)
            padded = jnp.pad(images, edges, mode="edge")
            length = images.shape[axis]
            parts = [box[:, i] * jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(5)]
            images = _round(sum(parts[1:], parts[0]))
    return images


def solarise(images: jax.Array) -> jax.Array:
    """Invert the pixels that are at least 128."""
    return jnp.where(images >= 128, 255 - images, images)
