"""Attention on images: the norms of queries, keys and values, and where the CLS token looks.

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
from ..models import with_base
from ..models.attention import NormRatio
from ..models.vit import ViTSpec
from ..retrieval.embedding import device_batches
from ..sharding import make_mesh, replicated

# Images in one forward pass.
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Maps:
    """The maps of N images, float32.

    Attributes:
        q_norm, k_norm, v_norm: the norms of queries, keys and values, [N, L, H, T].
        attention: the attention weights of the CLS query, [N, L, H, T].
        logit_spread: the standard deviation over the keys of the CLS query's plain logits, in nats, [N, L, H].
        leverage: the standard deviation over the keys of γ, NRA's term, in the last block, [N, H].
    """

    q_norm: np.ndarray
    k_norm: np.ndarray
    v_norm: np.ndarray
    attention: np.ndarray
    logit_spread: np.ndarray
    leverage: np.ndarray


def no_attention(description: Description) -> str:
    """Return why the attention of a model cannot be shown; "" if a Probe can show it."""
    spec = description.spec
    if not isinstance(spec, ViTSpec):
        return f"backbone {description.backbone} has no attention to show"
    return "the attention of a ViT with model.jpm or model.sie cannot be shown" if spec.jpm or spec.sie else ""


def with_attention(description: Description) -> ViTSpec:
    """Return the spec of a model whose attention a Probe can show. InputError for any other model."""
    if reason := no_attention(description):
        raise InputError(f"{reason}; choose a checkpoint of a ViT without model.jpm and model.sie")
    assert isinstance(description.spec, ViTSpec)
    return description.spec


class Probe:
    """Compute the Maps of uint8 RGB images [N, h, w, 3] at the model's size, in float32. An instance is callable.

    Attributes:
        grid: the number of (rows, columns) of patches.
        strength: λ of NRA as trained; 0 for a model without NRA.
    """

    def __init__(self, description: Description, variables: dict, mesh: Mesh):
        self.description, self.mesh = description, mesh
        self._spec = spec = with_attention(description)
        self.grid = spec.grid(description.image_size)
        self.strength = spec.strength(variables["params"]["base"])
        self._variables = variables
        # A model without NRA gets NRA with λ = 0, so that a call can set another λ.
        ratio = description.norm_ratio or NormRatio()
        model = dataclasses.replace(description, norm_ratio=ratio).create_model(dtype=jnp.float32)

        def forward(variables, images):
            # Products in bfloat16 or TF32 would hide small differences between norms.
            with jax.default_matmul_precision("highest"):
                x = augment.prepared(images, description.mean, description.std, description.brighten)
                out: Any = model.apply(variables, x, maps=True)
            # The other queries' attention would take T times the memory.
            return out["maps"] | {"attention": out["maps"]["attention"][:, :, :, 0]}

        self._forward = jax.jit(forward, out_shardings=replicated(mesh))

    @classmethod
    def load(cls, directory: str | Path) -> "Probe":
        """Return the Probe of a checkpoint, or of a run's best checkpoint. InputError if `directory` is neither."""
        mesh = make_mesh()
        return cls(*checkpoint.load(directory, mesh), mesh)

    def __call__(self, images: np.ndarray, strength: float | None = None, progress: str = "") -> Maps:
        """Return the maps of images [N, h, w, 3] with NRA at λ = `strength`, by default as trained.

        `progress` is the name of the progress bar; "" for no bar.
        """
        variables = self._with_strength(self.strength if strength is None else strength)
        parts = []
        for batch, count in device_batches(images, BATCH, self.mesh, progress):
            maps = self._forward(variables, batch)
            # The last batch is filled up, and only its first `count` images are real.
            parts.append({name: np.asarray(value)[:count] for name, value in maps.items()})
        return Maps(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def with_base(self, base: dict) -> "Probe":
        """Return a copy of this Probe with other backbone parameters. It shares the compiled program."""
        other = copy.copy(self)
        other._variables = with_base(self._variables, base)
        other.strength = self._spec.strength(base)
        return other

    def _with_strength(self, strength: float) -> dict:
        return with_base(self._variables, self._spec.with_strength(self._variables["params"]["base"], strength))


def token_norm(norms: np.ndarray) -> np.ndarray:
    """Return the norms of whole vectors [..., T], given the norms of each head's part of them [..., H, T]."""
    return np.sqrt(np.square(norms).sum(-2))
