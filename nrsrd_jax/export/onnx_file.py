"""Write a model as an ONNX file, which takes a program's pixels and returns features to compare."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ..description import Description
from ..errors import InputError
from ..models import MODELS
from ..models.spec import Spec
from ..models.vit import PATCH, ViTSpec
from .graph import MOST_BYTES, Graph, onnx
from .layouts import LAYOUTS, add_preparation
from .vit_graph import add_vit, affine

INPUT, OUTPUT = "images", "features"
# {type of a backbone's spec: the function that adds the backbone to a graph}. Subclasses do not count, because they may
# compute something else.
WRITERS: dict[type[Spec], Callable[..., str]] = {ViTSpec: add_vit}


def build(
    description: Description,
    variables: dict,
    *,
    layout: str,
    feature: str,
    flip: bool,
    opset: int,
    batch: int | None,
    float_type: str = "float32",
) -> "onnx.ModelProto":
    """Write a model as one ONNX graph.

    Args:
        description: the model.
        variables: its variables.
        layout: the form of the crops, a key of LAYOUTS.
        feature: "cls", "neck" or "centred", as in `Embedder`.
        flip: whether to average the features of an image and of its mirror image.
        opset: the version of ONNX's operators, in OPSETS.
        batch: the number of crops per call; None for any number.
        float_type: the type of the weights and products, "float32" or "float16".

    Returns:
        The model. Its input is called "images" and its output "features", float32 [batch, D], not normalised.

    Raises:
        InputError: this backbone cannot be written, or the file would be larger than ONNX permits.

    Example:
        >>> from nrsrd_jax.checkpoint import load
        >>> from nrsrd_jax.export.onnx_file import build
        >>> from nrsrd_jax.sharding import make_mesh
        >>> description, variables = load("runs/night", make_mesh())
        >>> choice = {"layout": "uint8-nhwc", "feature": "cls", "flip": False, "opset": 17, "batch": None}
        >>> model = build(description, variables, **choice)
        >>> model.graph.input[0].name, model.graph.output[0].name
        ('images', 'features')
    """
    spec = description.spec
    writer = WRITERS.get(type(spec))
    if isinstance(spec, ViTSpec) and (spec.jpm or spec.sie or spec.stride != PATCH):
        raise InputError(
            "a ViT with model.jpm, model.sie or overlapping patches (model.stride) cannot be written as ONNX"
            + ("" if spec.sie else "; --format stablehlo takes it")
        )
    if not writer:
        known = ", ".join(name for name, each in MODELS.items() if type(each) in WRITERS)
        raise InputError(
            f"{description.backbone} cannot be written as ONNX, only {known}; --format stablehlo takes every model"
        )
    params, batch_stats = (jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats"))
    size = sum(values.size for values in jax.tree.leaves(params)) * np.dtype(float_type).itemsize
    if size > MOST_BYTES:
        raise InputError(f"{description.backbone} has {size >> 20} MiB of weights; an ONNX file holds at most 2 GiB")
    graph, fed = Graph(opset, float_type), LAYOUTS[layout]
    image = add_preparation(graph, fed, description, INPUT)
    if flip:
        # A slice with step −1 mirrors the last axis.
        # Its end must lie before the first pixel: an end of −1 would be the last pixel.
        mirrored = graph.add("Slice", image, *(graph.numbers(n) for n in (-1, -(2**31), 3, -1)))
        image = graph.add("Concat", image, mirrored, axis=0)
    parts = params["base"], batch_stats.get("base", {})
    features = writer(graph, spec, description.norm_ratio, *parts, image)
    neck = params["bottleneck"], batch_stats["bottleneck"]
    width = neck[1]["mean"].size
    if feature == "neck":
        factor, shift = affine(*neck)
        features = graph.add("Mul", features, graph.weight("neck.factor", factor, "float32"))
        features = graph.add("Add", features, graph.weight("neck.shift", shift, "float32"))
    elif feature == "centred":
        features = graph.add("Sub", features, graph.weight("neck.mean", neck[1]["mean"], "float32"))
    if flip:
        # `Concat` has put all mirrored images behind all others.
        both = graph.reshape(features, 2, -1, width)
        features = graph.reshape(graph.reduce("ReduceMean", both, 0), -1, width)
    graph.add("Identity", features, name=OUTPUT)
    return graph.model(INPUT, fed.kind, fed.shape(description.image_size, batch or "batch"), OUTPUT, width)


def with_metadata(model: "onnx.ModelProto", entries: Mapping[str, Any]) -> bytes:
    """Check a model, and return the content of its file with metadata {name: text}.

    Raises:
        onnx.checker.ValidationError: the model is not valid, which is a bug of this program.
    """
    # The exporter calls this again, with the result of the comparison.
    del model.metadata_props[:]
    for name, value in entries.items():
        model.metadata_props.add(key=name, value=str(value))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
