"""Names that other code bases give to the tensors of a ViT, and models that are not such a ViT.

Hugging Face's names: transformers' modeling_vit.py. timm's own are those of the official models.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .tensor_pickle import Tensor

MODULES = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
BLOCK = r"base\.(?:encoder\.)?layers?\.(\d+)\."  # transformers 4: encoder.layer.0; transformers 5: layers.0
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
POOLED = "from fc_norm, which normalises the mean of the patches there, and the class token here: features differ"
OTHERS = (  # the first whose pattern occurs in a name
    (r"semantic_embed_[wb]", "a Swin Transformer of SOLIDER"),
    (r"relative_position_bias_table", "a Swin Transformer (SOLIDER's backbones are such)"),
    (r"class_embedding", "a ViT of CLIP"),
    (r"(^|\.)class_token", "a ViT with torchvision's names"),
    (r"(^|\.)blocks\.\d+\.attn\.", "a ViT without a class token"),
)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Tensors of one shape and type, one after the other along their first axis; read when asked for."""

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
    """Remove DataParallel's `module.`, torch.compile's `_orig_mod.` and the like from any place in a name."""
    return ".".join(part for part in str(name).split(".") if part not in MODULES)


def hugging_face_ends(names: Iterable[str]) -> set[str]:
    """Return what stands before Hugging Face's `patch_embeddings.`, and before the `cls_token` of the same ViT."""
    ends = {name.partition("patch_embeddings.")[0] for name in names if "patch_embeddings." in name}
    return {end for end in ends if end.endswith("embeddings.")}


def from_hugging_face(tensors: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the tensors of a Hugging Face ViT under the official names, and remarks by name."""
    named: dict[str, Array] = {}
    parts: dict[str, dict[str, Tensor | np.ndarray]] = {}
    own_neck = any(name.startswith("bottleneck.") for name in tensors)
    for name, tensor in tensors.items():
        if (part := PARTS.fullmatch(name)) and not isinstance(tensor, Joined):
            parts.setdefault(f"base.blocks.{part[1]}.attn.qkv.{part[3]}", {})[part[2][0]] = tensor
        elif not own_neck and re.match(r"(base\.)?((cls_|distillation_)?classifier|decoder)\.", name):
            # These are the classes of a pretraining, or a decoder; not people.
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
        else:  # Each is an unknown tensor in the report, beside the missing qkv.
            named |= {name.replace("qkv", part): tensor for part, tensor in found.items()}
    return named, remarks


def with_final_norm(tensors: dict[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Use timm's fc_norm (of models that average the patches) as the last norm, if there is no other."""
    if any(name.startswith("base.norm.") for name in tensors):
        return tensors, {}
    renamed = {name.replace("base.fc_norm.", "base.norm."): tensor for name, tensor in tensors.items()}
    return renamed, {name: POOLED for name in renamed if name not in tensors}


def other_model(names: list[str]) -> str:
    """Return the kind of model that has these names; "" if it is unknown."""
    return next((what for pattern, what in OTHERS if any(re.search(pattern, name) for name in names)), "")
