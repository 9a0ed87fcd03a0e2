"""What attention does on images: the norms of queries, keys and values, and where the CLS token looks.

N images, L blocks, H heads, T tokens (CLS first), P patches
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import augment, checkpoint
from ..description import Description
from ..embedding import device_batches
from ..models.attention import NormRatio
from ..models.vit import PATCH
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
        height, width = description.image_size
        self.grid = height // PATCH, width // PATCH
        self.last = f"blocks_{description.depth - 1}"
        attention = variables["params"]["base"][self.last]["attn"]
        self.strength = float(attention.get("norm_ratio", 0.0))
        self._variables = variables
        ratio = description.norm_ratio or NormRatio()
        model = dataclasses.replace(description, norm_ratio=ratio).create_model(dtype=jnp.float32)

        def forward(variables, images):
            with jax.default_matmul_precision("highest"):
                x = augment.normalize(images.astype(jnp.float32) / 255, description.mean, description.std)
                out: Any = model.apply(variables, x, maps=True)
            blocks = out["blocks"]
            maps = {f"{x}_norm": jnp.stack([b[f"{x}_norm"] for b in blocks], 1) for x in "qkv"}
            maps["attention"] = jnp.stack([b["attention"][:, :, 0] for b in blocks], 1)
            maps["logit_spread"] = jnp.stack([b["logit_spread"] for b in blocks], 1)
            return maps | {"leverage": blocks[-1]["leverage"]}

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

    def _with_strength(self, strength: float) -> dict:
        params = self._variables["params"]
        block = params["base"][self.last]
        attention = block["attn"] | {"norm_ratio": jnp.float32(strength)}
        base = params["base"] | {self.last: block | {"attn": attention}}
        return self._variables | {"params": params | {"base": base}}


def token_norm(norms: np.ndarray) -> np.ndarray:
    """Norms of whole vectors [..., T] from those of each head's part [..., H, T]."""
    return np.sqrt(np.square(norms).sum(-2))
