"""The vision transformer of `models/vit.py` as ONNX operations, in evaluation.

B batch, N tokens (CLS first), M tokens that a block updates, D width, H heads, K head width
"""

from typing import Any

import numpy as np

from ..errors import InputError
from ..models.attention import NormRatio
from ..models.block import HEAD_WIDTH
from ..models.normalization import EPSILON
from ..models.vit import PATCH, ViTSpec
from .graph import Graph


def add_vit(
    graph: Graph, spec: ViTSpec, norm_ratio: NormRatio | None, params: dict, batch_stats: dict, image: str
) -> str:
    """Add the backbone to a graph.

    Args:
        graph: the graph.
        spec: the backbone.
        norm_ratio: the settings of NRA in the last block, or None.
        params, batch_stats: the backbone's variables, as NumPy arrays.
        image: the name of the normalised images, float32 [B, 3, h, w].

    Returns:
        The name of the features, float32 [B, D].

    Raises:
        InputError: this form of NRA cannot be written.
    """
    x = _patches(graph, spec, params["patch_embed"], batch_stats.get("patch_embed", {}), graph.narrow(image))
    # Put a zero in front of the patches, and add the CLS token to the first position. This also works for a batch of
    # unknown size, because nothing is repeated for each image.
    position = np.array(params["pos_embed"])
    position[:, :1] += np.asarray(params["cls_token"])
    x = graph.add("Pad", x, graph.numbers(0, 1, 0, 0, 0, 0))  # [B, N, D]
    x = graph.add("Add", x, graph.weight("pos_embed", position))
    for index in range(spec.depth):
        last = index == spec.depth - 1
        x = _block(graph, f"blocks.{index}", params[f"blocks_{index}"], x, last, norm_ratio if last else None)
    x = _layer_norm(graph, "norm", params["norm"], graph.wide(x), "float32")
    return graph.reshape(x, 0, spec.width)


def _patches(graph: Graph, spec: ViTSpec, params: dict, batch_stats: dict, x: str) -> str:
    """Embed the patches in row-major order, [B, 3, h, w] -> [B, N − 1, D]."""
    patch = PATCH
    if spec.stem:
        x = _conv(graph, "conv.0", params["conv_0"], x, stride=2, batch_norm=_second_half(params, batch_stats, 1))
        x = graph.add("Relu", _half_instance_norm(graph, "conv.1", params["conv_1"]["IN"], x))
        x = _conv(graph, "conv.3", params["conv_3"], x, batch_norm=_second_half(params, batch_stats, 4))
        x = graph.add("Relu", _half_instance_norm(graph, "conv.4", params["conv_4"]["IN"], x))
        x = _conv(graph, "conv.6", params["conv_6"], x, batch_norm=affine(params["conv_7"], batch_stats["conv_7"]))
        x = graph.add("Relu", x)
        patch //= 2
    kernel = graph.weight("patch_embed.weight", np.transpose(params["proj"]["kernel"], (3, 2, 0, 1)))
    bias = graph.weight("patch_embed.bias", params["proj"]["bias"])
    x = graph.add("Conv", x, kernel, bias, kernel_shape=[patch, patch], strides=[patch, patch])
    return graph.transpose(graph.reshape(x, 0, spec.width, -1), 0, 2, 1)


def affine(params: dict, batch_stats: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return BatchNorm in evaluation as a factor and a shift: y = x·factor + shift."""
    mean, var, scale, bias = (
        np.asarray(values, np.float64)
        for values in (batch_stats["mean"], batch_stats["var"], params["scale"], params["bias"])
    )
    factor = scale / np.sqrt(var + EPSILON)
    return factor, bias - mean * factor


def _second_half(params: dict, batch_stats: dict, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and shift of all channels for the BatchNorm of IBN's second half; 1 and 0 for the first half."""
    factor, shift = affine(params[f"conv_{index}"]["BN"], batch_stats[f"conv_{index}"]["BN"])
    return np.concatenate([np.ones_like(factor), factor]), np.concatenate([np.zeros_like(shift), shift])


def _conv(
    graph: Graph, name: str, params: dict, x: str, *, batch_norm: tuple[np.ndarray, np.ndarray], stride: int = 1
) -> str:
    """Convolve, and apply a BatchNorm, whose factor becomes part of the kernel."""
    factor, shift = batch_norm
    kernel = np.transpose(params["kernel"], (3, 2, 0, 1)) * factor[:, None, None, None]
    size = kernel.shape[-1]
    weights = graph.weight(f"{name}.weight", kernel), graph.weight(f"{name}.bias", shift)
    return graph.add("Conv", x, *weights, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[size // 2] * 4)


def _half_instance_norm(graph: Graph, name: str, params: dict, x: str) -> str:
    """Apply instance norm to the first half of the channels."""
    half = len(params["scale"])
    first, second = graph.add_several("Split", x, graph.numbers(half, half), results=2, axis=1)
    weights = (graph.weight(f"{name}.{leaf}", params[leaf], "float32") for leaf in ("scale", "bias"))
    first = graph.add("InstanceNormalization", graph.wide(first), *weights, epsilon=EPSILON)
    return graph.add("Concat", graph.narrow(first), second, axis=1)


def _layer_norm(graph: Graph, name: str, params: dict, x: str, float_type: str = "") -> str:
    weights = (graph.weight(f"{name}.{leaf}", params[leaf], float_type) for leaf in ("scale", "bias"))
    return graph.add("LayerNormalization", x, *weights, axis=-1, epsilon=1e-6)


def _block(graph: Graph, name: str, params: dict, x: str, last: bool, norm_ratio: NormRatio | None) -> str:
    """Apply a transformer block, [B, N, D] -> [B, M, D]. The last block updates only CLS, M = 1."""
    normal = _layer_norm(graph, f"{name}.norm1", params["norm1"], x)
    asking = graph.first(normal, 1) if last else normal
    x = graph.first(x, 1) if last else x
    x = graph.add("Add", x, _attention(graph, f"{name}.attn", params["attn"], asking, normal, norm_ratio))
    hidden = _layer_norm(graph, f"{name}.norm2", params["norm2"], x)
    hidden = graph.linear(hidden, f"{name}.mlp.fc1", **params["mlp"]["fc1"])
    hidden = _gelu(graph, hidden)
    return graph.add("Add", x, graph.linear(hidden, f"{name}.mlp.fc2", **params["mlp"]["fc2"]))


def _gelu(graph: Graph, x: str) -> str:
    """Compute x·Φ(x) by erf, in the form that runtimes recognise and fuse into one operation."""
    root, one, half = (graph.narrow(graph.constant(value)) for value in (np.sqrt(2), 1, 0.5))
    y = graph.add("Add", graph.add("Erf", graph.add("Div", x, root)), one)
    return graph.add("Mul", graph.add("Mul", x, y), half)


def _attention(
    graph: Graph, name: str, params: dict, asking: str, x: str, norm_ratio: NormRatio | None
) -> str:  # [B, M, D], [B, N, D] -> [B, M, D]
    width = params["proj"]["kernel"].shape[0]
    kernels, biases = (np.split(np.asarray(params["qkv"][leaf]), 3, axis=-1) for leaf in ("kernel", "bias"))
    # Scaling the query's kernel by a power of two rounds nothing.
    scales = HEAD_WIDTH**-0.5, 1.0, 1.0
    q, k, v = (
        graph.reshape(graph.linear(y, f"{name}.{letter}", kernel * scale, bias * scale), 0, 0, -1, HEAD_WIDTH)
        for letter, y, kernel, bias, scale in zip("qkv", (asking, x, x), kernels, biases, scales, strict=True)
    )
    q, k, v = graph.transpose(q, 0, 2, 1, 3), graph.transpose(k, 0, 2, 3, 1), graph.transpose(v, 0, 2, 1, 3)
    logits = graph.wide(graph.add("MatMul", q, k))  # [B, H, M, N]
    if norm_ratio:
        logits = graph.add("Sub", logits, _penalty(graph, params["norm_ratio"], norm_ratio, q, k))
    weights = graph.narrow(graph.add("Softmax", logits, axis=-1))
    y = graph.transpose(graph.add("MatMul", weights, v), 0, 2, 1, 3)
    return graph.linear(graph.reshape(y, 0, 0, width), f"{name}.proj", **params["proj"])


def _penalty(graph: Graph, strength: Any, norm_ratio: NormRatio, q: str, k: str) -> str:
    """Return γ, which NRA subtracts from the logits [B, H, M, N]; q [B, H, M, K] is scaled, k is [B, H, K, N]."""
    q, k = graph.wide(q), graph.wide(k)
    heads = (1,) if norm_ratio.scope == "token" else ()
    k_norm = graph.reduce("ReduceL2", k, *heads, 2)  # [B, H or 1, 1, N]
    strength = graph.weight("norm_ratio", strength, "float32")
    if norm_ratio.form == "ratio":
        q_norm = graph.add("Mul", graph.reduce("ReduceL2", q, *heads, 3), graph.constant(HEAD_WIDTH**0.5))
        ratio = graph.add("Div", k_norm, graph.add("Add", q_norm, graph.constant(norm_ratio.epsilon)))
        return graph.add("Mul", ratio, strength)
    if norm_ratio.form == "standard":
        deviation = graph.add("Sub", k_norm, graph.reduce("ReduceMean", k_norm, 3))
        variance = graph.reduce("ReduceMean", graph.add("Mul", deviation, deviation), 3)
        root = graph.add("Sqrt", graph.add("Add", variance, graph.constant(1e-12)))
        return graph.add("Mul", graph.add("Div", deviation, root), strength)
    raise InputError(f"NRA of the form {norm_ratio.form} cannot be written as ONNX; --format stablehlo has every form")
