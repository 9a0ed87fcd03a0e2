"""The models: every backbone by name, and how to build one with its neck and classifiers."""

import dataclasses

import jax
import jax.numpy as jnp

from ..errors import InputError
from .reid import ReID
from .spec import Spec
from .vit import ViTSpec

MODELS: dict[str, Spec] = {
    "vit_tiny": ViTSpec(width=192, depth=4, free_depth=True),
    "vit_tiny_ics": ViTSpec(width=192, depth=4, free_depth=True, stem=True),
    "vit_small": ViTSpec(width=384),
    "vit_small_ics": ViTSpec(width=384, stem=True),
    "vit_base": ViTSpec(width=768),
    "vit_base_ics": ViTSpec(width=768, stem=True),
}


def find_spec(backbone: str, depth: int = 0) -> Spec:
    """Return the spec of a backbone, with `depth` blocks if that is not 0.

    Raises:
        InputError: there is no such backbone, or it cannot have that depth.
    """
    if backbone not in MODELS:
        raise InputError(f"model.backbone is {backbone!r}; choose one of {', '.join(MODELS)}")
    spec = MODELS[backbone]
    if depth in (0, spec.depth):
        return spec
    if not spec.free_depth:
        free = ", ".join(name for name, other in MODELS.items() if other.free_depth)
        raise InputError(f"model.depth={depth}: {backbone} has {spec.depth} blocks; only {free} can have another depth")
    return dataclasses.replace(spec, depth=depth)


def create_model(
    backbone: str,
    *,
    classes: int = 0,
    aux_classes: int = 0,
    depth: int = 0,
    dtype: jnp.dtype | None = None,
    **options,
) -> ReID:
    """Return the Re-ID model of a named backbone, not initialised.

    Args:
        backbone: a name in MODELS.
        classes, aux_classes: the number of training identities of the two domains; 0 for no classifier.
        depth: the number of blocks; 0 for the backbone's own.
        dtype: the type of its matrix products; None for float32.
        **options: further arguments of the spec's `module`.

    Raises:
        InputError: as `find_spec`.
    """
    return ReID(find_spec(backbone, depth).module(dtype=dtype, **options), classes, aux_classes)


def initialise(model: ReID, key: jax.Array, image_size: tuple[int, int]) -> dict:
    """Return fresh variables {"params", "batch_stats"} for images of (height, width) pixels."""
    images, cameras = jnp.zeros((1, *image_size, 3)), jnp.zeros(1, jnp.int32)
    return model.init(key, images, cameras=cameras)  # pyright: ignore[reportReturnType]
