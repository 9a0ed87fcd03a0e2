"""The vision transformers of TransReID-SSL, plain or with the IBN convolution stem (ICS), and of TransReID.

The last block can have Norm-Ratio Attention (NRA).

B batch, N tokens (CLS first), D width, H heads, L blocks
"""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from ..errors import InputError
from . import attention, transreid
from .attention import NormRatio
from .block import LINEAR_INIT, Block, rows
from .convolution import Conv, uniform_fan_in
from .normalization import BatchNorm, InstanceBatchNorm, LayerNorm
from .position import resize_bicubic, resize_position_embedding
from .spec import Spec

PATCH = 16


class PatchProjection(nn.Module):
    """Project patches that are `stride` pixels apart, [B, h, w, C] -> [B, N, D].

    If the patches do not overlap, one matrix product replaces the convolution.
    """

    width: int
    patch: int
    stride: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        p = self.patch
        init = uniform_fan_in(p * p * channels)
        kernel = self.param("kernel", init, (p, p, channels, self.width))
        bias = self.param("bias", init, (self.width,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.stride != p:
            layout = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, "VALID", dimension_numbers=layout)
            return y.reshape(batch, -1, self.width) + bias
        patches = x.reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
        y = patches.reshape(-1, p * p * channels) @ kernel.reshape(-1, self.width) + bias
        return y.reshape(batch, -1, self.width)


class PatchEmbed(nn.Module):
    """Embed patches row by row. A patch is 16×16 pixels, or 8×8 outputs of the ICS stem, whose stride is 2."""

    width: int
    stem: bool
    stride: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int) -> jax.Array:  # [B, h, w, 3] -> [B, N, D]
        patch, stride = PATCH, self.stride
        if self.stem:
            x = Conv(64, 7, stride=2, dtype=self.dtype, name="conv_0")(x)
            x = nn.relu(InstanceBatchNorm(name="conv_1")(x, train, domains))
            x = Conv(64, 3, dtype=self.dtype, name="conv_3")(x)
            x = nn.relu(InstanceBatchNorm(name="conv_4")(x, train, domains))
            x = Conv(64, 3, dtype=self.dtype, name="conv_6")(x)
            x = nn.relu(BatchNorm(name="conv_7")(x, train, domains))
            patch, stride = patch // 2, stride // 2
        return PatchProjection(self.width, patch, stride, self.dtype, name="proj")(x)


class VisionTransformer(nn.Module):
    """Embed normalised images [B, h, w, 3]. This is a backbone as `spec` describes it, with one part, or five with JPM.

    The features are the CLS token after the last LayerNorm. They depend on no other token of the last block's output,
    so the last block updates only CLS, unless `maps` requests the maps of every token. The features are the same.

    With `jpm`, a second copy of the last block and LayerNorm computes four local features, each from CLS and a quarter
    of the shuffled patches (`transreid`). The embedding is then the global feature, followed by each local feature
    divided by 4.

    The diagnostics are means over the images of the first domain: `logit_spread`, the standard deviation over the keys
    of the CLS query's plain logits in the last block, in nats; with NRA also `leverage`, the same standard deviation of
    γ, and `norm_ratio`, which is λ.

    With `maps=True` it returns, for L blocks, H heads and N tokens (CLS first): `attention` [B, L, H, N, N]; `q_norm`,
    `k_norm`, `v_norm` [B, L, H, N]; `logit_spread` [B, L, H]; and with NRA `leverage` [B, H].

    Attributes:
        width: D, a multiple of 64.
        depth: L, the number of blocks.
        stem: whether the ICS convolutions come before the patches.
        stride: pixels from one patch to the next. Patches of 16 pixels overlap if it is less than 16.
        cameras: the number of cameras with a learned vector, which is added to every token; 0 for no vectors.
        sie_factor: the factor of the cameras' vectors.
        jpm: whether the model has TransReID's local features.
        norm_ratio: the settings of NRA in the last block, or None for a model without NRA.
        drop_path: the rate of stochastic depth in the last block. The rates grow linearly from 0 in the first block.
        grid: the rows and columns of patches of the position embedding. For images of another size, the embedding is
            resized in each call (`position.resize_bicubic`). None for the grid of the images.
        fused: whether cuDNN computes attention (`attention.fused_attend`).
        remat: whether the backward pass computes each block again, to save memory.
        dtype: the type of the matrix products; None for float32.
    """

    width: int
    depth: int
    stem: bool
    stride: int = PATCH
    cameras: int = 0
    jpm: bool = False
    sie_factor: float = transreid.SIE_FACTOR
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
        x = PatchEmbed(self.width, self.stem, self.stride, self.dtype, name="patch_embed")(images, train, domains)
        cls = self.param("cls_token", LINEAR_INIT, (1, 1, self.width))
        own = patch_grid(images.shape[1:3], self.stride)
        grid = self.grid or own
        position = self.param("pos_embed", LINEAR_INIT, (1, 1 + grid[0] * grid[1], self.width))
        position = resize_bicubic(position, grid, own)
        x, cls, position = promote_dtype(x, cls, position, dtype=self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1) + position
        if self.cameras:
            table = self.param("sie_embed", LINEAR_INIT, (self.cameras, 1, self.width))
            x = transreid.add_cameras(x, table, cameras, self.sie_factor)
        batch, tokens, _ = x.shape
        fused = tokens if self.fused and not maps else 0
        # JAX's cuDNN attention has gradients only for even numbers of tokens, so pad with one masked token.
        length = tokens + (tokens % 2 if fused else 0)
        x = rows(jnp.pad(x, [(0, 0), (0, length - tokens), (0, 0)]))
        rates, block_class = np.linspace(0, self.drop_path, self.depth), Block
        if self.remat:
            # `batch`, `queries` and `train` choose the program, so they are static; argument 0 is the module.
            block_class = nn.remat(Block, static_argnums=(2, 3, 4))

        def run(index: int, x: jax.Array, queries: int, norm_ratio: NormRatio | None, fused: int, name: str = ""):
            rate = float(rates[index])
            block = block_class(norm_ratio, rate, fused, index, self.dtype, name=name or f"blocks_{index}")
            images = batch * transreid.PARTS if name else batch
            return block(x, images, queries, train)

        blocks, last = [], self.depth - 1
        for index in range(last):
            x, kept = run(index, x, length, None, fused)
            blocks.append(kept)
        trunk = x.reshape(batch, length, -1)[:, :tokens]
        # No cuDNN in the last block: NRA changes its logits, their spread is logged, and one query has few of them.
        x, kept = run(last, rows(trunk), tokens if maps else 1, self.norm_ratio, 0)
        blocks.append(kept)
        # Without a dtype, the last norm returns float32, in which necks and losses compute.
        features = LayerNorm(name="norm")(x.reshape(batch, -1, self.width)[:, 0])
        names = [name for name in ("leverage", "logit_spread", "norm_ratio") if name in blocks[last]]
        diagnostics = {
            name: blocks[last][name] if name == "norm_ratio" else blocks[last][name][::domains].mean() for name in names
        }
        out = {"embedding": features, "parts": [features], "diagnostics": diagnostics}
        if self.jpm:
            x, _ = run(last, rows(transreid.part_tokens(trunk)), 1, self.norm_ratio, 0, name="local_block")
            local = LayerNorm(name="local_norm")(x).reshape(batch, transreid.PARTS, self.width)
            out["parts"] += [local[:, part] for part in range(transreid.PARTS)]
            out["weights"], out["factors"] = list(transreid.LOSS_WEIGHTS), list(transreid.TEST_FACTORS)
            pairs = zip(out["parts"], transreid.TEST_FACTORS, strict=True)
            out["embedding"] = jnp.concatenate([part * factor for part, factor in pairs], axis=1)
        if maps:
            of_all = ("attention", "q_norm", "k_norm", "v_norm", "logit_spread")
            out["maps"] = {name: jnp.stack([block[name] for block in blocks], axis=1) for name in of_all}
            if "leverage" in blocks[last]:
                out["maps"]["leverage"] = blocks[last]["leverage"]
        return out


def patch_grid(image_size: tuple[int, ...], stride: int) -> tuple[int, int]:
    """Return the rows and columns of patches of an image of (height, width) pixels."""
    return (image_size[0] - PATCH) // stride + 1, (image_size[1] - PATCH) // stride + 1


@dataclasses.dataclass(frozen=True)
class ViTSpec(Spec):
    """A ViT of TransReID-SSL or TransReID.

    Attributes:
        stem: whether the ICS convolutions come before the patches.
        stride: pixels from one patch to the next.
        jpm: whether the model has TransReID's local features.
        sie: whether the model has a learned vector for each camera of training.
        sie_factor: the factor of these vectors.
    """

    depth: int = 12
    stem: bool = False
    stride: int = dataclasses.field(default=PATCH, compare=False)
    jpm: bool = dataclasses.field(default=False, compare=False)
    sie: bool = dataclasses.field(default=False, compare=False)
    sie_factor: float = dataclasses.field(default=transreid.SIE_FACTOR, compare=False)

    @property
    def embedding_width(self) -> int:
        return self.width * (1 + transreid.PARTS * self.jpm)

    @property
    def needs_cameras(self) -> bool:
        return self.sie

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
        """Return the module as `Spec.module` does.

        Args:
            dtype, norm_ratio, drop_path, remat, cameras: as in `Spec.module`.
            grid: as in VisionTransformer.
            fused: whether cuDNN computes attention; None to use it for bfloat16 on devices where it works.

        Returns:
            The module.

        Raises:
            InputError: the spec has `sie`, and `cameras` is 0.
        """
        if self.sie and not cameras:
            raise InputError("model.sie needs images whose cameras are known; set model.sie=False for others")
        if fused is None:
            fused = bool(dtype == jnp.bfloat16 and attention.fusion_works())
        return VisionTransformer(
            self.width,
            self.depth,
            self.stem,
            self.stride,
            cameras if self.sie else 0,
            self.jpm,
            self.sie_factor,
            norm_ratio=norm_ratio,
            drop_path=drop_path,
            grid=grid,
            fused=fused,
            remat=remat,
            dtype=dtype,
        )

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of patches of an image of (height, width) pixels."""
        return patch_grid(image_size, self.stride)

    def check_size(self, image_size: tuple[int, ...], name: str = "image_size") -> None:
        # Overlapping patches may leave out a margin of the image, as in the official code, so any size fits.
        if self.stride == PATCH:
            super().check_size(image_size, name)
        elif len(image_size) != 2 or any(type(side) is not int or side < PATCH for side in image_size):
            raise InputError(f"{name} is {tuple(image_size)}; it takes height and width, at least {PATCH} pixels")
        if self.jpm and math.prod(self.grid((image_size[0], image_size[1]))) < 2 * transreid.PARTS:
            raise InputError(f"{name} is {tuple(image_size)}; model.jpm needs {2 * transreid.PARTS} patches")

    def start_from(
        self, own: dict, given: dict, image_size: tuple[int, int], given_size: tuple[int, int], other: Spec
    ) -> tuple[dict, list[str]]:
        assert isinstance(other, ViTSpec)
        base, notes = dict(given), []
        old, new = other.grid(given_size), self.grid(image_size)
        if old != new:
            base["pos_embed"] = resize_position_embedding(np.asarray(base["pos_embed"]), old, new)
            notes.append(f"position embedding resized from {old[0]}×{old[1]} to {new[0]}×{new[1]}")
        if "sie_embed" in own:
            base["sie_embed"] = own["sie_embed"]
            notes.append("the cameras' vectors are new")
        if "local_block" in own and "local_block" not in base:
            # The training step donates each array, and an array cannot be donated twice, so this is a copy.
            base |= jax.tree.map(jnp.copy, {"local_block": base[self._last], "local_norm": base["norm"]})
            notes.append("the local branch starts as a copy of the last block")
        if "norm_ratio" in own[self._last]["attn"] and "norm_ratio" not in base[self._last]["attn"]:
            notes.append("λ of NRA is new")
        # If only one of the models has NRA, this keeps the λ of this model, and drops that of the checkpoint.
        for name in {self._last, "local_block"} & own.keys():
            attn, own_attn = base[name]["attn"], own[name]["attn"]
            base[name] = base[name] | {"attn": {key: attn.get(key, value) for key, value in own_attn.items()}}
        return {name: base[name] for name in own}, notes

    def strength(self, base: dict) -> float:
        """Return λ of NRA from the backbone's parameters; 0 for a model without NRA."""
        return float(base[self._last]["attn"].get("norm_ratio", 0.0))

    def with_strength(self, base: dict, strength: float) -> dict:
        """Return the backbone's parameters with λ of NRA replaced by `strength`."""
        block = base[self._last]
        return base | {self._last: block | {"attn": block["attn"] | {"norm_ratio": jnp.float32(strength)}}}

    def with_temperature(self, base: dict, temperature: float) -> dict:
        """Return the backbone's parameters with the last block's plain logits divided by `temperature`."""
        attn = base[self._last]["attn"]
        # The first third of the columns makes the queries, to which the logits are proportional.
        scale = jnp.where(jnp.arange(3 * self.width) < self.width, 1 / temperature, 1.0)
        qkv = {name: value * scale for name, value in attn["qkv"].items()}
        return base | {self._last: base[self._last] | {"attn": attn | {"qkv": qkv}}}

    def torch_name(self, path: tuple[str, ...]) -> str:
        # Flax calls a block blocks_0, PyTorch calls it blocks.0.
        name = re.sub(r"\b(blocks|conv)_(\d+)", r"\1.\2", super().torch_name(path))
        return transreid.torch_name(name, self.depth) if self.jpm else name

    @property
    def _last(self) -> str:
        return f"blocks_{self.depth - 1}"
