"""All backbones by name, and functions that build a Re-ID model from one of them."""

import dataclasses

import jax
import jax.numpy as jnp

from ..errors import InputError
from .idf import IDFSpec
from .reid import ReID
from .resnet import ResNetSpec
from .spec import Spec
from .transreid import SIE_FACTOR
from .vit import ViTSpec

# The options of TransReID, which every ViT takes.
PARTS = ("jpm", "sie")
# AGW has non-local blocks after the last two blocks of stage 2 and the last three of stage 3.
AGW = (0, 2, 3, 0)
# A ResNet of this size trains on a CPU.
TINY = {"channels": 16, "width": 512, "blocks": (1, 1, 2, 1), "reduced": 128}
MODELS: dict[str, Spec] = {
    "vit_tiny": ViTSpec(width=192, depth=4, choices=("depth", "stride", *PARTS)),
    "vit_tiny_ics": ViTSpec(width=192, depth=4, choices=("depth", *PARTS), stem=True),
    "vit_small": ViTSpec(width=384, choices=("stride", *PARTS)),
    "vit_small_ics": ViTSpec(width=384, choices=PARTS, stem=True),
    "vit_base": ViTSpec(width=768, choices=("stride", *PARTS)),
    "vit_base_ics": ViTSpec(width=768, choices=PARTS, stem=True),
    "bot_resnet50": ResNetSpec(),
    "bot_resnet50_relu": ResNetSpec(stem_relu=True),
    "bot_resnet50_ibn_a": ResNetSpec(ibn=True, stem_relu=True),
    "agw_resnet50": ResNetSpec(method="agw", nonlocal_blocks=AGW),
    "agw_resnet50_wide": ResNetSpec(method="agw", nonlocal_blocks=AGW, wide_nonlocal=True),
    "ide_resnet50": ResNetSpec(method="ide", stem_relu=True, last_stride=2),
    "ide_resnet50_stride1": ResNetSpec(method="ide", stem_relu=True),
    "pcb_resnet50": ResNetSpec(method="pcb", stem_relu=True, reduced=256),
    "bot_resnet_tiny": ResNetSpec(**TINY),
    "agw_resnet_tiny": ResNetSpec(method="agw", nonlocal_blocks=(0, 1, 1, 0), **TINY),
    "ide_resnet_tiny": ResNetSpec(method="ide", stem_relu=True, last_stride=2, **TINY),
    "pcb_resnet_tiny": ResNetSpec(method="pcb", stem_relu=True, **TINY),
    "idf_resnet_tiny": IDFSpec(curve_channels=8, **TINY),
    "idf_resnet50": IDFSpec(),
    "idf_resnet50_over255": IDFSpec(over255=True),
}


def find_spec(
    backbone: str,
    depth: int = 0,
    stride: int = 0,
    jpm: bool = False,
    sie: bool = False,
    sie_factor: float = SIE_FACTOR,
) -> Spec:
    """Return the spec of a backbone.

    Args:
        backbone: a name in MODELS, such as "vit_small_ics".
        depth: the number of blocks; 0 for the backbone's own.
        stride: pixels from one patch of a ViT to the next, in 1..16; 0 for the backbone's own.
        jpm: whether a ViT has TransReID's local features (`models.transreid`).
        sie: whether a ViT adds a learned vector of the image's camera to every token, as TransReID does.
        sie_factor: the factor of these vectors.

    Returns:
        The spec with these options.

    Raises:
        InputError: `backbone` is unknown, it does not have one of the options, or `stride` is out of range.

    Example:
        >>> from nrsrd_jax.models import find_spec
        >>> find_spec("vit_small").width, find_spec("vit_tiny", depth=2).depth
        (384, 2)
    """
    if backbone not in MODELS:
        raise InputError(f"model.backbone is {backbone!r}; choose one of {', '.join(MODELS)}")
    spec = MODELS[backbone]
    options = {"depth": depth, "stride": stride, "jpm": jpm, "sie": sie}
    # A description always names the depth, so a value that equals the backbone's own is valid.
    chosen = {name: value for name, value in options.items() if value and value != getattr(spec, name, False)}
    for name, value in chosen.items():
        if name not in spec.choices:
            having = ", ".join(name_of for name_of, other in MODELS.items() if name in other.choices)
            own = f"always has {spec.depth} blocks" if name == "depth" and spec.depth else "does not have this option"
            raise InputError(f"model.{name}={value}: {backbone} {own}; the option works with: {having}")
    if not 0 <= stride <= 16:
        raise InputError(f"model.stride is {stride}; it takes 1 to 16 pixels, or 0 for the backbone's own")
    if sie:
        chosen["sie_factor"] = sie_factor
    return dataclasses.replace(spec, **chosen)  # pyright: ignore[reportArgumentType]


def create_model(
    backbone: str,
    *,
    classes: int = 0,
    aux_classes: int = 0,
    depth: int = 0,
    stride: int = 0,
    jpm: bool = False,
    sie: bool = False,
    sie_factor: float = SIE_FACTOR,
    dtype: jnp.dtype | None = None,
    **options,
) -> ReID:
    """Return the Re-ID model of a named backbone, not initialised.

    Args:
        backbone: a name in MODELS, such as "vit_small_ics".
        classes, aux_classes: the number of training identities of the two domains; 0 for no classifier.
        depth, stride, jpm, sie, sie_factor: as in `find_spec`.
        dtype: the type of the model's matrix products; None for float32.
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
    spec = find_spec(backbone, depth, stride, jpm, sie, sie_factor)
    return ReID(spec.module(dtype=dtype, **options), classes, aux_classes, spec.head)


def initialise(model: ReID, key: jax.Array, image_size: tuple[int, int]) -> dict:
    """Return random variables for a model.

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


def with_base(variables: dict, base: dict) -> dict:
    """Return a model's variables with other parameters of the backbone."""
    return variables | {"params": variables["params"] | {"base": base}}
