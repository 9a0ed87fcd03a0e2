"""Rename the tensors of a ViT from other code bases, and recognise models that are not supported.

Hugging Face's names are those of transformers' modeling_vit.py. timm's names are the official ones.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .pickle_types import Tensor

# Parts of names that wrappers such as DataParallel and torch.compile add.
MODULES = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# transformers 4 writes encoder.layer.0, transformers 5 writes layers.0.
BLOCK = r"base\.(?:encoder\.)?layers?\.(\d+)\."
HUGGING_FACE = (
    (r"base\.embeddings\.position_embeddings", "base.pos_embed"),
    (r"base\.embeddings\.patch_embeddings\.projection\.(.+)", r"base.patch_embed.proj.\1"),
    (r"base\.embeddings\.distillation_token", "base.dist_token"),
    (r"base\.embeddings\.(cls_token|mask_token)", r"base.\1"),
    (BLOCK + r"layernorm_before\.(.+)", r"base.blocks.\1.norm1.\2"),
    (BLOCK + r"layernorm_after\.(.+)", r"base.blocks.\1.norm2.\2"),
    (BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"base.blocks.\1.attn.proj.\2"),
    (BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"base.blocks.\1.mlp.fc1.\2"),
    (BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"base.blocks.\1.mlp.fc2.\2"),
    (r"base\.layernorm\.(.+)", r"base.norm.\1"),
)
PARTS = re.compile(BLOCK + r"attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)")
POOLED = "from fc_norm, which in the file normalises the mean of the patches, but here the class token: features differ"
# (pattern, kind of model); the first pattern that occurs in a name decides.
OTHERS = (
    (r"semantic_embed_[wb]", "a Swin Transformer of SOLIDER"),
    (r"relative_position_bias_table", "a Swin Transformer (such as SOLIDER's backbones)"),
    (r"class_embedding", "a ViT of CLIP"),
    (r"(^|\.)class_token", "a ViT with torchvision's names"),
    (r"(^|\.)blocks\.\d+\.attn\.", "a ViT without a class token"),
)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Tensors of one shape and type, joined along their first axis. `np.asarray` reads them."""

    parts: tuple[Tensor | np.ndarray, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        first, *rest = self.parts[0].shape
        return first * len(self.parts), *rest

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(np.concatenate([np.asarray(part) for part in self.parts]), dtype)


Array = Tensor | np.ndarray | Joined


def without_wrappers(name: object) -> str:
    """Remove the parts that wrappers add, such as `module.` and `_orig_mod.`, wherever they are in a name."""
    return ".".join(part for part in str(name).split(".") if part not in MODULES)


def hugging_face_ends(names: Iterable[str]) -> set[str]:
    """Return the prefixes of Hugging Face's `patch_embeddings.`, which are also those of the same ViT's `cls_token`."""
    ends = {name.partition("patch_embeddings.")[0] for name in names if "patch_embeddings." in name}
    return {end for end in ends if end.endswith("embeddings.")}


def from_hugging_face(tensors: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the tensors of a Hugging Face ViT under the official names, and {official name: remark}."""
    named: dict[str, Array] = {}
    parts: dict[str, dict[str, Tensor | np.ndarray]] = {}
    own_neck = any(name.startswith("bottleneck.") for name in tensors)
    for name, tensor in tensors.items():
        if (part := PARTS.fullmatch(name)) and not isinstance(tensor, Joined):
            parts.setdefault(f"base.blocks.{part[1]}.attn.qkv.{part[3]}", {})[part[2][0]] = tensor
        elif not own_neck and re.match(r"(base\.)?((cls_|distillation_)?classifier|decoder)\.", name):
            # These are the classes or the decoder of a pretraining, not identities. `head.` is ignored.
            named[f"head.{name.removeprefix('base.')}"] = tensor
        else:
            named[next((re.sub(old, new, name) for old, new in HUGGING_FACE if re.fullmatch(old, name)), name)] = tensor
    remarks = {}
    for name, found in parts.items():
        ordered = [found[part] for part in "qkv" if part in found]
        fits = len(ordered) == 3 and len({(part.dtype, part.shape) for part in ordered}) == 1 and ordered[0].shape
        if fits:
            named[name] = Joined(tuple(ordered))
            remarks[name] = "query, key and value joined"
        # Parts that cannot be joined stay apart. The report lists them as unknown tensors, and qkv as missing.
        else:
            named |= {name.replace("qkv", part): tensor for part, tensor in found.items()}
    return named, remarks


def with_final_norm(tensors: dict[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Use timm's fc_norm (in models that average the patches) as the last norm, unless there is another.

    Returns the tensors, and {name: remark}.
    """
    if any(name.startswith("base.norm.") for name in tensors):
        return tensors, {}
    renamed = {name.replace("base.fc_norm.", "base.norm."): tensor for name, tensor in tensors.items()}
    return renamed, {name: POOLED for name in renamed if name not in tensors}


def other_model(names: list[str]) -> str:
    """Return the kind of model that has tensors of these names; "" if it is unknown."""
    return next((what for pattern, what in OTHERS if any(re.search(pattern, name) for name in names)), "")
