"""The transformer block of the official vision transformers, and the layers that it is made of.

B batch, N tokens (CLS first), M tokens that a block updates, D width, H heads, K head width
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from ..precision import at_least_float32
from . import attention
from .attention import NormRatio
from .normalization import LayerNorm

HEAD_WIDTH = 64
# The official initialiser truncates at ±2, which is 100 standard deviations, so truncation would change nothing.
LINEAR_INIT = nn.initializers.normal(0.02)


def rows(x: jax.Array) -> jax.Array:
    """Reshape [B, N, D] to [B·N, D], the form that tokens have outside attention.

    With [B, N, D] inputs XLA adds needless transposes: for weight gradients on CPU, for sums and norms on GPU.
    """
    return x.reshape(-1, x.shape[-1])


def dense(name: str, features: int, dtype: jnp.dtype | None) -> nn.Dense:
    """Return a linear layer, initialised as the official code does."""
    return nn.Dense(features, kernel_init=LINEAR_INIT, dtype=dtype, name=name)


# Recompute the inside in the backward pass; only x is stored.
@jax.checkpoint
def gelu(x: jax.Array) -> jax.Array:
    """Compute x·Φ(x) with erf, as PyTorch does; jax.nn.gelu uses erfc, which takes four times as long on a CPU."""
    values = at_least_float32(x)
    return (values / 2 * (1 + jax.lax.erf(values * math.sqrt(0.5)))).astype(x.dtype)


class QKV(nn.Module):
    """Compute the keys and values of all tokens, and the queries of the first M tokens.

    One kernel makes all three. Its columns are laid out as [3, heads, 64], as in the official code.
    """

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, queries: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        width = x.shape[-1]
        kernel = self.param("kernel", LINEAR_INIT, (width, 3 * width))
        bias = self.param("bias", nn.initializers.zeros, (3 * width,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernels, biases = jnp.split(kernel, 3, axis=1), jnp.split(bias, 3)
        q, k, v = (
            (rows(y) @ w + b).reshape(x.shape[0], -1, width // HEAD_WIDTH, HEAD_WIDTH)
            for y, w, b in zip((x[:, :queries], x, x), kernels, biases, strict=True)
        )
        return q, k, v


class Attention(nn.Module):
    """Attend from the first `queries` tokens to all tokens, [B, N, D] -> [B·M, D].

    Attributes:
        norm_ratio: the settings of Norm-Ratio Attention (paper, eq. 3), or None for plain attention.
        fused: the number of real tokens, which come first, if cuDNN computes the attention; it gives no maps. 0 to
            compute the attention without cuDNN.
        layer: the index of the block, for `attention.fused_attend`.
        dtype: the type of the matrix products.
    """

    norm_ratio: NormRatio | None
    fused: int = 0
    layer: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, queries: int) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, v = QKV(self.dtype, name="qkv")(x, queries)
        if self.fused:
            y, maps = attention.fused_attend(q, k, v, self.fused, self.layer), {}
        else:
            logits = attention.attention_logits(q, k)  # [B, H, M, N]
            maps = {"logit_spread": jnp.std(logits[:, :, 0], axis=-1)}  # [B, H], of the CLS query
            if self.norm_ratio:
                strength = self.param("norm_ratio", nn.initializers.constant(self.norm_ratio.init), ())
                penalty = self.norm_ratio.penalty(q, k, strength)
                logits = logits - penalty
                maps |= {"norm_ratio": strength, "leverage": jnp.std(penalty[:, :, 0], axis=-1)}
            y, weights = attention.attend(logits, v)
            maps |= {"attention": weights} | {
                f"{name}_norm": attention.token_norms(z) for name, z in zip("qkv", (q, k, v), strict=True)
            }
        return dense("proj", x.shape[-1], self.dtype)(y.reshape(-1, x.shape[-1])), maps


class Mlp(nn.Module):
    """Apply two linear layers with a GELU between them, [B·N, D] -> [B·N, D]; the hidden width is 4·D."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B·N, D]
        hidden = gelu(dense("fc1", 4 * x.shape[-1], self.dtype)(x))
        return dense("fc2", x.shape[-1], self.dtype)(hidden)


def drop_path(key: jax.Array, x: jax.Array, samples: int, rate: float) -> jax.Array:
    """Drop each sample's whole residual branch x [B·N, D] with probability `rate`; divide the others by 1 − rate.

    The code multiplies by one factor per sample, because dividing every element, as PyTorch does, takes a twentieth of
    a training step on CPU.
    """
    factor = jax.random.bernoulli(key, 1 - rate, (samples, 1)) / (1 - rate)
    return (at_least_float32(x) * jnp.repeat(factor, len(x) // samples, axis=0)).astype(x.dtype)


class Block(nn.Module):
    """Apply a pre-norm transformer block to the first M = `queries` tokens of each image, [B·N, D] -> [B·M, D].

    Attributes:
        drop_path: the probability of dropping a residual branch in training, in 0..1.
        norm_ratio, fused, layer, dtype: as in Attention.
    """

    norm_ratio: NormRatio | None
    drop_path: float
    fused: int = 0
    layer: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, batch: int, queries: int, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        def drop(y):
            return drop_path(self.make_rng("drop_path"), y, batch, self.drop_path) if train and self.drop_path else y

        def images(x):
            return x.reshape(batch, -1, x.shape[-1])

        attend = Attention(self.norm_ratio, self.fused, self.layer, self.dtype, name="attn")
        y, maps = attend(images(LayerNorm(self.dtype, name="norm1")(x)), queries)
        x = rows(images(x)[:, :queries]) + drop(y)
        y = Mlp(self.dtype, name="mlp")(LayerNorm(self.dtype, name="norm2")(x))
        return x + drop(y), maps
