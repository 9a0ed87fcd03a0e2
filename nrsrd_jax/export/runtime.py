"""Run an exported ONNX file in place of an `Embedder`: for the comparison, evaluation and benchmarks."""

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
# Report errors only: onnxruntime warns about each constant that it folds.
ERRORS_ONLY = 3


class OnnxEmbedder:
    """Compute features of images by an ONNX file of `nrsrd export`, on the CPU.

    Args:
        source: the file, or its bytes.
        batch_size: the largest number of images at once, unless the file fixes the number.

    Attributes:
        description: the Description of the model, from the file's metadata; `provenance` is empty.
        notes: the file's metadata, {name: text}.
        sha256: the SHA-256 of the file.
        mesh: the devices that rank the features.

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
        # The runtime raises exceptions that have no common base class.
        except Exception as error:
            reason = printable(str(error).partition("\n")[0], 200)
            raise InputError(f"{_named(source)} is not an ONNX file that can be run: {reason}") from error
        self.notes: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        try:
            self.description = described(self.notes)
            # Call this once now, so that a missing entry is not found in the middle of an evaluation.
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
        """Compute the features of images, as `Embedder` does. `cameras` has no effect, because ONNX files take none."""
        del cameras
        features = [np.empty((0, self.width), np.float32)]
        for batch in host_batches(images, self.batch_size, progress, alter):
            whole = filled(batch, self.batch_size) if self.fixed else batch
            features.append(self.run(self._layout.feed(whole))[: len(batch)])
        return np.concatenate(features)

    def run(self, fed: np.ndarray) -> Any:
        """Return the features of one batch in the layout of the file's input."""
        return self.session.run(None, {self._input.name: fed})[0]

    def identity(self) -> dict[str, Any]:
        """Return the `Embedder.identity` of the checkpoint from which the file was written."""
        identity: dict[str, Any] = {name: self.notes[name] for name in ("weights_sha256", "model_sha256", "feature")}
        return identity | {"flip": self.notes["flip"] == "True"}

    def fingerprint(self) -> str:
        """Return a hash of everything that features depend on: the file and the version of its runtime."""
        return hashlib.sha256(f"{self.sha256} {RUNTIME}".encode()).hexdigest()


def openvino_function(content: bytes) -> tuple[Callable[[np.ndarray], Any], str]:
    """Return a function by which OpenVINO computes the features of a batch, and OpenVINO's name and version.

    The function takes a batch in the layout of the ONNX file's input.

    Raises:
        InputError: OpenVINO is not installed.
    """
    try:
        # OpenVINO forks when it is imported, and JAX warns about forks.
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as missing:
        raise InputError("--openvino needs the package: pip install openvino") from missing
    core = openvino.Core()
    # By default, OpenVINO computes in bfloat16 if the processor supports it.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    compiled = core.compile_model(core.read_model(content), "CPU", exact)
    return lambda fed: compiled([fed])[0], f"OpenVINO {openvino.__version__.partition('-')[0]}"


def _read(path: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: the file does not exist.
    """
    path = absolute(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; nrsrd export MODEL --output {path.name} writes one")
    return read_bounded(path, MOST_BYTES)


def described(notes: dict[str, str]) -> Description:
    """Return the Description of a file's model, from the file's metadata.

    Raises:
        LookupError, ValueError, TypeError: the metadata is missing or damaged.
    """
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
