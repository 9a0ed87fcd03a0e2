"""Compare runs and checkpoints on the same queries and gallery, as `nrsrd compare` does."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..compiled import keep_compiled
from ..config import Config, config_of
from ..data.lists import quoted
from ..data.protocol import Target
from ..errors import InputError, counted, say
from ..files import expanded, read_bounded, refuse_same_files, writable_file, write_csv, write_whole
from ..inputs import read_targets
from ..metrics_log import TITLES
from ..options import Options, read_options
from ..runs import FOLDER, find_checkpoint, run_of
from ..stored import read_description
from .bootstrap import percentile_interval, resampled_means
from .comparison_tables import LEVEL, SCORES, UNITS, plot_differences
from .loading import load_embedder
from .provenance import hashes_of, provenance, selected_by
from .ranking import RankMetrics
from .result import find_warnings
from .scoring import evaluate

OUTPUT = "compare.json"
# The first columns of the list of flips.
FLIPS = ("data", "path", "identity", "camera")
# The options of `eval` that each run has for itself.
OWN = ("feature", "flip", "normalize")
# The entries of `provenance` that may differ between checkpoints; the other entries hold for all.
OF_ONE = ("checkpoint", "weights_sha256", "backbone", "image_size", "trained_with", "source", "transductive", *OWN)


def compare(
    runs: Sequence[str],
    output: str = "",
    config: Config = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    *,
    flips: str = "",
    resamples: int = 10_000,
    seed: int = 0,
    by: str = "query",
) -> tuple[dict[str, Any], list[Path]]:
    """Evaluate runs on the same data, and write their differences.

    Args:
        runs: two or more runs (their best checkpoints are taken) or checkpoints; or NAME=RUN,RUN,… for trainings of
            one method with different seeds. Each method has the same number of runs, with seeds in the same order.
        output: the file to write; "" for compare.json in the current folder.
        config: which data to use; None for the config of the first run that has one.
        overrides: options of the config to change, as {"data.root": …}.
        flips: a .csv file to write, with the queries whose first match is right under some runs and wrong under others;
            "" for no file.
        resamples: how many resamples to draw.
        seed: the seed of the resamples.
        by: what to resample, "query" or "identity".

    Returns:
        The content of compare.json, and the files written, compare.json first.

    Raises:
        InputError: a run or the data cannot be used, or a file cannot be written.
    """
    keep_compiled()
    methods = _methods(runs)
    options = read_options(_choose_config(config, overrides, [path for of in methods.values() for path in of.values()]))
    if flips and len(methods) < sum(map(len, methods.values())):
        raise InputError("--flips compares single runs: give runs without NAME=")
    # Check the files to write first, because embedding may take hours.
    written = _files(output, flips)
    targets = read_targets(options)
    _check_units(targets, by)
    metrics: dict[str, dict[str, list[RankMetrics]]] = {}
    rows, about, shared = [], [], {}
    for name, members in methods.items():
        measured: list[tuple] = []
        for given, path in members.items():
            say(f"{name}: {path}")
            # A given config decides for all runs; without one, each run is tested with the features it was made for.
            own = options if config else _with_own_features(options, path, overrides)
            measured.append(_measure(path, own, targets))
            record, why = measured[-1][2], selected_by(expanded(given), path)
            about.append({"run": name, "given": given, "selected_by": why} | {key: record[key] for key in OF_ONE})
            shared = {key: value for key, value in record.items() if key not in OF_ONE}
            shared["config"]["eval"] = {key: value for key, value in shared["config"]["eval"].items() if key not in OWN}
        metrics[name] = {data: [each[0][data] for each in measured] for data in targets}
        rows += [{"run": name, "data": data} | _mean([each[1][data] for each in measured]) for data in targets]
    differences = []
    for name, target in targets.items():
        groups = target.query.pids if by == "identity" else None
        of_target = {run: of_run[name] for run, of_run in metrics.items()}
        differences += [{"data": name} | each for each in paired_differences(of_target, groups, resamples, seed)]
    method = {"method": "paired bootstrap, percentiles (Efron and Tibshirani 1993)", "level": LEVEL}
    result = {
        "rows": rows,
        "differences": differences,
        "meaning": "a difference is b − a; low and high are the ends of its interval; all are fractions in 0..1",
        "interval": method | {"by": by, "resamples": resamples, "seed": seed},
        "runs": about,
        "warnings": find_warnings(targets),
        **shared,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_whole(written["output"], json.dumps(result, indent=1) + "\n", follow=bool(output))
    plot_differences(written["plot"], result)
    if flips:
        single = {run: {data: each[0] for data, each in of_run.items()} for run, of_run in metrics.items()}
        _write_flips(written["flips"], single, targets)
    return result, list(written.values())


def _check_units(targets: Mapping[str, Target], by: str) -> None:
    """Raise InputError if a data set has too few queries or identities with a match to draw from."""
    for name, target in targets.items():
        units = len(set(target.query.pids[target.matched].tolist())) if by == "identity" else int(target.matched.sum())
        if units < 2:
            of = counted(units, *UNITS[by])
            raise InputError(f"{name} has {of} with a match: an interval needs at least 2; give more queries")


def _methods(runs: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Return {method: {run as given: its checkpoint}}. A run without NAME= is a method named after its folder.

    Raises InputError if there are fewer than two methods, a run is unusable, two runs are the same, or the methods have
    different numbers of runs.
    """
    members: dict[str, list[str]] = {}
    for text in runs:
        name, sign, several = text.partition("=")
        # The path of a run may contain an equals sign, too.
        named = sign and not expanded(text).exists()
        if named and not (name and all(several.split(","))):
            raise InputError(f"{quoted(text)} is neither a run nor NAME=RUN,RUN,…")
        key = name if named else text
        if key in members:
            same = ": both are the same checkpoint" if members[key] == [text] and not named else ""
            raise InputError(f"{key} is given twice{same}; give different ones")
        members[key] = several.split(",") if named else [text]
    if len(members) < 2:
        raise InputError("give two or more runs or checkpoints to compare")
    if len(counts := {len(of_one) for of_one in members.values()}) > 1:
        raise InputError(
            f"methods have {' and '.join(map(str, sorted(counts)))} runs; give each the same number, seeds in order"
        )
    every = [run for of_one in members.values() for run in of_one]
    paths = _checkpoints(every)
    single = [key for key, of_one in members.items() if of_one == [key]]
    names = dict(zip(single, _names(single), strict=True))
    titles = [names.get(key, key) for key in members]
    if twice := [title for title in titles if titles.count(title) > 1]:
        raise InputError(f"two methods are called {twice[0]}; give one of them another NAME=")
    return {title: {run: paths[run] for run in of} for title, of in zip(titles, members.values(), strict=True)}


def _checkpoints(runs: Sequence[str]) -> dict[str, Path]:
    """Return the checkpoint of each run. Raises InputError if one is unusable, or two are the same."""
    paths = [find_checkpoint(expanded(run)) for run in runs]
    for (one, path), (other, same) in itertools.combinations(zip(runs, paths, strict=True), 2):
        if os.path.realpath(path) == os.path.realpath(same):
            raise InputError(f"{one} and {other} are the same checkpoint, {path}; give different ones")
    # Read all descriptions now, so that a damaged checkpoint is found before anything is embedded.
    for path in paths:
        read_description(path)
    return dict(zip(runs, paths, strict=True))


def _names(runs: Sequence[str]) -> list[str]:
    """Return the name of each run in tables: its folder's. If two names are equal, return all paths as given."""
    names = []
    for run in map(os.path.abspath, map(expanded, runs)):
        home, step = Path(run).parent, Path(run).name
        names.append(f"{home.parent.name}/{step}" if home.name == FOLDER else step)
    return names if len(set(names)) == len(names) else list(map(str, runs))


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean scores of one method's trainings, the standard deviation of mAP, and what they share."""
    if len(rows) == 1:
        return dict(rows[0])
    means = {title: float(np.mean([row[title] for row in rows])) for title in TITLES}
    # These seeds are a sample of all seeds, so ddof is 1.
    spread = float(np.std([row["mAP"] for row in rows], ddof=1))
    return dict(rows[0]) | means | {"trainings": len(rows), "mAP_deviation": spread}


def _choose_config(config: Config, overrides: Mapping[str, Any], checkpoints: Sequence[Path]) -> Config:
    """Return the config that says which data to use: the given one, or that of the first checkpoint with a run."""
    if config is None:
        config = config_of(next(filter(None, map(run_of, checkpoints)), None))
        config.update_from_flattened_dict(dict(overrides))
    return config


def _with_own_features(options: Options, path: Path, overrides: Mapping[str, Any]) -> Options:
    """Return the options with the feature, flip and normalisation of the checkpoint's run, except in `overrides`."""
    own = read_options(config_of(run_of(path))).eval
    chosen = {key: getattr(own, key) for key in OWN if f"eval.{key}" not in overrides}
    return dataclasses.replace(options, eval=dataclasses.replace(options.eval, **chosen))


def _files(output: str, flips: str) -> dict[str, Path]:
    """Return the files "output", "plot" and, if given, "flips". Raises InputError if one cannot be written."""
    written = {"output": writable_file(output or OUTPUT, "--output")}
    written["plot"] = written["output"].with_name(f"{written['output'].stem}.png")
    for name, file in written.items():
        # Only a link that the user named with an option is followed.
        if file.is_symlink() and not (output and name == "output"):
            raise InputError(f"{file} is a symbolic link; remove it, or name another --output")
    if written["plot"].exists() and not written["output"].exists():
        raise InputError(f"{written['plot']} exists without a comparison beside it; name another --output")
    if flips:
        written["flips"] = writable_file(flips, "--flips")
    for name, file in written.items():
        in_run = any((file.parent / folder).is_dir() for folder in ("checkpoints", "model"))
        # The plot has no mark of its own.
        marked = written["output"] if name == "plot" else file
        if in_run and file.exists() and not _is_of_comparison(marked):
            raise InputError(f"{file} belongs to a run or a checkpoint; name a file elsewhere")
    refuse_same_files(written.values())
    return written


def _is_of_comparison(file: Path) -> bool:
    """Return whether an earlier comparison wrote a file: its numbers or its list of flips."""
    try:
        content = read_bounded(file, 2**28)
        return content.startswith(",".join(FLIPS).encode()) or {"rows", "differences"} <= set(json.loads(content))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _measure(
    path: Path, options: Options, targets: Mapping[str, Target]
) -> tuple[dict[str, RankMetrics], dict[str, dict[str, Any]], dict[str, Any]]:
    """Return a checkpoint's metrics and table rows by data set, and its `provenance`."""
    embedder, own, fingerprint = load_embedder(path, options)
    metrics = {name: result.metrics for name, result in evaluate(embedder, own, targets, fingerprint).items()}
    rows = {
        name: metrics[name].summary() | {"gallery": len(target.gallery)} | hashes_of(target, own)
        for name, target in targets.items()
    }
    return metrics, rows, provenance(embedder, options, path)


def paired_differences(
    metrics: Mapping[str, Sequence[RankMetrics]], groups: np.ndarray | None, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return the differences b − a of each pair of runs, with intervals; all pairs share the same resamples.

    Args:
        metrics: the metrics of each method's trainings on the same queries. Trainings with one index share a seed.
        groups: the group of each query [Q]; queries of a group are drawn together. None to draw single queries.
        resamples: how many resamples to draw.
        seed: the seed of the resamples.

    Returns:
        For each pair a dict: the names `a` and `b`; the differences `mAP` and `rank1` with the ends of their intervals,
        `low` and `high`, `rank1_low` and `rank1_high`; `better` and `worse`, how many queries have the right first
        match only under b and only under a (a mean over trainings); `queries`, how many have a match; `resampled`, how
        many queries or groups are drawn; and `trainings`. With the same weights all differences are exactly 0.
    """
    pairs = list(itertools.combinations(metrics, 2))
    # All runs rank the same queries, so the same queries have a match.
    valid = next(iter(metrics.values()))[0].valid
    precision = {run: np.stack([each.average_precision[valid] for each in of]) for run, of in metrics.items()}
    right = {run: np.stack([each.first_match[valid] == 1 for each in of]) for run, of in metrics.items()}
    scores = (precision, {run: hit.astype(np.float64) for run, hit in right.items()})
    # [trainings, queries, 2 × pairs]
    values = np.stack([score[b] - score[a] for score in scores for a, b in pairs], axis=2)
    trainings, queries, _ = values.shape
    groups = None if groups is None else groups[valid]
    ends = percentile_interval(resampled_means(values, resamples=resamples, seed=seed, groups=groups), LEVEL)
    columns = np.stack([values.mean((0, 1)), *ends], axis=1).reshape(2, len(pairs), 3).tolist()
    count = queries if groups is None else len(np.unique(groups))
    return [
        {"a": a, "b": b}
        | dict(zip(SCORES["mAP"], of_precision, strict=True))
        | dict(zip(SCORES["Rank-1"], of_first, strict=True))
        | {"better": _per_training(right[b] & ~right[a]), "worse": _per_training(right[a] & ~right[b])}
        | {"queries": queries, "resampled": count, "trainings": trainings}
        for (a, b), of_precision, of_first in zip(pairs, *columns, strict=True)
    ]


def _per_training(hits: np.ndarray) -> float:
    """Return how many queries are true in `hits`, bool [trainings, queries], as a mean over trainings."""
    mean = hits.sum(1).mean().item()
    # Tables print whole numbers without decimals.
    return int(mean) if mean == int(mean) else mean


def _write_flips(file: Path, metrics: Mapping[str, Mapping[str, RankMetrics]], targets: Mapping[str, Target]) -> None:
    """Write the queries whose first match is right under some runs and wrong under others."""
    rows: list[dict[str, Any]] = []
    for data, target in targets.items():
        split, first = target.query, np.stack([of_run[data].first_match for of_run in metrics.values()])  # [runs, Q]
        for i in ((first == 1).any(0) & (first > 1).any(0)).nonzero()[0].tolist():
            row: dict[str, Any] = {"data": data, "path": str(split.paths[i])}
            row |= {"identity": int(split.pids[i]), "camera": int(split.cameras[i])}
            for run, of_run in metrics.items():
                row[f"rank of first match, {run}"] = int(of_run[data].first_match[i])
                row[f"AP, {run}"] = round(float(of_run[data].average_precision[i]), 6)
            rows.append(row)
    columns = [*FLIPS]
    columns += [f"{title}, {run}" for run in metrics for title in ("rank of first match", "AP")]
    write_csv(file, rows, follow=True, columns=columns)
