"""A trained model's backbone, initial weights, size, operations per image and training time, as cells of a table."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .description import Description
from .errors import InputError
from .metrics_log import read_metrics
from .runs import find_checkpoint
from .stored import read_description

TITLES = "backbone", "started from", "M parameters", "GFLOP", "minutes"


@functools.cache
def costs(run: Path) -> list[str]:
    """Return the cells of a complete run under TITLES. They are cached, because an ablation rewrites its table often.

    The cells are: the backbone; the first digits of the SHA-256 of the weights that training started from; the
    backbone's parameters, without necks and classifiers, in millions; the floating-point operations of embedding one
    image, in 1e9; and the minutes from the first to the last line of the log, including the breaks of an interrupted
    run.
    """
    description = read_description(find_checkpoint(run))
    times = [row["time"] for row in read_metrics(run)]
    size = sum(leaf.size for leaf in jax.tree.leaves(description.abstract_variables()["params"]["base"]))
    operations = f"{work(description) / 1e9:.3g}"
    minutes = f"{(times[-1] - times[0]) / 60:.1f}" if times else ""
    return [description.backbone, start_of(description), f"{size / 1e6:.1f}", operations, minutes]


def start_of(description: Description) -> str:
    """Return "random", or the first digits of the SHA-256 of the weights that a training started from."""
    checkpoint = (description.provenance.get("config") or {}).get("init.checkpoint")
    if not checkpoint:
        return "random"
    try:
        found = read_description(find_checkpoint(Path(checkpoint)))
    except InputError:
        return f"{Path(checkpoint).name} (missing)"
    # Equal hashes show that two rows started from the same weights. Equal paths would not: their content may change.
    return str(found.provenance.get("weights_sha256", "?"))[:8]


def work(description: Description) -> float:
    """Return the floating-point operations of embedding one image, as XLA counts them."""
    model = description.create_model()

    def embed(variables: dict, images: jax.Array, cameras: jax.Array) -> Any:
        return model.apply(variables, images, cameras=cameras)["embedding"]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]

    images = jax.ShapeDtypeStruct((1, *description.image_size, 3), jnp.float32)
    cameras = jax.ShapeDtypeStruct((1,), np.int32)
    # Operations are counted before the compilation, which would take long and is not needed.
    lowered = jax.jit(embed).lower(description.abstract_variables(), images, cameras)
    return float((lowered.cost_analysis() or {}).get("flops", 0.0))
