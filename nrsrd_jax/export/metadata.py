"""The metadata of an exported file: its input, the model that it computes, and how it was checked."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import read_bounded
from ..retrieval.calibration import MOST_BYTES, calibration_beside
from ..retrieval.embedding import Embedder

RESIZE = "bilinear with antialiasing, as Pillow's Image.resize(…, BILINEAR)"
# The fields of calibration.json that are copied.
CALIBRATION = "model", "people", "pairs", "searches", "curve", "probability"
LICENCE = (
    "The code that wrote this file is under Apache-2.0. The weights are under the licences of the pretrained weights "
    "and of the images that they come from."
)


def entries(embedder: Embedder, source: Path, written_as: Mapping[str, Any]) -> dict[str, str]:
    """Return {name: text}, the metadata of an exported file.

    Args:
        embedder: the Embedder of the exported model.
        source: the run or checkpoint that the user named. A calibration in its folder is copied.
        written_as: more entries: the file's input, format and precision.
    """
    description = embedder.description
    model = {
        "backbone": description.backbone,
        "depth": description.spec.depth,
        "image_size": description.image_size,
        "mean": description.mean,
        "std": description.std,
        "brighten": description.brighten,
    }
    identity = {name: str(value) for name, value in embedder.identity().items()}
    notes = {
        "software": f"nrsrd-jax {importlib.metadata.version('nrsrd-jax')}",
        "model": json.dumps(model),
        "image_size": "{} high, {} wide".format(*description.image_size),
        "resize": RESIZE,
        "compare_by": "cosine; the features are not normalised",
        "licence": LICENCE,
    }
    notes |= identity | {name: str(value) for name, value in written_as.items()}
    if calibration := calibration_beside(source, embedder.identity()):
        content = json.loads(read_bounded(calibration.path, MOST_BYTES))
        kept = {name: content[name] for name in CALIBRATION if name in content}
        notes["calibration"] = json.dumps(kept, separators=(",", ":"))
    return notes
