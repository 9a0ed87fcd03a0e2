"""Evaluating a model on a data set, and the record of what was run: result.json."""

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import config as configuration
from .checkpoint import find_checkpoint, newest_run, weights_hash
from .config import Config
from .data import datasets
from .embedding import Embedder
from .errors import InputError
from .evaluation import RankMetrics, rank_metrics, squared_distances
from .files import expanded, write_whole
from .inputs import read_targets, read_test_images

PROTOCOL = "Market-1501: gallery images of the query's identity and camera are left out"
PACKAGES = ("nrsrd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def evaluate_run(
    workdir: str, directory: str, output: str, config: Config, overrides: dict[str, Any]
) -> tuple[dict[str, Any], Path]:
    """Evaluates a run's best checkpoint, or the one in `directory`, and writes the result; returns it and its path.

    Without `config` the run's own is used, or night600's for a checkpoint of no run, with `overrides`
    ({"data.root": …}) on top. Without `workdir` and `directory` it is the newest run. InputError if the checkpoint or
    the data cannot be used.
    """
    if workdir and directory:
        raise InputError("--workdir and --checkpoint both name weights; give one of them")
    source = expanded(directory or workdir or newest_run())
    path = find_checkpoint(source)
    if config is None:
        homes = [home for home in (source, *path.parents[:2]) if (home / "config.json").is_file()]
        config = configuration.load(homes[0] / "config.json") if homes else configuration.get_config()
        config.update_from_flattened_dict(overrides)
    configuration.validate(config)
    targets = read_targets(config)
    embedder = Embedder.load(path, batch_size=config.eval.batch_size, precision=config.train.precision)
    config.image_size = embedder.description.image_size
    target = expanded(output) if output else source / "result.json"
    if target.is_dir():
        raise InputError(f"--output {target} is a folder; name a file in it")
    begin = time.perf_counter()
    results = evaluate(embedder, config, targets)
    result = make_result(results, embedder, config, targets, path, time.perf_counter() - begin)
    named = path == source.absolute()
    result["selected_by"] = "name" if named else "best mAP on the run's query and gallery while training, else the last"
    write_whole(target, json.dumps(result, indent=1) + "\n")
    return result, target


def evaluate(embedder: Embedder, config: Config, targets: dict[str, datasets.Dataset]) -> dict[str, RankMetrics]:
    """Per data set: ranks the gallery for every query by the distance of L2-normalised features."""
    results = {}
    for target, data in targets.items():
        query, gallery = (
            embedder(read_test_images(config, split), progress=f"{target} {name}")
            for name, split in (("query", data.query), ("gallery", data.gallery))
        )
        results[target] = score(query, gallery, data)
    return results


def headline(results: dict[str, RankMetrics]) -> dict[str, Any]:
    """The numbers of a single data set; of several the means of fractions and the sums of counts."""
    rows = [metrics.summary() for metrics in results.values()]
    combine = {name: np.sum if name.startswith("queries") else np.mean for name in rows[0]}
    return rows[0] if len(rows) == 1 else {n: combine[n]([row[n] for row in rows]).item() for n in combine}


def score(query: np.ndarray, gallery: np.ndarray, data: datasets.Dataset) -> RankMetrics:
    """Metrics of features [Q, D] and [G, D], whatever made them."""
    distances = squared_distances(query, gallery)
    return rank_metrics(distances, data.query.pids, data.gallery.pids, data.query.cameras, data.gallery.cameras)


def make_result(
    results: dict[str, RankMetrics],
    embedder: Embedder,
    config: Config,
    targets: dict[str, datasets.Dataset],
    source: Path,
    seconds: float,
) -> dict[str, Any]:
    """The headline numbers, those of each data set, and all that is needed to say what they are of."""
    choice = config.eval.data if config.eval.data.name else config.data
    return headline(results) | {
        "targets": {
            name: results[name].summary()
            | {"gallery": len(data.gallery), "cmc": [round(float(x), 6) for x in results[name].cmc]}
            | {f"{split}_sha256": getattr(data, split).hash() for split in ("query", "gallery")}
            for name, data in targets.items()
        },
        "protocol": PROTOCOL,
        "checkpoint": str(source),
        "weights_sha256": weights_hash(embedder.variables),
        "backbone": embedder.description.backbone,
        "image_size": list(embedder.description.image_size),
        "data": {name: str(choice[name]) for name in ("name", "root", "protocol")} | {"exclude": config.data.exclude},
        **{key: embedder.description.provenance.get(key) for key in ("config", "source")},  # of training or conversion
        "devices": [str(device) for device in jax.devices()],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "seconds": round(seconds, 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


COLUMNS = {"mAP": "mAP", "mINP": "mINP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10"}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Named results as a table on screen, in per cent."""
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{title:>9}" for title in COLUMNS.values())]
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{100 * values[key]:>9.1f}" for key in COLUMNS))
    return "\n".join(lines)
