"""The Re-ID model: a backbone, the BNNeck, and one classifier per domain."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..errors import InputError
from .attention import fusion_works
from .normalization import BatchNorm
from .vit import PATCH, VisionTransformer

BACKBONES = {
    "vit_tiny": {"width": 192, "depth": 4, "stem": False},
    "vit_tiny_ics": {"width": 192, "depth": 4, "stem": True},
    "vit_small": {"width": 384, "depth": 12, "stem": False},
    "vit_small_ics": {"width": 384, "depth": 12, "stem": True},
    "vit_base": {"width": 768, "depth": 12, "stem": False},
    "vit_base_ics": {"width": 768, "depth": 12, "stem": True},
}


class ReID(nn.Module):
    """Images [B, h, w, 3], normalised -> a dict of named results:

    `features` [B, D] float32, CLS before the neck: what triplet loss and retrieval read;
    `neck` [B, D] after the BNNeck; `logits` [B, classes] and `aux_logits` [B, aux_classes] of the two classifiers,
    where the model has them; `blocks`, a dict per block: `attention` [B, H, M, N], `q_norm`, `k_norm`, `v_norm`
    [B, H, ·], `logit_spread` [B, H] and with NRA `norm_ratio`, which is λ, and `leverage` [B, H]. The last two of
    [B, H] are the standard deviations over keys of the CLS query's plain logits and of γ, in nats. M is N in every
    block but the last, where it is 1. Where cuDNN computes the attention a block's dict is empty but for the last.
    With `maps` all are there, and M is N everywhere.

    With `domains` image i is of domain i % domains, and BatchNorm treats each in its turn.
    """

    backbone: dict[str, Any]  # VisionTransformer's arguments
    classes: int = 0
    aux_classes: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, maps: bool = False, domains: int = 1) -> dict:
        base = VisionTransformer(**self.backbone, dtype=self.dtype, name="base")
        out = base(images, train=train, maps=maps, domains=domains)
        out["neck"] = BatchNorm(frozen_bias=True, name="bottleneck")(out["features"], train, domains)
        for name, classifier, classes in (
            ("logits", "classifier", self.classes),
            ("aux_logits", "classifier_aux", self.aux_classes),
        ):
            if classes:
                head = nn.Dense(classes, use_bias=False, kernel_init=nn.initializers.normal(0.001), name=classifier)
                out[name] = head(out["neck"])
        return out


def create_model(
    backbone: str,
    *,
    classes: int = 0,
    aux_classes: int = 0,
    depth: int = 0,
    dtype: jnp.dtype | None = None,
    **options,
) -> ReID:
    """The model of a backbone's name; `depth` 0 means the backbone's own. `options` are VisionTransformer's.

    In bfloat16 cuDNN computes the attention where it can.
    """
    fused = {"fused": attention_is_fused(dtype)}
    return ReID(backbone_settings(backbone, depth) | fused | options, classes, aux_classes, dtype)


def attention_is_fused(dtype: jnp.dtype | None) -> bool:
    """Whether cuDNN computes the attention of a model of this width here."""
    return dtype == jnp.bfloat16 and fusion_works()


def backbone_settings(name: str, depth: int = 0) -> dict[str, Any]:
    """{"width", "depth", "stem"} of a backbone; InputError for an unknown name, or a depth it cannot have."""
    if name not in BACKBONES:
        raise InputError(f"model.backbone is {name!r}; choose one of {', '.join(BACKBONES)}")
    settings = BACKBONES[name]
    if depth in (0, settings["depth"]):
        return settings
    if not name.startswith("vit_tiny"):
        raise InputError(f"model.depth={depth}: {name} has {settings['depth']} blocks; only vit_tiny* varies")
    return settings | {"depth": depth}


def initialise(model: ReID, key: jax.Array, image_size: tuple[int, int]) -> Any:
    """Fresh variables {"params", "batch_stats"} for images of (height, width), multiples of 16 pixels."""
    if any(side % PATCH or side <= 0 for side in image_size):
        raise InputError(f"image_size {tuple(image_size)} (height, width) must be multiples of {PATCH} pixels")
    return model.init(key, jnp.zeros((1, *image_size, 3)))
