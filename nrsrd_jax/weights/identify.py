"""Identify the model whose tensors a checkpoint file contains."""

import dataclasses
import json
import math
import re

from ..description import MAX_DEPTH, Description
from ..errors import InputError
from ..models import MODELS
from ..models.attention import NormRatio
from ..models.idf import IDFSpec
from ..models.resnet import ResNetSpec
from ..models.vit import PATCH, ViTSpec, patch_grid
from .foreign_names import Array

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The patch strides in TransReID's configs, in pixels, and the image sizes to try with overlapping patches. Every square
# number of patches fits some square size, so only usual sizes are tried. Vehicles, for example, have 256×256 pixels.
STRIDES = (PATCH, 12, 14, 11)
SIZES = ((256, 128), (384, 128), *((side, side) for side in (128, 192, 224, 256, 320, 384, 448, 512)))


def identify_resnet(tensors: dict[str, Array], notes: str, backbone: str) -> Description:
    """Return the description of the ResNet that has these tensors; `backbone` is its name, "" to find it.

    Raises:
        InputError: no ResNet here has them.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    own = own_description(notes)
    resnets = {
        name: spec for name, spec in MODELS.items() if isinstance(spec, ResNetSpec) and not isinstance(spec, IDFSpec)
    }
    if backbone and backbone not in resnets:
        raise InputError(f"--backbone is {backbone!r}; for a ResNet choose one of {', '.join(resnets)}")
    if own and own.backbone not in resnets:
        raise InputError("the description in the file is of another model than its tensors; convert the original file")
    if own and backbone not in ("", own.backbone):
        raise InputError(
            f"--backbone is {backbone}, but the file names its backbone, {own.backbone}: leave --backbone out"
        )
    found = backbone or (own.backbone if own else "") or next((n for n, s in resnets.items() if s.fits(shapes)), "")
    if not found:
        raise InputError(f"its ResNet has other stages or heads than {', '.join(resnets)}")
    if own and own.backbone == found:
        return own
    spec = resnets[found]
    size = (384, 128) if spec.method == "pcb" else (256, 128)
    return Description(found, 0, size, IMAGENET_MEAN, IMAGENET_STD, (shapes.get(spec.classifier) or (0,))[0])


def identify_model(tensors: dict[str, Array], notes: str, source_size: tuple[int, int] | None) -> Description:
    """Return the description of the ViT that has these tensors.

    Args:
        tensors: {official name: tensor}.
        notes: the JSON that to_torch.py wrote beside the tensors; "" if it did not write the file.
        source_size: the image size of the position embedding, (height, width) in pixels; None to guess it.

    Raises:
        InputError: the tensors are not those of a known model, or contradict the notes or the size.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    cls_token, position = (shapes.get(f"base.{name}", ()) for name in ("cls_token", "pos_embed"))
    if len(cls_token) != 3 or len(position) != 3 or position[1] < 2:
        raise InputError(f"its ViT is of an unknown kind: cls_token has shape {cls_token}, pos_embed {position}")
    width, stem = cls_token[-1], any(name.startswith("base.patch_embed.conv.") for name in shapes)
    backbone = next(
        (k for k, v in MODELS.items() if isinstance(v, ViTSpec) and (v.width, v.stem) == (width, stem)), None
    )
    if backbone is None:
        known = ", ".join(f"{name} ({spec.width})" for name, spec in MODELS.items() if isinstance(spec, ViTSpec))
        raise InputError(f"its ViT has width {width}; the known widths are {known}")
    depth = MODELS[backbone].depth
    if "depth" in MODELS[backbone].choices:
        # Only up to four digits are read, so that a name cannot hold a number of any length.
        found = re.findall(r"^base\.blocks\.(\d{1,4})\.", "\n".join(shapes), re.MULTILINE)
        depth = 1 + max(map(int, found), default=0)
        if depth > MAX_DEPTH:
            raise InputError(f"{depth} blocks are too many; at most {MAX_DEPTH} are supported")
    own = own_description(notes)
    patches = position[1] - 1
    overlapping = "stride" in MODELS[backbone].choices
    given = own.stride or PATCH if own else 0 if overlapping else PATCH
    size, stride = guess_grid(patches, source_size or (own and own.image_size), given)
    jpm, sie = any(name.startswith("b1.") for name in shapes), shapes.get("base.sie_embed", ())
    if 0 in sie:
        raise InputError(
            f"base.sie_embed has shape {sie}, but a camera embedding (SIE) has a vector for each camera: convert the "
            "original file, or remove base.sie_embed from this file if the model was trained without it"
        )

    def classes(name: str) -> int:
        return (shapes.get(name) or (0,))[0]

    last = "b1.0" if jpm else f"base.blocks.{depth - 1}"
    description = Description(
        *(backbone, depth, size, HALF, HALF, classes("classifier.weight"), classes("classifier_aux.weight")),
        norm_ratio=NormRatio() if f"{last}.attn.norm_ratio" in shapes else None,
        stride=0 if stride == PATCH else stride,
        jpm=jpm,
        sie=bool(sie),
        cameras=tuple(range(sie[0])) if sie else (),
    )
    if own is None:
        return description
    if own.architecture != description.architecture:
        raise InputError("the description in the file is of another model than its tensors; convert the original file")
    # The description also has what tensors do not show: normalisation, identities and NRA's settings.
    return dataclasses.replace(own, image_size=size)


def own_description(notes: str) -> Description | None:
    """Return the description that to_torch.py wrote beside the tensors; None if it wrote no description.

    Raises:
        InputError: the description is damaged.
    """
    try:
        return Description.from_json(json.loads(notes)) if notes else None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise InputError("the description in the file is damaged; convert the original file") from error


def guess_grid(patches: int, size: tuple[int, int] | None, stride: int) -> tuple[tuple[int, int], int]:
    """Return the image size, (height, width) in pixels, and the patch stride in pixels.

    Args:
        patches: the number of patches of the position embedding.
        size: the image size; None to guess it.
        stride: the patch stride; 0 to guess it.

    Raises:
        InputError: no known grid, or more than one, has this number of patches.
    """
    strides = (stride,) if stride else STRIDES
    if size:
        fitting = [(size, each) for each in strides if math.prod(patch_grid(size, each)) == patches]
        if not fitting:
            raise InputError(f"the position embedding has {patches} patches, but images of {size} have another number")
        return fitting[0]
    overlapping = [each for each in strides if each != PATCH]
    fitting = [(size, each) for each in overlapping for size in SIZES if math.prod(patch_grid(size, each)) == patches]
    # Try the ratios height : width of ImageNet, of LUPerson, and of 384×128 pixels. No number of patches fits two.
    for ratio in (1, 2, 3):
        columns = math.isqrt(patches // ratio)
        if columns and columns * columns * ratio == patches:
            fitting.insert(0, ((columns * ratio * PATCH, columns * PATCH), PATCH))
    if not fitting:
        raise InputError(
            f"{patches} patches do not form a grid with height : width = 1, 2 or 3, nor one of TransReID's with "
            "overlapping patches; give --source_size, the size of the images that the weights are for"
        )
    if len(fitting) > 1:
        listed = ", or ".join(f"images of {h},{w} with patches {step} pixels apart" for (h, w), step in fitting)
        raise InputError(f"{patches} patches fit {listed}; choose one with --source_size")
    return fitting[0]
