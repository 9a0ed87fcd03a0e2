"""A convolution as PyTorch computes and initialises it."""

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


class Conv(nn.Module):
    """Convolve images [B, h, w, C], padded by half the kernel's size; initialised as in PyTorch.

    Attributes:
        features: the channels of the result.
        size: the height and width of the kernel.
        stride: in pixels.
        bias: whether a bias is added.
        init: of the kernel; None for PyTorch's default.
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
        padding, layout = [(self.size // 2, self.size // 2)] * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, padding, dimension_numbers=layout) + bias
