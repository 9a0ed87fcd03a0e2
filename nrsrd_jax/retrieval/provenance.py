"""Record where a result comes from: weights, data, protocol, options, versions and devices."""

import dataclasses
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from ..data.protocol import PROTOCOLS, Target
from ..eval_options import Eval
from ..files import absolute
from ..inputs import stamps, test_data
from ..options import Options
from ..runs import known_score
from ..stored import read_description
from .embedding import Embeds

PACKAGES = ("nrsrd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy", "pillow")


def hashes_of(target: Target, options: Options) -> dict[str, str]:
    """Return what identifies the test images: the hashes of their lists, and `inputs.stamps`."""
    lists = {f"{split}_list_sha256": getattr(target, split).hash() for split in ("query", "gallery")}
    return lists | stamps(options, target)


def selected_by(source: Path, path: Path) -> str:
    """Return in words why the checkpoint `path` is taken for `source`, the checkpoint or run that the user named."""
    if path == absolute(source):
        return "its name"
    if known_score(source, int(path.name)) is not None:
        if (read_description(path).provenance.get("config") or {}).get("data.holdout"):
            return "the best mAP on people held out of training"
        return "the best mAP on the run's query and gallery while training"
    return "being the last of a run that was not evaluated"


def provenance(embedder: Embeds, options: Options, source: Path) -> dict[str, Any]:
    """Return everything that identifies the scores and is needed to reproduce them."""
    choice, trained = test_data(options), embedder.description.provenance
    return {
        **protocol_record(options.eval),
        "flip": options.eval.flip,
        "feature": options.eval.feature,
        "transductive": options.eval.normalize != "none",
        "checkpoint": str(source),
        "weights_sha256": embedder.identity()["weights_sha256"],
        "backbone": embedder.description.backbone,
        "image_size": list(embedder.description.image_size),
        "data": {
            "name": choice.name,
            "root": choice.root,
            "protocol": choice.protocol,
            "exclude": options.data.exclude,
        },
        "command": shlex.join(sys.argv),
        # Relative paths in the command refer to this folder.
        "folder": os.getcwd(),
        "config": dataclasses.asdict(options),
        "trained_with": trained.get("config"),
        "source": trained.get("source"),
        "devices": [str(device) for device in jax.devices()],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version(), "commit": commit()},
    }


def protocol_record(chosen: Eval) -> dict[str, Any]:
    """Return how features are compared, for an evaluation of any kind of crops."""
    rerank = chosen.rerank
    return {
        "protocol": f"{chosen.protocol}: {PROTOCOLS[chosen.protocol].meaning}",
        "rerank": {"k1": rerank.k1, "k2": rerank.k2, "lambda_value": rerank.lambda_value} if rerank.enabled else None,
        "expand": chosen.expand,
        "normalize": chosen.normalize,
    }


def commit() -> str | None:
    """Return the git commit of this code, with -dirty if it was changed; None outside a git checkout."""
    here = Path(__file__)
    git = functools.partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, check=True)
    try:
        # If this package was copied into another project's checkout, that project's commit would be wrong.
        git(["git", "ls-files", "--error-unmatch", here.name])
        # --exclude leaves out all tags, so that the answer is always the hash.
        return git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
