"""What attention does on images: the norms of queries, keys and values, and where the CLS token looks.

N images, L blocks, H heads, T tokens (CLS first), P patches
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import augment, checkpoint
from ..description import Description
from ..errors import InputError
from ..models.attention import NormRatio
from ..models.vit import ViTSpec
from ..retrieval.embedding import device_batches
from ..sharding import make_mesh, replicated

BATCH = 32  # images at once


@dataclasses.dataclass(frozen=True)
class Maps:
    """Of N images, float32: `q_norm`, `k_norm`, `v_norm` and `attention` (the CLS query's weights) [N, L, H, T];
    `logit_spread` [N, L, H] and, of the last block, `leverage` [N, H]: standard deviations over the keys of the CLS
    query's plain logits and of γ, in nats.
    """

    q_norm: np.ndarray
    k_norm: np.ndarray
    v_norm: np.ndarray
    attention: np.ndarray
    logit_spread: np.ndarray
    leverage: np.ndarray


class Probe:
    """Callable: uint8 RGB images [N, h, w, 3] at the model's size -> Maps, in float32.

    `grid` is the patches' (rows, columns). `strength` is the λ of NRA that the model was trained to, 0 if it has none.
    """

    def __init__(self, description: Description, variables: dict, mesh: Mesh):
        self.description, self.mesh = description, mesh
        spec = description.spec
        if not isinstance(spec, ViTSpec):
            raise InputError(f"a {description.backbone} has no attention to look at; choose a ViT")
        if spec.jpm or spec.sie:
            raise InputError(
                "the attention of a ViT with model.jpm or model.sie cannot be looked at; choose a plain one"
            )
        self._spec = spec
        self.grid = spec.grid(description.image_size)
        self.strength = spec.strength(variables["params"]["base"])
        self._variables = variables
        ratio = description.norm_ratio or NormRatio()
        model = dataclasses.replace(description, norm_ratio=ratio).create_model(dtype=jnp.float32)

        def forward(variables, images):
            with jax.default_matmul_precision("highest"):
                x = augment.prepared(images, description.mean, description.std, description.brighten)
                out: Any = model.apply(variables, x, maps=True)
            return out["maps"] | {"attention": out["maps"]["attention"][:, :, :, 0]}

        self._forward = jax.jit(forward, out_shardings=replicated(mesh))

    @classmethod
    def load(cls, directory: str | Path) -> "Probe":
        """The Probe of a checkpoint directory, or of a work directory's best checkpoint. InputError if neither."""
        mesh = make_mesh()
        return cls(*checkpoint.load(directory, mesh), mesh)

    def __call__(self, images: np.ndarray, strength: float | None = None, progress: str = "") -> Maps:
        """The maps with NRA at λ = `strength`; by default as trained."""
        variables = self._with_strength(self.strength if strength is None else strength)
        parts = []
        for batch, count in device_batches(images, BATCH, self.mesh, progress):
            maps = self._forward(variables, batch)
            parts.append({name: np.asarray(value)[:count] for name, value in maps.items()})
        return Maps(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def with_base(self, base: dict) -> "Probe":
        """Return this Probe with other parameters of the backbone. Nothing is compiled again."""
        other = copy.copy(self)
        other._variables = self._variables | {"params": self._variables["params"] | {"base": base}}
        other.strength = self._spec.strength(base)
        return other

    def _with_strength(self, strength: float) -> dict:
        params = self._variables["params"]
        return self._variables | {"params": params | {"base": self._spec.with_strength(params["base"], strength)}}


def token_norm(norms: np.ndarray) -> np.ndarray:
    """Norms of whole vectors [..., T] from those of each head's part [..., H, T]."""
    return np.sqrt(np.square(norms).sum(-2))
