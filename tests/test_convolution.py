"""Convolutions and the gradient of the maxima, beside those of JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrsrd_jax.models.convolution import convolve, max_pool


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize(("channels", "features"), [(3, 5), (6, 2)])
def test_gradients_equal_those_of_an_ordinary_convolution(size, stride, channels, features):
    keys = jax.random.split(jax.random.key(0), 3)
    # One side is odd, so a stride of 2 leaves a remainder.
    x = jax.random.normal(keys[0], (2, 9, 6, channels))
    kernel = jax.random.normal(keys[1], (size, size, channels, features))

    def ordinary(x, kernel):
        padding, layout = [(size // 2, size // 2)] * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)

    expected, pull_expected = jax.vjp(ordinary, x, kernel)
    y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    gradient = jax.random.normal(keys[2], y.shape)
    for own, other in zip(pull(gradient), pull_expected(gradient), strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(9, 6), (1, 1), (8, 8)])
def test_the_gradient_of_maxima_belongs_to_the_first_of_equal_pixels(size):
    # After a ReLU many pixels are equal.
    x = nn.relu(jax.random.normal(jax.random.key(0), (2, *size, 3)))
    expected, pull_expected = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), x)
    y, pull = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(y, expected)
    gradient = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_allclose(pull(gradient)[0], pull_expected(gradient)[0], atol=1e-6)
    alone = jax.grad(lambda x: max_pool(x)[0, 0, 0, 0])(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(alone[0, :, :, 0], [[1, 0], [0, 0]])
