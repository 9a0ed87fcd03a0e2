"""IDF in its released form: one ResNet-50 sees the image, another the brightened image, and their features are fused.

Source: Lu et al. 2023, "Illumination Distillation Framework for Nighttime Person Re-Identification", and its official
code, https://github.com/Alexadlu/IDF.

B batch, h×w pixels, D width of a ResNet's features
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from .convolution import uniform_fan_in
from .enhance import EnhanceNet, enhancement_loss
from .reid import Head
from .resnet import FAN_OUT, ResNet, ResNetSpec

# The letters of the parts in order: of the brightened image, of the image itself, and of the fused feature.
PARTS = "evf"
# The official rate of the enhancement network is 1e-4, where that of the ResNets is 0.005.
ENHANCE_FACTOR = 0.02


class Fusion(nn.Module):
    """Fuse features [B, 2·D] to [B, D] by the bottleneck of an autoencoder.

    It returns the fused features, and the features [B, 2·D] that are decoded from them.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def linear(x: jax.Array, width: int, name: str) -> jax.Array:
            init = uniform_fan_in(x.shape[-1])
            return nn.Dense(width, kernel_init=init, bias_init=init, name=name)(x)

        fused = nn.relu(linear(jnp.tanh(linear(x, self.width, "fuse_in_0")), self.width, "fuse_in_2"))
        decoded = linear(nn.relu(linear(fused, self.width, "fuse_out_0")), x.shape[-1], "fuse_out_2")
        return fused, decoded


class IDF(nn.Module):
    """Embed images [B, h, w, 3] with pixels in 0..1. This is a backbone as `spec` describes it, with its own losses."""

    about: "IDFSpec"
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
        del cameras, maps
        if self.about.over255:
            images = images / 255
        enhanced, curves = EnhanceNet(self.about.curve_channels, self.dtype, name="E_Net")(images)

        def features(images: jax.Array, name: str) -> jax.Array:
            return ResNet(self.about, self.remat, self.dtype, name=name)(images, train=train, domains=domains)[
                "embedding"
            ]

        # The first ResNet sees the sum of the image and its enhanced version, as in the official code.
        both = jnp.concatenate([features(images + enhanced, "model_e"), features(images, "model_v")], axis=1)
        fused, decoded = Fusion(self.about.width, name="bfm")(both)
        parts = [
            nn.Dense(self.about.reduced, kernel_init=FAN_OUT, name=f"reduce_{name}")(x)
            for name, x in zip(PARTS, (*jnp.split(both, 2, axis=1), fused), strict=True)
        ]
        out = {"embedding": jnp.concatenate(parts, axis=1), "parts": parts, "diagnostics": {}}
        if train:
            first = slice(None, None, domains)
            out["losses"] = {
                "enhance": enhancement_loss(enhanced[first], images[first], curves[first]),
                "decode": jnp.square(decoded - both)[first].mean(),
            }
        return out


# Patterns of the names that `ResNetSpec.torch_name` returns, and the official code's names for them. The numbers of
# necks and classifiers are the places of the parts in PARTS.
NAMES = (
    (r"^base\.reduce_(\w)", r"classifier_\1.add_block.0"),
    (r"^base\.bfm\.(fuse_\w+)_(\d)", r"base.bfm.\1.\2"),
    (r"^base\.", ""),
    (r"^bottleneck\.", "classifier_e.add_block.1."),
    (r"^bottleneck_1\.", "classifier_v.add_block.1."),
    (r"^bottleneck_2\.", "classifier_f.add_block.1."),
    (r"^classifier\.", "classifier_e.classifier.0."),
    (r"^classifier_1\.", "classifier_v.classifier.0."),
    (r"^classifier_2\.", "classifier_f.classifier.0."),
)


@dataclasses.dataclass(frozen=True)
class IDFSpec(ResNetSpec):
    """IDF on two ResNets, each as the fields of ResNetSpec describe it.

    The model takes pixels in 0..1 without normalisation (data.mean=0,0,0 and data.std=1,1,1), because the curves of its
    enhancement network are defined for this range.

    Attributes:
        over255: whether the model divides pixels by 255 once more, as the official loader does. Its pixels are in
            0..1/255, where the enhancement loss cannot reach its target exposure.
        curve_channels: the channels of the hidden convolutions of the enhancement network.
    """

    stem_relu: bool = dataclasses.field(default=True, compare=False)
    last_stride: int = dataclasses.field(default=2, compare=False)
    over255: bool = dataclasses.field(default=False, compare=False)
    curve_channels: int = 32

    @property
    def embedding_width(self) -> int:
        return len(PARTS) * self.reduced

    @property
    def head(self) -> Head:
        return Head(frozen_bias=False, classifier_bias=True, dropout=self.dropout, tested="neck")

    @property
    def losses(self) -> tuple[str, ...]:
        return "enhance", "decode", "agree"

    @property
    def raw_pixels(self) -> bool:
        return True

    def module(self, *, dtype=None, norm_ratio=None, drop_path=0.0, remat=False, cameras=0) -> IDF:
        resnet = super().module(dtype=dtype, norm_ratio=norm_ratio, drop_path=drop_path, remat=remat, cameras=cameras)
        return IDF(self, resnet.remat, resnet.dtype)

    def can_start_from(self, other) -> bool:
        """Return whether `other` is an IDF model or a ResNet, with ResNets of the same shape."""
        shape = self.channels, self.blocks, self.ibn
        return isinstance(other, ResNetSpec) and shape == (other.channels, other.blocks, other.ibn)

    def start_from(self, own, given, image_size, given_size, other) -> tuple[dict, list[str]]:
        if not isinstance(other, IDFSpec):
            # Both branches start from the ResNet. Layers of its head, such as `reduce`, are left out.
            branch = {name: given[name] for name in own["model_v"]}
            # The training step donates each array, and an array cannot be donated twice, so one branch gets a copy.
            given = {"model_v": branch, "model_e": jax.tree.map(jnp.copy, branch)}
        return super().start_from(own, given, image_size, given_size, other)

    def rate_factor(self, path: tuple[str, ...], head_factor: float) -> float:
        if path[:2] == ("base", "E_Net"):
            return ENHANCE_FACTOR
        return 1.0 if path[0] == "base" and path[1].startswith("model_") else head_factor

    def torch_name(self, path: tuple[str, ...]) -> str:
        name = super().torch_name(path)
        for ours, theirs in NAMES:
            name = re.sub(ours, theirs, name)
        return name
