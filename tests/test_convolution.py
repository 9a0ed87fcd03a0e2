"""The convolution's own gradient of the kernel, beside the one that JAX derives."""

import jax
import numpy as np
import pytest

from nrsrd_jax.models.convolution import convolve


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
    np.testing.assert_array_equal(y, expected)
    gradient = jax.random.normal(keys[2], y.shape)
    for own, other in zip(pull(gradient), pull_expected(gradient), strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5, rtol=1e-5)
