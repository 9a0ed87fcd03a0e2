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
    """Return the spec of a backbone.

    Args:
        backbone: a name in MODELS, such as "vit_small_ics".
        depth: the number of blocks; 0 for the backbone's own.

    Returns:
        The spec, with `depth` blocks.

    Raises:
        InputError: there is no such backbone, or it cannot have that depth.

    Example:
        >>> from nrsrd_jax.models import find_spec
        >>> find_spec("vit_small").width, find_spec("vit_tiny", depth=2).depth
        (384, 2)
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
        backbone: a name in MODELS, such as "vit_small_ics".
        classes, aux_classes: the number of training identities of the two domains; 0 for no classifier.
        depth: the number of blocks; 0 for the backbone's own.
        dtype: the type of its matrix products; None for float32.
        **options: further arguments of the spec's `module` (`models.spec.Spec.module`).

    Returns:
        A Flax module; `models.reid.ReID` says how to call it and what it returns.

    Raises:
        InputError: as `find_spec`.

    Example:
        >>> from nrsrd_jax.models import create_model
        >>> from nrsrd_jax.models.attention import NormRatio
        >>> model = create_model("vit_tiny", classes=30, norm_ratio=NormRatio())
        >>> model.classes, model.base.norm_ratio.init
        (30, 1.0)
    """
    return ReID(find_spec(backbone, depth).module(dtype=dtype, **options), classes, aux_classes)


def initialise(model: ReID, key: jax.Array, image_size: tuple[int, int]) -> dict:
    """Return fresh variables of a model.

    Args:
        model: from `create_model`.
        key: a JAX random key.
        image_size: (height, width) in pixels, multiples of the backbone's stride.

    Returns:
        {"params": …, "batch_stats": …}, trees of float32 arrays.

    Example:
        >>> import jax
        >>> from nrsrd_jax.models import create_model, initialise
        >>> model = create_model("vit_tiny", depth=1, classes=30)
        >>> shapes = jax.eval_shape(lambda key: initialise(model, key, (32, 16)), jax.random.key(0))
        >>> shapes["params"]["classifier"]["kernel"].shape
        (192, 30)
    """
    images, cameras = jnp.zeros((1, *image_size, 3)), jnp.zeros(1, jnp.int32)
    return model.init(key, images, cameras=cameras)  # pyright: ignore[reportReturnType]
