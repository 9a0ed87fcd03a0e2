"""An exported ONNX file that is run as an `Embedder` is called: for parity, evaluation and benchmarks."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..description import Description
from ..errors import InputError, printable
from ..files import absolute, read_bounded
from ..retrieval.embedding import filled, host_batches
from ..sharding import make_mesh
from .graph import MOST_BYTES, PACKAGES
from .layouts import LAYOUTS

try:
    import onnxruntime
except ImportError as missing:
    raise InputError(PACKAGES) from missing

RUNTIME = f"ONNX Runtime {onnxruntime.__version__}"
ERRORS_ONLY = 3  # onnxruntime warns of each constant that it folds


class OnnxEmbedder:
    """Compute features of images by an ONNX file of `nrsrd export`, on the CPU.

    Args:
        source: the file, or its bytes.
        batch_size: the most images at once, where the file does not fix their number.

    Attributes:
        description: what the file says of its model; `provenance` is empty.
        notes: the file's metadata, {name: text}.
        sha256: of the file.
        mesh: of the devices that rank the features.

    Raises:
        InputError: the file cannot be read, or `nrsrd export` did not write it.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.export.runtime import OnnxEmbedder
        >>> embedder = OnnxEmbedder("night.onnx")
        >>> embedder(np.zeros((2, 32, 16, 3), np.uint8)).shape
        (2, 192)
    """

    def __init__(self, source: str | Path | bytes, batch_size: int = 256):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        content = source if isinstance(source, bytes) else _read(source)
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        # The runtime raises its own exceptions, which have no common base.
        except Exception as error:
            reason = printable(str(error).partition("\n")[0], 200)
            raise InputError(f"{_named(source)} is not an ONNX file that can be run: {reason}") from error
        self.notes: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        try:
            self.description = described(self.notes)
            self.identity()
            self._layout = LAYOUTS[self.notes["input"]]
            self.width = int(self.session.get_outputs()[0].shape[1])
            self._input = self.session.get_inputs()[0]
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            raise InputError(f"{_named(source)} was not written by nrsrd export: its metadata is missing") from error
        self.shape: list[int | str] = self._input.shape
        batch = self.shape[0]
        self.fixed = isinstance(batch, int)
        self.batch_size = batch if isinstance(batch, int) else batch_size
        self.mesh = make_mesh()

    def __call__(
        self,
        images: np.ndarray,
        *,
        cameras: np.ndarray | None = None,
        progress: str = "",
        alter: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Compute the features of images, as `Embedder` does; `cameras` has no effect, as no ONNX file reads them."""
        del cameras
        features = [np.empty((0, self.width), np.float32)]
        for batch in host_batches(images, self.batch_size, progress, alter):
            whole = filled(batch, self.batch_size) if self.fixed else batch
            features.append(self.run(self._layout.feed(whole))[: len(batch)])
        return np.concatenate(features)

    def run(self, fed: np.ndarray) -> Any:
        """Return the features of one batch that is laid out as the file takes it."""
        return self.session.run(None, {self._input.name: fed})[0]

    def identity(self) -> dict[str, Any]:
        """Return what `Embedder.identity` returns of the checkpoint that the file was written from."""
        identity: dict[str, Any] = {name: self.notes[name] for name in ("weights_sha256", "model_sha256", "feature")}
        return identity | {"flip": self.notes["flip"] == "True"}

    def fingerprint(self) -> str:
        """Return a hash of what features depend on: the file, and what runs it."""
        return hashlib.sha256(f"{self.sha256} {RUNTIME}".encode()).hexdigest()


def openvino_function(content: bytes) -> tuple[Callable[[np.ndarray], Any], str]:
    """Return what OpenVINO computes of a batch that is laid out as an ONNX file takes it, and its name.

    Raises:
        InputError: OpenVINO is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # It forks, and JAX warns of that.
            import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise InputError("--openvino needs the package: pip install openvino") from missing
    core = openvino.Core()
    # Otherwise it computes in bfloat16 on a processor that can.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    compiled = core.compile_model(core.read_model(content), "CPU", exact)
    return lambda fed: compiled([fed])[0], f"OpenVINO {openvino.__version__.partition('-')[0]}"


def _read(path: str | Path) -> bytes:
    """Return the content of a file. InputError if there is no such file."""
    path = absolute(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; nrsrd export MODEL --output {path.name} writes one")
    return read_bounded(path, MOST_BYTES)


def described(notes: dict[str, str]) -> Description:
    """Return what is needed to feed and name a model, from the metadata of its file. LookupError, ValueError if not."""
    values = json.loads(notes["model"])
    height, width = values["image_size"]
    made = Description(
        str(values["backbone"]),
        int(values["depth"]),
        (int(height), int(width)),
        tuple(map(float, values["mean"])),
        tuple(map(float, values["std"])),
        brighten=float(values["brighten"]),
    )
    if not (0 < made.image_size[0] < 2**15 and 0 < made.image_size[1] < 2**15):
        raise ValueError(f"an image of {made.image_size} pixels")
    return made


def _named(source: str | Path | bytes) -> str:
    return "the file" if isinstance(source, bytes) else str(source)
