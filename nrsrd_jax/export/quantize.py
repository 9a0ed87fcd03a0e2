"""Static quantisation: the linear layers of an ONNX graph in eight-bit integers instead of floats."""

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

AT_ONCE = 8  # crops


class _Crops(quantization.CalibrationDataReader):
    """What the ranges of activations are measured on."""

    def __init__(self, name: str, fed: np.ndarray, size: int):
        self._batches: Iterator[np.ndarray] = iter(fed[whole_batches(len(fed), size)])
        self._name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the advice to optimise the graph first, which the linear layers here do not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def quantized(model: "onnx.ModelProto", fed: np.ndarray, batch: int | None) -> "onnx.ModelProto":
    """Return the model with its linear layers in eight bits.

    A layer's weights have a scale for each output; its input has one scale, from the smallest and largest number that
    the crops give. Attention, norms, convolutions and what comes before the network stay in float32: they are a tenth
    of the work, and the last query's logits decide by thousandths.

    Args:
        model: in float32.
        fed: crops as the model takes them.
        batch: the number of crops of a call; None for any.

    Returns:
        The model with QuantizeLinear and DequantizeLinear nodes, which ONNX Runtime, OpenVINO and TensorRT fuse.
    """
    linear = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1].endswith(".weight")]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "quantized.onnx"
        # quantize_static moves the weights of its model to a file that it then deletes, so give it a copy.
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
