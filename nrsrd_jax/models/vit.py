"""The TransReID-SSL vision transformer, plain or with the IBN convolution stem (ICS), with NRA in its last block.

B batch, N tokens (CLS first), M tokens that a block updates, D width, H heads, K head width
"""

import dataclasses
import math
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from ..precision import at_least_float32
from . import attention
from .attention import NormRatio
from .normalization import BatchNorm, InstanceBatchNorm, LayerNorm
from .position import resize_bicubic, resize_position_embedding
from .spec import Spec

PATCH = 16
HEAD_WIDTH = 64
# The official initialiser truncates at ±2, which is 100 standard deviations away, so truncation is left out.
LINEAR_INIT = nn.initializers.normal(0.02)


def uniform_fan_in(fan_in: int) -> Callable:
    """Return PyTorch's default initialiser for convolutions, U(±1/√fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolve images [B, h, w, C], padded by half the kernel's size, without bias; initialised as in PyTorch."""

    features: int
    size: int
    stride: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, h, w, C]
        init = uniform_fan_in(self.size * self.size * x.shape[-1])
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        padding = [(self.size // 2, self.size // 2)] * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class PatchProjection(nn.Module):
    """Project patches that do not overlap by one matrix product, [B, h, w, C] -> [B, N, D]."""

    width: int
    patch: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        p = self.patch
        init = uniform_fan_in(p * p * channels)
        kernel = self.param("kernel", init, (p, p, channels, self.width))
        bias = self.param("bias", init, (self.width,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        patches = x.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
        y = patches.reshape(-1, p * p * channels) @ kernel.reshape(-1, self.width) + bias
        return y.reshape(batch, -1, self.width)


class PatchEmbed(nn.Module):
    """Embed patches row by row: patches of 16×16 pixels, or with the ICS stem of 8×8 of its outputs."""

    width: int
    stem: bool
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int) -> jax.Array:  # [B, h, w, 3] -> [B, N, D]
        patch = PATCH
        if self.stem:
            x = Conv(64, 7, stride=2, dtype=self.dtype, name="conv_0")(x)
            x = nn.relu(InstanceBatchNorm(name="conv_1")(x, train, domains))
            x = Conv(64, 3, dtype=self.dtype, name="conv_3")(x)
            x = nn.relu(InstanceBatchNorm(name="conv_4")(x, train, domains))
            x = Conv(64, 3, dtype=self.dtype, name="conv_6")(x)
            x = nn.relu(BatchNorm(name="conv_7")(x, train, domains))
            patch //= 2
        return PatchProjection(self.width, patch, self.dtype, name="proj")(x)


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
    """Compute x·Φ(x) by erf, as PyTorch does; erfc, as in jax.nn.gelu, takes four times as long on a CPU."""
    values = at_least_float32(x)
    return (values / 2 * (1 + jax.lax.erf(values * math.sqrt(0.5)))).astype(x.dtype)


class QKV(nn.Module):
    """Compute keys and values of all tokens, and queries of the first M, by one kernel laid out [3, heads, 64]."""

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
        fused: the number of first tokens that cuDNN attends to, without maps; 0 to compute it as written here.
        layer: the number of the block.
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

    It multiplies by a factor per sample, because dividing every element, as PyTorch does, takes a twentieth of a
    training step on CPU.
    """
    factor = jax.random.bernoulli(key, 1 - rate, (samples, 1)) / (1 - rate)
    return (at_least_float32(x) * jnp.repeat(factor, len(x) // samples, axis=0)).astype(x.dtype)


class Block(nn.Module):
    """Apply a pre-norm transformer block, [B·N, D] -> [B·M, D]: it updates the first M `queries` tokens of each image.

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


class VisionTransformer(nn.Module):
    """Embed normalised images [B, h, w, 3]: a backbone as `spec` describes it, with one part.

    The features are the CLS token after the last LayerNorm. Only that row of the last block reaches them, so the last
    block runs for CLS alone unless `maps` asks for the maps of every token; the features are the same.

    The diagnostics are means over the first domain's images: `logit_spread`, the standard deviation over keys of the
    CLS query's plain logits in the last block, in nats; and with NRA `leverage`, the same of γ, and `norm_ratio`, λ.

    With `maps=True` it returns, for L blocks, H heads and N tokens (CLS first): `attention` [B, L, H, N, N]; `q_norm`,
    `k_norm`, `v_norm` [B, L, H, N]; `logit_spread` [B, L, H]; and with NRA `leverage` [B, H].

    Attributes:
        width: D, a multiple of 64.
        depth: L, the number of blocks.
        stem: whether the ICS convolutions come before the patches.
        norm_ratio: the settings of NRA in the last block, or None for a model without it.
        drop_path: the rate of stochastic depth in the last block; it grows linearly from 0.
        grid: the rows and columns of patches that the position embedding is for, if the images may have another size
            than it; it is then resized (`position.resize_bicubic`). None: the images' own.
        fused: whether cuDNN computes attention (`attention.fused_attend`).
        remat: whether the backward pass computes each block again instead of storing it.
        dtype: the type of the matrix products; None for float32.
    """

    width: int
    depth: int
    stem: bool
    norm_ratio: NormRatio | None = None
    drop_path: float = 0.1
    grid: tuple[int, int] | None = None
    fused: bool = False
    remat: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        cameras: jax.Array | None = None,
        train: bool = False,
        maps: bool = False,
        domains: int = 1,
    ) -> dict:
        del cameras
        x = PatchEmbed(self.width, self.stem, self.dtype, name="patch_embed")(images, train, domains)
        cls = self.param("cls_token", LINEAR_INIT, (1, 1, self.width))
        own = images.shape[1] // PATCH, images.shape[2] // PATCH
        grid = self.grid or own
        position = self.param("pos_embed", LINEAR_INIT, (1, 1 + grid[0] * grid[1], self.width))
        position = resize_bicubic(position, grid, own)
        x, cls, position = promote_dtype(x, cls, position, dtype=self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1) + position
        batch, tokens, _ = x.shape
        fused = tokens if self.fused and not maps else 0
        # JAX's cuDNN attention has gradients only for even token counts, so pad with one masked token.
        length = tokens + (tokens % 2 if fused else 0)
        x = rows(jnp.pad(x, [(0, 0), (0, length - tokens), (0, 0)]))
        rates, block_class = np.linspace(0, self.drop_path, self.depth), Block
        if self.remat:
            block_class = nn.remat(Block, static_argnums=(2, 3, 4))

        def run(index: int, x: jax.Array, queries: int, norm_ratio: NormRatio | None, fused: int):
            block = block_class(norm_ratio, float(rates[index]), fused, index, self.dtype, name=f"blocks_{index}")
            x, maps = block(x, batch, queries, train)
            blocks.append(maps)
            return x

        blocks, last = [], self.depth - 1
        for index in range(last):
            x = run(index, x, length, None, fused)
        x = rows(x.reshape(batch, length, -1)[:, :tokens])
        x = run(last, x, tokens if maps else 1, self.norm_ratio, 0).reshape(batch, -1, self.width)
        features = LayerNorm(name="norm")(x[:, 0])
        names = [name for name in ("leverage", "logit_spread", "norm_ratio") if name in blocks[last]]
        diagnostics = {
            name: blocks[last][name] if name == "norm_ratio" else blocks[last][name][::domains].mean() for name in names
        }
        out = {"embedding": features, "parts": [features], "diagnostics": diagnostics}
        if maps:
            of_all = ("attention", "q_norm", "k_norm", "v_norm", "logit_spread")
            out["maps"] = {name: jnp.stack([block[name] for block in blocks], axis=1) for name in of_all}
            if "leverage" in blocks[last]:
                out["maps"]["leverage"] = blocks[last]["leverage"]
        return out


@dataclasses.dataclass(frozen=True)
class ViTSpec(Spec):
    """A ViT of TransReID-SSL; with `stem`, the ICS convolutions before the patches."""

    stride: int = PATCH
    depth: int = 12
    stem: bool = False

    def module(
        self,
        *,
        dtype: jnp.dtype | None = None,
        norm_ratio: NormRatio | None = None,
        drop_path: float = 0.1,
        remat: bool = False,
        cameras: int = 0,
        grid: tuple[int, int] | None = None,
        fused: bool | None = None,
    ) -> VisionTransformer:
        """Return the module as `Spec.module` does, with `grid` as VisionTransformer takes it.

        If `fused` is None, cuDNN computes bfloat16 attention if it can.
        """
        del cameras
        if fused is None:
            fused = bool(dtype == jnp.bfloat16 and attention.fusion_works())
        return VisionTransformer(
            self.width,
            self.depth,
            self.stem,
            norm_ratio=norm_ratio,
            drop_path=drop_path,
            grid=grid,
            fused=fused,
            remat=remat,
            dtype=dtype,
        )

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of an image of (height, width) pixels."""
        return image_size[0] // self.stride, image_size[1] // self.stride

    def start_from(
        self, own: dict, given: dict, image_size: tuple[int, int], given_size: tuple[int, int]
    ) -> tuple[dict, list[str]]:
        base, notes = dict(given), []
        if given_size != image_size:
            old, new = self.grid(given_size), self.grid(image_size)
            base["pos_embed"] = resize_position_embedding(np.asarray(base["pos_embed"]), old, new)
            notes.append(f"position embedding resized from {old[0]}×{old[1]} to {new[0]}×{new[1]}")
        own_attn, attn = own[self._last]["attn"], dict(base[self._last]["attn"])
        if "norm_ratio" not in own_attn:
            attn.pop("norm_ratio", None)
        elif "norm_ratio" not in attn:
            attn["norm_ratio"] = own_attn["norm_ratio"]
            notes.append("λ of NRA is new")
        base[self._last] = base[self._last] | {"attn": attn}
        return base, notes

    def strength(self, base: dict) -> float:
        """Return λ of NRA in the backbone's parameters, 0 for a model without it."""
        return float(base[self._last]["attn"].get("norm_ratio", 0.0))

    def with_strength(self, base: dict, strength: float) -> dict:
        """Return the backbone's parameters with λ of NRA set."""
        block = base[self._last]
        return base | {self._last: block | {"attn": block["attn"] | {"norm_ratio": jnp.float32(strength)}}}

    def with_temperature(self, base: dict, temperature: float) -> dict:
        """Return the backbone's parameters with the last block's plain logits divided by `temperature`."""
        attn = base[self._last]["attn"]
        scale = jnp.where(jnp.arange(3 * self.width) < self.width, 1 / temperature, 1.0)  # of queries, keys, values
        qkv = {name: value * scale for name, value in attn["qkv"].items()}
        return base | {self._last: base[self._last] | {"attn": attn | {"qkv": qkv}}}

    def torch_name(self, path: tuple[str, ...]) -> str:
        # Our blocks_0 is PyTorch's blocks.0.
        return re.sub(r"\b(blocks|conv)_(\d+)", r"\1.\2", super().torch_name(path))

    @property
    def _last(self) -> str:
        return f"blocks_{self.depth - 1}"
