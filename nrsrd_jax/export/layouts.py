"""The forms in which programs feed crops to a network: type, order of axes and colours, and normalisation."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..description import Description
from .graph import Graph

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A form of crops. A float32 layout has (p / 255 − mean) / std for a pixel p in 0..255; uint8 has p itself.

    Attributes:
        kind: "uint8" or "float32".
        channels_first: whether the axes are [B, 3, h, w]; otherwise they are [B, h, w, 3].
        colours: "RGB" or "BGR".
        mean, std: the normalisation of red, green and blue.
        used_by: the programs that use this layout.
    """

    kind: str
    channels_first: bool
    colours: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    used_by: str

    def feed(self, images: np.ndarray) -> np.ndarray:
        """Convert crops, uint8 RGB [B, h, w, 3], to this layout."""
        if self.kind == "uint8":
            return images
        values = (images.astype(np.float32) / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        values = values[..., ::-1] if self.colours == "BGR" else values
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.channels_first else values)

    def shape(self, image_size: tuple[int, int], batch: int | str) -> list[int | str]:
        """Return the input's shape for images of (height, width) pixels."""
        height, width = image_size
        return [batch, 3, height, width] if self.channels_first else [batch, height, width, 3]


# With this mean and standard deviation, pixels stay in 0..255.
PIXELS = (0.0,) * 3, (1 / 255,) * 3
LAYOUTS = {
    "uint8-nhwc": Layout("uint8", False, "RGB", *PIXELS, "Pillow, and any program that can choose"),
    "float-nchw": Layout("float32", True, "RGB", *PIXELS, "DeepStream with netScaleFactor 1 and offsets 0"),
    "bgr-nchw": Layout("float32", True, "BGR", *PIXELS, "OpenVINO's demos, and OpenCV's blobFromImage"),
    "boxmot": Layout("float32", True, "RGB", *IMAGENET, "BoxMOT, normalised by ImageNet's mean and std"),
}


def add_preparation(graph: Graph, layout: Layout, description: Description, x: str) -> str:
    """Add the operations of `augment.prepared`: the input `x` -> normalised images [B, 3, h, w], float32."""
    if layout.kind != "float32":
        x = graph.convert(x, np.float32)
    if not layout.channels_first:
        x = graph.transpose(x, 0, 3, 1, 2)
    if layout.colours == "BGR":
        x = graph.add("Gather", x, graph.numbers(2, 1, 0), axis=1)
    if any(layout.mean):
        # Undo the program's normalisation. Then round: a black pixel arrives as 1e-7, which brightening would amplify.
        x = graph.add("Mul", x, _by_channel(graph, "input_std", [255 * std for std in layout.std]))
        x = graph.add("Add", x, _by_channel(graph, "input_mean", [255 * mean for mean in layout.mean]))
        x = graph.add("Clip", graph.add("Round", x), graph.constant(0), graph.constant(255))
    x = graph.add("Div", x, graph.constant(255))
    if description.brighten:
        x = _brightened(graph, x, description.brighten)
    x = graph.add("Sub", x, _by_channel(graph, "mean", description.mean))
    return graph.add("Div", x, _by_channel(graph, "std", description.std))


def _by_channel(graph: Graph, name: str, values: Sequence[float]) -> str:
    return graph.weight(name, np.reshape(values, (1, 3, 1, 1)), "float32")


def _brightened(graph: Graph, x: str, level: float) -> str:
    """Add the operations of `augment.brighten`."""
    # Average one axis at a time. Runtimes add numbers one by one, so a sum over a whole image would lose two digits.
    mean = x
    for axis in (3, 2, 1):
        mean = graph.reduce("ReduceMean", mean, axis)
    mean = graph.add("Clip", mean, graph.constant(1 / 255), graph.constant(1 - 1 / 255))
    gamma = graph.add("Div", graph.constant(np.log(np.float32(level))), graph.add("Log", mean))
    return graph.add("Pow", x, graph.add("Min", gamma, graph.constant(1)))
