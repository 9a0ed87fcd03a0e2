"""Static quantisation: compute the linear layers of an ONNX graph in eight-bit integers instead of floats."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from .graph import PACKAGES, onnx
from .parity import whole_batches

try:
    from onnxruntime import quantization
except ImportError as missing:
    raise InputError(PACKAGES) from missing

AT_ONCE = 8  # crops per batch, if the model takes any number


class _Crops(quantization.CalibrationDataReader):
    """The crops on which the ranges of activations are measured."""

    def __init__(self, name: str, fed: np.ndarray, size: int):
        self._batches: Iterator[np.ndarray] = iter(fed[whole_batches(len(fed), size)])
        self._name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the advice to optimise the graph first, which these linear layers do not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def quantized(model: "onnx.ModelProto", fed: np.ndarray, batch: int | None) -> "onnx.ModelProto":
    """Return the model with its linear layers in eight bits.

    The weights of a layer have a scale for each output. Its input has one scale, which the smallest and the largest
    number for the crops determine. Attention, norms, convolutions and the preparation of images stay in float32: they
    are a tenth of the work, and differences of thousandths in the last query's logits matter.

    Args:
        model: the model in float32.
        fed: crops in the layout of the model's input.
        batch: the number of crops per call; None for any number.

    Returns:
        The model with QuantizeLinear and DequantizeLinear nodes, which ONNX Runtime, OpenVINO and TensorRT fuse.
    """
    linear = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1].endswith(".weight")]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "quantized.onnx"
        # quantize_static moves the weights of its model into a file that it then deletes. Therefore pass a copy.
        taken = onnx.ModelProto()
        taken.CopyFrom(model)
        quantization.quantize_static(
            taken,
            path,
            _Crops(model.graph.input[0].name, fed, batch or AT_ONCE),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            nodes_to_quantize=linear,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return onnx.load(path)
