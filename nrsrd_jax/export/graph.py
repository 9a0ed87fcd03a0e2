"""Build an ONNX graph: each call adds an operation and returns the name of its result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import InputError

PACKAGES = "ONNX files need two packages: pip install 'nrsrd-jax[export]'"

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as missing:
    raise InputError(PACKAGES) from missing

# From this opset on, a reduction takes its axes as an input instead of an attribute.
AXES_ARE_INPUTS = 18
MOST_BYTES = 2**31 - 1  # of a protobuf


class Graph:
    """The nodes and weights of an ONNX graph.

    Arguments `x` and `inputs` of the methods are names of values, and so are their results.

    Attributes:
        opset: the version of the operators, in OPSETS.
        float_type: the type of the weights and of the matrix products, float32 or float16.
    """

    def __init__(self, opset: int, float_type: str = "float32"):
        self.opset, self.float_type = opset, np.dtype(float_type)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one result."""
        return self.add_several(operator, *inputs, results=1, name=name, **attributes)[0]

    def add_several(self, operator: str, *inputs: str, results: int, name: str = "", **attributes: Any) -> list[str]:
        """Add a node with several results."""
        stem = name or f"{operator}_{len(self._nodes)}"
        outputs = [stem] if results == 1 else [f"{stem}_{index}" for index in range(results)]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=stem, **attributes))
        return outputs

    def weight(self, name: str, values: Any, float_type: str = "") -> str:
        """Add a floating-point tensor of type `float_type`, or else of the graph's type. Each name is unique."""
        assert name not in self._weights, name
        array = np.ascontiguousarray(np.asarray(values), np.dtype(float_type) if float_type else self.float_type)
        self._weights[name] = numpy_helper.from_array(array, name)
        return name

    def numbers(self, *values: int) -> str:
        """Add a vector of integers. Equal vectors share one tensor."""
        name = "ints_" + "_".join(map(str, values)).replace("-", "m")
        self._weights.setdefault(name, numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def constant(self, value: float) -> str:
        """Add a float32 scalar. Equal scalars share one tensor."""
        name = f"float_{float(value)!r}"
        self._weights.setdefault(name, numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def wide(self, x: str) -> str:
        """Convert from the graph's type to float32."""
        return x if self.float_type == np.float32 else self.convert(x, np.float32)

    def narrow(self, x: str) -> str:
        """Convert from float32 to the graph's type."""
        return x if self.float_type == np.float32 else self.convert(x, self.float_type)

    def convert(self, x: str, number_type: DTypeLike) -> str:
        """Convert to another type."""
        return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(number_type)))

    def reduce(self, operator: str, x: str, *axes: int) -> str:
        """Reduce over axes, which keep the length 1."""
        if self.opset < AXES_ARE_INPUTS:
            return self.add(operator, x, axes=list(axes), keepdims=1)
        return self.add(operator, x, self.numbers(*axes), keepdims=1)

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape. 0 keeps the length of an axis; −1 is inferred from the other lengths."""
        return self.add("Reshape", x, self.numbers(*shape))

    def transpose(self, x: str, *order: int) -> str:
        """Reorder the axes."""
        return self.add("Transpose", x, perm=list(order))

    def first(self, x: str, axis: int) -> str:
        """Keep the first entry along an axis, which keeps the length 1."""
        return self.add("Slice", x, self.numbers(0), self.numbers(1), self.numbers(axis))

    def linear(self, x: str, name: str, kernel: Any, bias: Any) -> str:
        """Multiply by a kernel [in, out] and add a bias [out]."""
        product = self.add("MatMul", x, self.weight(f"{name}.weight", kernel))
        return self.add("Add", product, self.weight(f"{name}.bias", bias), name=name)

    def model(self, inputs: str, kind: str, shape: Sequence[int | str], output: str, width: int) -> "onnx.ModelProto":
        """Return the finished model.

        Args:
            inputs: the name of its input.
            kind: the type of the input.
            shape: the shape of the input, whose first axis is the batch.
            output: the name of its output, float32 features [batch, width].
            width: the width of the features.
        """
        taken = helper.make_tensor_value_info(inputs, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
        given = helper.make_tensor_value_info(output, TensorProto.FLOAT, [shape[0], width])
        graph = helper.make_graph(self._nodes, "nrsrd-jax", [taken], [given], list(self._weights.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="nrsrd-jax")
        # Use the oldest format that has these operators, so that older runtimes can read the file.
        model.ir_version = helper.find_min_ir_version_for(opsets)
        return model
