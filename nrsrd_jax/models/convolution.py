"""A convolution as PyTorch computes and initialises it."""

import functools
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


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve images [B, h, w, C] with a kernel [k, k, C, D], padded by k // 2 pixels."""
    # With stride 2, XLA's "SAME" pads the end more than the start; PyTorch pads both sides alike.
    padding, layout = [(kernel.shape[0] // 2, kernel.shape[0] // 2)] * 2, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    x_gradient = jax.vjp(lambda x: _convolve(x, kernel, stride), x)[1](gradient)[0]
    # On a CPU, XLA's own gradient of a kernel takes up to ten times as long as products of matrices.
    kernel_gradient = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=functools.partial(_kernel_gradient, size=kernel.shape[0], stride=stride),
        default=lambda x, gradient: jax.vjp(lambda kernel: _convolve(x, kernel, stride), kernel)[1](gradient)[0],
    )
    return x_gradient, kernel_gradient


def _kernel_gradient(x: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """Return the gradient of a kernel [k, k, C, D] as k² products of matrices [C, Bhw] and [Bhw, D]."""
    margin = (size // 2, size // 2)
    padded = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
    height, width = ((length - 1) * stride + 1 for length in gradient.shape[1:3])

    def product(top: int, left: int) -> jax.Array:
        seen = padded[:, top : top + height : stride, left : left + width : stride]
        # XLA transposes the first factor: the narrower one is cheaper to transpose.
        if seen.shape[-1] > gradient.shape[-1]:
            return jnp.einsum("bhwd,bhwc->dc", gradient, seen).T
        return jnp.einsum("bhwc,bhwd->cd", seen, gradient)

    return jnp.stack([jnp.stack([product(top, left) for left in range(size)]) for top in range(size)])


convolve = jax.custom_vjp(_convolve, nondiff_argnums=(2,))
convolve.defvjp(_forward, _backward)


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
