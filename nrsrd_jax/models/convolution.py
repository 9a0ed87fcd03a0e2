"""Convolutions and maxima of maps, as PyTorch computes and initialises them."""

import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype


def uniform_fan_in(fan_in: int) -> Callable:
    """Return PyTorch's default initialiser for convolutions, U(±1/√fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve images [B, h, w, C] with a kernel [k, k, C, D], padded by k // 2 pixels."""
    if kernel.shape[:2] == (1, 1):
        x = x[:, ::stride, ::stride]
        # On a CPU, XLA multiplies matrices up to five times as fast as it convolves by a kernel of one pixel. It would
        # copy arrays of more than two dimensions to transpose them for the gradients.
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
    # With stride 2, XLA's "SAME" pads the end more than the start; PyTorch pads both sides alike.
    padding, layout = [(kernel.shape[0] // 2, kernel.shape[0] // 2)] * 2, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


def _max_pool(x: jax.Array) -> jax.Array:
    """Return the maxima of 3×3 pixels of a map [B, h, w, C] at every second pixel, [B, ⌈h / 2⌉, ⌈w / 2⌉, C].

    The gradient belongs to the first of equal pixels, as in PyTorch. XLA's own takes four times as long on a CPU.
    """
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


def _max_pool_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    height, width = (2 * length - 1 for length in gradient.shape[1:3])
    places = list(itertools.product(range(3), range(3)))
    best, chosen = jnp.full_like(gradient, -jnp.inf), jnp.zeros(gradient.shape, jnp.int8)
    # Comparing x with the maxima of the forward pass would lose gradients, because XLA may compute x again and round it
    # otherwise.
    for place, (top, left) in enumerate(places):
        seen = padded[:, top : top + height : 2, left : left + width : 2]
        best, chosen = jnp.maximum(best, seen), jnp.where(seen > best, jnp.int8(place), chosen)
    total, zero = jnp.zeros_like(padded), jnp.zeros((), gradient.dtype)
    for place, (top, left) in enumerate(places):
        below, right = padded.shape[1] - height - top, padded.shape[2] - width - left
        spread = (0, 0, 0), (top, below, 1), (left, right, 1), (0, 0, 0)
        total += jax.lax.pad(jnp.where(chosen == place, gradient, zero), zero, spread)
    return (total[:, 1:-1, 1:-1],)


max_pool = jax.custom_vjp(_max_pool)
max_pool.defvjp(lambda x: (_max_pool(x), x), _max_pool_backward)


class Conv(nn.Module):
    """Convolve images [B, h, w, C], padded by half the kernel's size, with PyTorch's initialisation.

    Attributes:
        features: the number of channels of the result.
        size: the height and width of the kernel.
        stride: the stride in pixels.
        bias: whether a bias is added.
        init: the initialiser of the kernel; None for PyTorch's default.
        dtype: the type of the products; None for that of the images.
    """

    features: int
    size: int
    stride: int = 1
    bias: bool = False
    init: Callable | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        default = uniform_fan_in(self.size * self.size * channels)
        kernel = self.param("kernel", self.init or default, (self.size, self.size, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros if self.init else default, (self.features,)) if self.bias else 0
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return convolve(x, kernel, self.stride) + bias
