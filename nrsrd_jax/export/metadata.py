"""What an exported file says of itself: how to feed it, whose features they are, and how it was checked."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, say
from ..files import read_bounded
from ..retrieval.calibration import FILE, MOST_BYTES, load_calibration
from ..retrieval.embedding import Embedder

RESIZE = "bilinear with antialiasing, as Pillow's Image.resize(…, BILINEAR)"
LICENCE = (
    "The code that wrote this file is under Apache-2.0. The weights are under the licences of the pretrained weights "
    "and of the images that they come from."
)


def entries(embedder: Embedder, source: Path, written_as: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a file, a text for each name.

    Args:
        embedder: the model's own.
        source: the run or checkpoint that the user named; a calibration beside it is taken along.
        written_as: how the file is fed and what it computes in, by name.
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
    if calibration := calibration_of(embedder, source):
        notes["calibration"] = calibration
    return notes


def calibration_of(embedder: Embedder, source: Path) -> str:
    """Return the calibration beside a model as JSON; "" without one, or with a warning, if it is of other features."""
    file = source / FILE
    if not file.is_file():
        return ""
    try:
        load_calibration(file).check_model(embedder.identity())
    except InputError as error:
        say(f"warning: the calibration is left out: {error}", error=True)
        return ""
    content = json.loads(read_bounded(file, MOST_BYTES))
    names = ("model", "people", "pairs", "searches", "curve", "probability")
    return json.dumps({name: content[name] for name in names if name in content}, separators=(",", ":"))
