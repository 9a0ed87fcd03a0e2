"""BatchNorm as PyTorch computes it, and the instance-batch norm (IBN) of the convolution stem."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..precision import at_least_float32

EPSILON = 1e-5


class BatchNorm(nn.Module):
    """BatchNorm over every axis but the last, with statistics of the global batch.

    Training normalises with the biased variance and moves the running variance towards the unbiased one,
    as torch.nn.BatchNorm does: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html.
    Row i of a batch of several domains is of domain i % domains; each is normalised with statistics of its own, and
    moves the running ones in its turn, as in one pass after another.
    """

    decay: float = 0.9  # PyTorch's momentum 0.1
    frozen_bias: bool = False  # the BNNeck's bias is never trained

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int = 1) -> jax.Array:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        if self.frozen_bias:
            bias = jax.lax.stop_gradient(bias)
        values = at_least_float32(x).reshape(-1, domains, *x.shape[1:])
        if train:
            axes = (0, *range(2, values.ndim - 1))
            mean = values.mean(axes, keepdims=True)
            var = jnp.square(values - mean).mean(axes, keepdims=True)
            if not self.is_initializing():
                count = x.size // (domains * width)
                unbiased = var * (count / max(count - 1, 1))
                for each_mean, each_var in zip(mean.reshape(-1, width), unbiased.reshape(-1, width), strict=True):
                    running_mean.value = self.decay * running_mean.value + (1 - self.decay) * each_mean
                    running_var.value = self.decay * running_var.value + (1 - self.decay) * each_var
        else:
            mean, var = running_mean.value, running_var.value
        return ((values - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias).astype(x.dtype).reshape(x.shape)


class InstanceNorm(nn.Module):
    """Normalises each channel of each image over its pixels; no running statistics."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, H, W, C]
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        values = at_least_float32(x)
        mean = values.mean((1, 2), keepdims=True)
        var = jnp.square(values - mean).mean((1, 2), keepdims=True)
        return ((values - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias).astype(x.dtype)


class InstanceBatchNorm(nn.Module):
    """IBN (Pan et al. 2018): InstanceNorm on the first half of the channels, BatchNorm on the second."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int = 1) -> jax.Array:
        first, second = jnp.split(x, [x.shape[-1] // 2], axis=-1)
        return jnp.concatenate([InstanceNorm(name="IN")(first), BatchNorm(name="BN")(second, train, domains)], axis=-1)
