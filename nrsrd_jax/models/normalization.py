"""BatchNorm as PyTorch computes it, the instance-batch norm (IBN) of the convolution stem, and LayerNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..precision import at_least_float32

EPSILON = 1e-5


def _normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    axes: tuple[int, ...],
    epsilon: float = EPSILON,
    dtype: jnp.dtype | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (x − mean)/√(var + ε)·scale + bias of x [..., C], the mean, and the biased variance over `axes`.

    The first result has the type `dtype`, or float32 if `dtype` is None. Gradients flow only through this result. They
    are computed from x and the statistics (Ioffe and Szegedy 2015, section 3), because the gradients that autodiff
    derives read and write more memory.
    """
    return _normalize_forward(x, scale, bias, axes, epsilon, dtype)[0]


def _normalize_forward(x, scale, bias, axes, epsilon, dtype):
    values = at_least_float32(x)
    mean = values.mean(axes, keepdims=True)
    # The mean of x² minus the squared mean would cancel in float32 if the mean is large.
    var = jnp.square(values - mean).mean(axes, keepdims=True)
    factor = jax.lax.rsqrt(var + epsilon)
    y = (values - mean) * factor * scale + bias
    # Without the barrier, XLA on a GPU would compute both again from x wherever they are used.
    kept = jax.lax.optimization_barrier((mean, factor))
    return (y.astype(dtype or y.dtype), mean, var), (x, *kept, scale)


def _normalize_backward(axes, epsilon, dtype, kept, gradients):
    x, mean, factor, scale = kept
    gradient = at_least_float32(gradients[0])
    normal = (at_least_float32(x) - mean) * factor

    def sums(y, axes):
        return y.sum(axes, keepdims=True), (y * normal).sum(axes, keepdims=True)

    all_but_channels = tuple(range(x.ndim - 1))
    if -1 in axes:
        # The statistics are over the channels, whose scales differ, so the scale belongs inside the sums.
        shift, slope = sums(gradient * scale, axes)
        bias_gradient, scale_gradient = (y.reshape(-1) for y in sums(gradient, all_but_channels))
    else:
        # Reuse the sums per channel for the gradients of scale and bias, which need them as well.
        shift, slope = sums(gradient, axes)
        bias_gradient, scale_gradient = (y.sum(all_but_channels) for y in (shift, slope))
        shift, slope = scale * shift, scale * slope
    count = x.size // mean.size
    x_gradient = factor * (gradient * scale - shift / count - normal * (slope / count))
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


normalize = jax.custom_vjp(_normalize, nondiff_argnums=(3, 4, 5))
normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(nn.Module):
    """Normalise the last axis of x, with ε = 1e-6. The result has the type `dtype`, or float32 if `dtype` is None."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return normalize(x, scale, bias, (-1,), 1e-6, self.dtype)[0]


class BatchNorm(nn.Module):
    """Normalise over all axes except the last, with the statistics of the global batch.

    Training normalises with the biased variance and moves the running variance towards the unbiased one,
    as torch.nn.BatchNorm does: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html.
    With several domains, row i belongs to domain i % domains. Each domain is normalised with its own batch statistics;
    running statistics are updated domain by domain, as if each had its own forward pass.

    Attributes:
        decay: the fraction of a running statistic that a step keeps; 1 − PyTorch's momentum.
        frozen_bias: whether the bias gets no gradient, as in the BNNeck.
        scale_init: the first value of the scale.
    """

    decay: float = 0.9
    frozen_bias: bool = False
    scale_init: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int = 1) -> jax.Array:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.constant(self.scale_init), (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        if self.frozen_bias:
            bias = jax.lax.stop_gradient(bias)
        if not train:
            factor = jax.lax.rsqrt(running_var.value + EPSILON) * scale
            return ((at_least_float32(x) - running_mean.value) * factor + bias).astype(x.dtype)
        # [B / domains, domains, …, C]: the statistics are over every axis except the domain and the channel.
        # XLA copies a map to give it an axis of length 1 between two others, so the domain has no axis then.
        single = domains == 1 and x.ndim > 2
        by_domain = x if single else x.reshape(-1, domains, *x.shape[1:])
        axes = (0, *range(1 if single else 2, by_domain.ndim - 1))
        y, mean, var = normalize(by_domain, scale, bias, axes, EPSILON, x.dtype)
        count = x.size // (domains * width)
        # A single value has no unbiased variance; 0 is taken.
        unbiased = var * (count / max(count - 1, 1))
        for each_mean, each_var in zip(mean.reshape(-1, width), unbiased.reshape(-1, width), strict=True):
            running_mean.value = self.decay * running_mean.value + (1 - self.decay) * each_mean
            running_var.value = self.decay * running_var.value + (1 - self.decay) * each_var
        return y.reshape(x.shape)


class InstanceNorm(nn.Module):
    """Normalise each channel of each image over its pixels, without running statistics."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C]
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalize(x, scale, bias, (1, 2), EPSILON, x.dtype)[0]


class InstanceBatchNorm(nn.Module):
    """Apply InstanceNorm to the first half of the channels and BatchNorm to the second (IBN, Pan et al. 2018)."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int = 1) -> jax.Array:
        first, second = jnp.split(x, [x.shape[-1] // 2], axis=-1)
        return jnp.concatenate([InstanceNorm(name="IN")(first), BatchNorm(name="BN")(second, train, domains)], axis=-1)
