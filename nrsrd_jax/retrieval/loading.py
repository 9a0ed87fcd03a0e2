"""Load the model of an evaluation: a checkpoint, or an ONNX file of `nrsrd export`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from ..config import config_of
from ..description import Description
from ..errors import InputError
from ..files import expanded
from ..options import Options, read_options
from ..precision import compute_dtype
from ..runs import find_checkpoint, run_of
from .embedding import Embedder

if TYPE_CHECKING:
    from ..export.runtime import OnnxEmbedder


def make_embedder(description: Description, variables: dict, mesh: Mesh, options: Options) -> Embedder:
    """Return the Embedder that the options choose for a described model, with variables on the devices of `mesh`."""
    chosen = options.eval
    return Embedder(
        *(description.create_model(dtype=compute_dtype(options.train.precision)), variables, description, mesh),
        batch_size=chosen.batch_size,
        flip=chosen.flip,
        feature=chosen.feature,
    )


def load_embedder(path: Path, options: Options) -> tuple[Embedder, Options, str]:
    """Load a checkpoint for an evaluation.

    Returns:
        The Embedder; the options with the image size of its model; its fingerprint, or "" if features are not cached.

    Raises:
        InputError: as `Embedder.load`.
    """
    chosen = options.eval
    embedder = Embedder.load(
        path,
        batch_size=chosen.batch_size,
        precision=options.train.precision,
        flip=chosen.flip,
        feature=chosen.feature,
    )
    fingerprint = embedder.fingerprint() if options.data.cache != "none" else ""
    # The images are read at the size that the model takes, whatever the config says.
    return embedder, dataclasses.replace(options, image_size=embedder.description.image_size), fingerprint


def load_beside(name: str, options: Options) -> tuple[Embedder, Options, str]:
    """Load another run or checkpoint, whose features are appended to those of the first model.

    Args:
        name: a run, whose best checkpoint is taken, or a checkpoint.
        options: the options of the evaluation; eval.feature and eval.flip are replaced by those of the run itself.

    Returns:
        As `load_embedder`.

    Raises:
        InputError: as `Embedder.load`.
    """
    path = find_checkpoint(expanded(name))
    own = read_options(config_of(run_of(path)))
    chosen = dataclasses.replace(options.eval, feature=own.eval.feature, flip=own.eval.flip)
    return load_embedder(path, dataclasses.replace(options, eval=chosen))


def load_file(path: Path, options: Options, overrides: Mapping[str, Any]) -> tuple["OnnxEmbedder", Options, str]:
    """Load an ONNX file for an evaluation.

    Returns:
        As `load_embedder`, with eval.feature and eval.flip of the file in the options.

    Raises:
        InputError: the file cannot be used, or `overrides`, which the user chose, contradict it.
    """
    # This import needs packages that are optional.
    from ..export.runtime import OnnxEmbedder

    embedder = OnnxEmbedder(path, options.eval.batch_size)
    feature, flip = (embedder.identity()[name] for name in ("feature", "flip"))
    size = embedder.description.image_size
    for name, own in {"eval.feature": feature, "eval.flip": flip, "image_size": size}.items():
        if overrides.get(name, own) != own:
            raise InputError(
                f"--config.{name} is {overrides[name]}, but {path} was exported with {own}: leave it out, or export "
                "the model again"
            )
    chosen = dataclasses.replace(options.eval, feature=feature, flip=flip)
    options = dataclasses.replace(options, image_size=size, eval=chosen)
    return embedder, options, embedder.fingerprint() if options.data.cache != "none" else ""
