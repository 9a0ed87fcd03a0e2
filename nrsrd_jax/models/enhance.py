"""The enhancement network of Zero-DCE, which brightens an image by curves that it estimates for each pixel.

Its losses do not need a bright twin of a dark image.

Source: Guo et al. 2020, "Zero-Reference Deep Curve Estimation for Low-Light Image Enhancement". The losses have the
weights of IDF, https://github.com/Alexadlu/IDF.

B batch, h×w pixels in 0..1, C channels
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from .convolution import Conv

ITERATIONS = 8
# The exposure loss draws the mean brightness of each square towards this value.
EXPOSURE = 0.6


class EnhanceNet(nn.Module):
    """Enhance images [B, h, w, 3] in 0..1: x ← x + A·(x² − x), eight times, with curves A in −1..1 from a CNN.

    It returns the enhanced images [B, h, w, 3] and the curves [B, h, w, 24], both float32.

    Attributes:
        channels: the channels of the hidden convolutions.
        dtype: the type of the products; None for that of the images.
    """

    channels: int = 32
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        def conv(index: int, *inputs: jax.Array, features: int = 0) -> jax.Array:
            x = jnp.concatenate(inputs, axis=-1)
            return Conv(features or self.channels, 3, bias=True, dtype=self.dtype, name=f"e_conv{index}")(x)

        x1 = nn.relu(conv(1, images))
        x2 = nn.relu(conv(2, x1))
        x3 = nn.relu(conv(3, x2))
        x4 = nn.relu(conv(4, x3))
        x5 = nn.relu(conv(5, x3, x4))
        x6 = nn.relu(conv(6, x2, x5))
        # The curves are float32 even if the products are not: eight steps would add up their rounding, and the losses
        # are small differences of neighbouring pixels.
        curves = jnp.tanh(conv(7, x1, x6, features=3 * ITERATIONS).astype(jnp.float32))
        x = images
        for curve in jnp.split(curves, ITERATIONS, axis=-1):
            x = x + curve * (jnp.square(x) - x)
        return x, curves


def enhancement_loss(enhanced: jax.Array, images: jax.Array, curves: jax.Array) -> jax.Array:
    """Compute the loss that IDF trains its enhancement network with.

    loss = 200·variation(A) + 10·exposure(x′) + spatial(x′, x) + 5·colour(x′)

    Args:
        enhanced: the enhanced images x′ [B, h, w, 3]. h and w are multiples of 16 pixels.
        images: the images x [B, h, w, 3].
        curves: the curves A [B, h, w, 24].

    Returns:
        A scalar, at least 0.

    Source:
        Guo et al. 2020, eq. 4 to 8; IDF's official code for the weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.enhance import enhancement_loss
        >>> grey = jnp.full((1, 16, 16, 3), 0.6)
        >>> print(f"{enhancement_loss(grey, grey, jnp.zeros((1, 16, 16, 24))):.4f}")
        0.0000
        >>> print(f"{enhancement_loss(grey - 0.1, grey - 0.1, jnp.zeros((1, 16, 16, 24))):.4f}")  # 10 · 0.1²
        0.1000
    """
    return 200 * variation(curves) + 10 * exposure(enhanced) + spatial(enhanced, images) + 5 * colour(enhanced)


def variation(curves: jax.Array) -> jax.Array:
    """Return the mean squared difference of the curves [B, h, w, C] between neighbours, summed over the channels."""
    steps = jnp.diff(curves, axis=1), jnp.diff(curves, axis=2)
    down, across = (jnp.square(step).mean((0, 1, 2)).sum() for step in steps)
    # The factor 2 is that of the official code.
    return 2 * (down + across)


def exposure(enhanced: jax.Array) -> jax.Array:
    """Return the mean squared difference between 0.6 and the brightness of each square of 16×16 pixels."""
    return jnp.square(_brightness(enhanced, 16) - EXPOSURE).mean()


def spatial(enhanced: jax.Array, images: jax.Array) -> jax.Array:
    """Return the mean squared change of the contrast between a square of 4×4 pixels and its four neighbours.

    The result is the sum over the four neighbours. Both images count as black outside.
    """
    # Contrast is linear, so the change of a contrast is the contrast of the change.
    change = _brightness(enhanced, 4) - _brightness(images, 4)
    padded = jnp.pad(change, ((0, 0), (1, 1), (1, 1)))
    rows, columns = padded[:, :, 1:-1], padded[:, 1:-1]
    neighbours = rows[:, :-2], rows[:, 2:], columns[:, :, :-2], columns[:, :, 2:]
    return sum((jnp.square(change - each) for each in neighbours), start=jnp.zeros_like(change)).mean()


def colour(enhanced: jax.Array) -> jax.Array:
    """Return how far the means of red, green and blue are apart: √(Σ of the fourth powers of their differences)."""
    means = enhanced.mean((1, 2))
    powers = (means - jnp.roll(means, 1, axis=1)) ** 4
    # A grey image gives 0, where the gradient of the root is infinite. Below this limit the gradient is 0.
    return jnp.sqrt(jnp.maximum(powers.sum(1), 1e-30)).mean()


def _brightness(images: jax.Array, side: int) -> jax.Array:
    """Return the means over the channels and over squares of pixels, [B, h, w, C] -> [B, h / side, w / side]."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // side, side, width // side, side, channels).mean((2, 4, 5))
