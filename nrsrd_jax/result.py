"""Evaluating a model on a data set, and the record of what was run: result.json."""

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from . import config as configuration
from .data import datasets
from .embedding import Embedder
from .evaluation import RankMetrics, rank_metrics, squared_distances
from .inputs import test_images

PROTOCOL = "Market-1501: gallery images of the query's identity and camera are left out"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def evaluate(embedder: Embedder, config: ConfigDict, data: datasets.Dataset) -> RankMetrics:
    """Ranks the gallery for every query by the distance of L2-normalised features."""
    query, gallery = (
        embedder(test_images(config, split), progress=name)
        for name, split in (("query", data.query), ("gallery", data.gallery))
    )
    return score(query, gallery, data)


def score(query: np.ndarray, gallery: np.ndarray, data: datasets.Dataset) -> RankMetrics:
    """Metrics of features [Q, D] and [G, D], whatever made them."""
    distances = squared_distances(query, gallery)
    return rank_metrics(distances, data.query.pids, data.gallery.pids, data.query.cameras, data.gallery.cameras)


def make_result(
    metrics: RankMetrics, embedder: Embedder, config: ConfigDict, data: datasets.Dataset, source: Path, seconds: float
) -> dict[str, Any]:
    """The headline numbers, and all that is needed to say what they are of."""
    return metrics.summary() | {
        "gallery": len(data.gallery),
        "cmc": [round(float(x), 6) for x in metrics.cmc],
        "protocol": PROTOCOL,
        "checkpoint": str(source),
        "weights_sha256": embedder.weights_hash(),
        "backbone": embedder.description.backbone,
        "image_size": list(embedder.description.image_size),
        "data": {"name": config.data.name, "root": str(config.data.root)}
        | {f"{name}_sha256": getattr(data, name).hash() for name in ("query", "gallery")},
        "config": configuration.flatten(config),
        "devices": [str(device) for device in jax.devices()],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "seconds": round(seconds, 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """Writes whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)


COLUMNS = {"mAP": "mAP", "mINP": "mINP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10"}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Named results as a table on screen, in per cent."""
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{title:>9}" for title in COLUMNS.values())]
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{100 * values[key]:>9.1f}" for key in COLUMNS))
    return "\n".join(lines)
