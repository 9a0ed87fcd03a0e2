"""ResNet-50 with the heads of IDE, PCB, BoT and AGW.

Sources: He et al. 2016; Pan et al. 2018 for IBN-a; the official codes of
IDE (https://github.com/layumi/Person_reID_baseline_pytorch), PCB (https://github.com/syfafterzy/PCB_RPP_for_reID),
BoT (https://github.com/michuanhaohao/reid-strong-baseline) and AGW (https://github.com/mangye16/ReID-Survey).

B batch, h×w map, C channels, D width of the features
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..errors import InputError
from .convolution import Conv, max_pool
from .normalization import BatchNorm, InstanceBatchNorm
from .reid import Head
from .spec import Spec

EXPANSION = 4
STRIPS = 6
# Kaiming's initialiser by fan-out, as torchvision's ResNet.
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nn.Module):
    """Apply a residual block of three convolutions, [B, h, w, C] -> [B, h / stride, w / stride, 4·channels]."""

    channels: int
    stride: int
    ibn: bool
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int) -> jax.Array:
        def conv(x: jax.Array, name: str, features: int, size: int, stride: int = 1) -> jax.Array:
            return Conv(features, size, stride, init=FAN_OUT, dtype=self.dtype, name=name)(x)

        width = EXPANSION * self.channels
        first_norm = InstanceBatchNorm if self.ibn else BatchNorm
        y = nn.relu(first_norm(name="bn1")(conv(x, "conv1", self.channels, 1), train, domains))
        y = nn.relu(BatchNorm(name="bn2")(conv(y, "conv2", self.channels, 3, self.stride), train, domains))
        y = BatchNorm(name="bn3")(conv(y, "conv3", width, 1), train, domains)
        if self.stride != 1 or x.shape[-1] != width:
            x = conv(x, "downsample_0", width, 1, self.stride)
            x = BatchNorm(name="downsample_1")(x, train, domains)
        return nn.relu(x + y)


class NonLocal(nn.Module):
    """Add to each place of a map [B, h, w, C] a sum over all places, weighted by dot products. The sum is 0 at first.

    Source: Wang et al. 2018, "Non-local Neural Networks", eq. 4 without a softmax, as AGW has it.
    """

    width: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, domains: int) -> jax.Array:
        batch, height, width, channels = x.shape

        def project(name: str) -> jax.Array:
            return Conv(self.width, 1, bias=True, dtype=self.dtype, name=name)(x).reshape(batch, -1, self.width)

        theta, phi, g = (project(name) for name in ("theta", "phi", "g"))
        # Without a softmax the products may be taken in this order, which needs no matrix of all pairs of places.
        y = theta @ (phi.swapaxes(1, 2) @ g) / (height * width)
        y = y.reshape(batch, height, width, self.width)
        # Only the norm is 0 at first: with a zero kernel as well, every gradient but that of its bias would stay 0.
        y = Conv(channels, 1, bias=True, dtype=self.dtype, name="W_0")(y)
        return x + BatchNorm(scale_init=0.0, name="W_1")(y, train, domains)


def generalized_mean(x: jax.Array, power: jax.Array) -> jax.Array:
    """Return (mean of x^p over the places of a map [B, h, w, C])^(1/p), [B, C]. Values below 1e-6 count as 1e-6.

    Source: Radenović et al. 2019, "Fine-tuning CNN Image Retrieval with No Human Annotation", GeM pooling.
    """
    return (jnp.maximum(x, 1e-6) ** power).mean((1, 2)) ** (1 / power)


def strips(x: jax.Array) -> jax.Array:
    """Return the means of six horizontal strips of a map [B, h, w, C], [B, 6, C].

    The strips have h − 5·(h // 6) rows and begin h // 6 rows apart, so that they overlap unless 6 divides h.

    Source: the official code of PCB.
    """
    step = x.shape[1] // STRIPS
    rows = x.shape[1] - (STRIPS - 1) * step
    return jnp.stack([x[:, i * step : i * step + rows].mean((1, 2)) for i in range(STRIPS)], axis=1)


class ResNet(nn.Module):
    """Embed normalised images [B, h, w, 3]. `about` describes the backbone and its method."""

    about: "ResNetSpec"
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
        about = self.about
        x = self.features(images, train, domains)
        if about.method == "pcb":
            pooled = strips(x)
            # The limit keeps a strip of zeros at zero, instead of NaN.
            lengths = jnp.sqrt(jnp.maximum(jnp.square(pooled).sum(-1, keepdims=True), 1e-24))
            embedding = (pooled / lengths).swapaxes(1, 2).reshape(len(x), -1)
            y = nn.Dropout(about.dropout, rng_collection="drop_path", deterministic=not train)(pooled)
            # The convolution and its norm are shared by the strips.
            y = Conv(about.reduced, 1, init=FAN_OUT, dtype=self.dtype, name="local_conv")(y[:, :, None])
            y = nn.relu(BatchNorm(name="feat_bn2d")(y.astype(jnp.float32), train, domains))
            parts = [y[:, strip, 0] for strip in range(STRIPS)]
            return {"embedding": embedding, "parts": parts, "diagnostics": {}}
        if about.method == "agw":
            power = self.param("gem", nn.initializers.constant(3.0), (1,))
            pooled = generalized_mean(x, power)
        else:
            pooled = x.mean((1, 2))
        if about.method == "ide":
            pooled = nn.Dense(about.reduced, kernel_init=FAN_OUT, name="reduce")(pooled)
        return {"embedding": pooled, "parts": [pooled], "diagnostics": {}}

    @nn.nowrap
    def features(self, x: jax.Array, train: bool, domains: int) -> jax.Array:
        """Return the map of the last stage, [B, h / 16 or h / 32, …, 32·channels], in float32."""
        about = self.about
        x = Conv(about.channels, 7, 2, init=FAN_OUT, dtype=self.dtype, name="conv1")(x)
        x = BatchNorm(name="bn1")(x, train, domains)
        if about.stem_relu:
            x = nn.relu(x)
        x = max_pool(x)
        # `train` and `domains` choose the program, so they are static; argument 0 is the module.
        block_class = nn.remat(Bottleneck, static_argnums=(2, 3)) if self.remat else Bottleneck
        for stage, (count, nonlocal_count) in enumerate(zip(about.blocks, about.nonlocal_blocks, strict=True), start=1):
            channels = about.channels * 2 ** (stage - 1)
            stage_stride = {1: 1, 4: about.last_stride}.get(stage, 2)
            for index in range(count):
                stride, ibn = stage_stride if index == 0 else 1, about.ibn and stage < 4
                block = block_class(channels, stride, ibn, self.dtype, name=f"layer{stage}_{index}")
                x = block(x, train, domains)
                place = index - (count - nonlocal_count)
                if place >= 0:
                    inner = EXPANSION * channels // 2 if about.wide_nonlocal else 1
                    x = NonLocal(inner, self.dtype, name=f"NL_{stage}_{place}")(x, train, domains)
        return x.astype(jnp.float32)


# Patterns of our variables' names, and what the official codes write instead.
NAMES = (
    (r"\b(layer\d|NL_\d)_(\d+)", r"\1.\2"),
    (r"\b(downsample|W)_(\d)", r"\1.\2"),
)
# The official names of the tensors of the heads, by method.
HEADS = {
    "bot": (),
    "agw": ((r"base\.gem", "global_pool.p"),),
    "ide": (
        (r"base\.reduce", "classifier.add_block.0"),
        (r"^classifier\.(weight|bias)", r"classifier.classifier.0.\1"),
        (r"^bottleneck", "classifier.add_block.1"),
    ),
    "pcb": (
        (r"base\.(local_conv|feat_bn2d)", r"\1"),
        (r"^classifier\.(weight|bias)", r"instance0.\1"),
        (r"^classifier_(\d)", r"instance\1"),
    ),
}
# Tensors that only one method has. BoT has no such tensor.
SIGNS = {"agw": "global_pool.p", "ide": "classifier.add_block.0.weight", "pcb": "local_conv.weight"}
# Parameters that an ImageNet checkpoint does not have. They learn at the rate of the classifiers.
FRESH = ("reduce", "local_conv", "feat_bn2d")


@dataclasses.dataclass(frozen=True)
class ResNetSpec(Spec):
    """A ResNet with the head of a method.

    Attributes:
        method: "bot", "agw", "ide" or "pcb".
        channels: the channels of the stem. The last stage has 32 times as many, which is D for bot and agw.
        blocks: how many residual blocks each of the four stages has.
        stem_relu: whether a ReLU follows the first norm. The official BoT and AGW leave it out, although ImageNet's
            weights were trained with it.
        last_stride: the stride of the last stage.
        ibn: whether the first norms of the blocks of stages 1 to 3 are IBN-a.
        nonlocal_blocks: how many blocks at the end of each stage are followed by a non-local block.
        wide_nonlocal: whether a non-local block's inner width is half the channels; it is 1 in the official code.
        reduced: the width to which ide and pcb reduce the features.
        dropout: the rate of ide's and pcb's dropout.
    """

    # Fields that are not compared change no tensor that two methods share, so a ResNet of one method can start another.
    width: int = 2048
    stride: int = 16
    method: str = dataclasses.field(default="bot", compare=False)
    channels: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem_relu: bool = dataclasses.field(default=False, compare=False)
    last_stride: int = dataclasses.field(default=1, compare=False)
    ibn: bool = False
    nonlocal_blocks: tuple[int, ...] = dataclasses.field(default=(0, 0, 0, 0), compare=False)
    wide_nonlocal: bool = dataclasses.field(default=False, compare=False)
    reduced: int = dataclasses.field(default=512, compare=False)
    dropout: float = dataclasses.field(default=0.5, compare=False)

    @property
    def embedding_width(self) -> int:
        return {"ide": self.reduced, "pcb": STRIPS * self.width}.get(self.method, self.width)

    @property
    def head(self) -> Head:
        if self.method == "ide":
            return Head(frozen_bias=False, classifier_bias=True, dropout=self.dropout, tested="neck")
        if self.method == "pcb":
            return Head(neck=False, classifier_bias=True)
        return Head(tested="neck", centers=True)

    @property
    def prefix(self) -> str:
        return "model." if self.method == "ide" else "base."

    @property
    def classifier(self) -> str:
        """Return the official name of the first classifier's kernel."""
        return self.torch_name(("classifier", "kernel"))

    def fits(self, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Return whether a state dict with these official names and shapes can belong to this model."""
        # No known ResNet has 99 blocks in a stage; ResNet-152 has 36.
        stages = [sum(f"base.layer{stage}.{i}.conv3.weight" in shapes for i in range(99)) for stage in (1, 2, 3, 4)]
        ibn = any(".bn1.IN." in name for name in shapes)
        stem = shapes.get("base.conv1.weight", (0,))[0]
        if (tuple(stages), stem, ibn) != (self.blocks, self.channels, self.ibn):
            return False
        if self.method == "agw" and self.wide_nonlocal != (shapes.get("base.NL_2.0.g.weight", (1,))[0] > 1):
            return False
        found = [method for method, sign in SIGNS.items() if sign in shapes]
        return found == ([self.method] if self.method in SIGNS else [])

    @property
    def drops_paths(self) -> bool:
        return False

    def module(self, *, dtype=None, norm_ratio=None, drop_path=0.0, remat=False, cameras=0) -> ResNet:
        del drop_path, cameras
        if norm_ratio:
            raise InputError("model.norm_ratio needs attention, which a ResNet does not have; leave it out")
        return ResNet(self, remat, dtype)

    def check_size(self, image_size: tuple[int, ...], name: str = "image_size") -> None:
        super().check_size(image_size, name)
        if self.method == "pcb" and image_size[0] < STRIPS * self.stride:
            raise InputError(f"{name} is {tuple(image_size)}; pcb needs a height of {STRIPS * self.stride} pixels")

    def start_from(self, own, given, image_size, given_size, other) -> tuple[dict, list[str]]:
        del image_size, given_size
        names = [name for name in own if name not in given or _shapes(own[name]) != _shapes(given[name])]
        notes = [f"{', '.join(names)} new"] if names else []
        return {name: own[name] if name in names else given[name] for name in own}, notes

    def rate_factor(self, path: tuple[str, ...], head_factor: float) -> float:
        return head_factor if path[0] != "base" or path[1] in FRESH else 1.0

    def torch_name(self, path: tuple[str, ...]) -> str:
        name = super().torch_name(path)
        for ours, theirs in (*NAMES, *HEADS[self.method]):
            name = re.sub(ours, theirs, name)
        return name


def _shapes(tree: dict) -> dict:
    return jax.tree.map(jnp.shape, tree)
