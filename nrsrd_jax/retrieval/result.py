"""Evaluate a checkpoint, and write its record, result.json."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..analysis.maps import Probe, no_attention
from ..build import degradation_options
from ..compiled import keep_compiled
from ..config import Config, config_of
from ..data.images import mean_luminance
from ..data.protocol import Target
from ..errors import InputError, counted, say
from ..files import absolute, expanded, refuse_same_files, writable_file, write_whole, written_whole
from ..inputs import read_targets, read_test_images
from ..metrics_log import TITLES
from ..options import Options, read_options
from ..report.curves import plot_illumination
from ..report.page import report_file, write_report
from ..runs import find_checkpoint, newest_run, run_of
from .calibration import calibration_beside
from .embedding import Embedder, Embeds
from .illumination import SEED
from .loading import load_beside, load_embedder, load_file
from .pair_table import pair_table
from .provenance import hashes_of, provenance, selected_by
from .ranking import RankMetrics
from .result_file import PLAIN, choose_file, refuse_links
from .scoring import Evaluation, evaluate, headline
from .standardize import BRIGHTNESS_GROUPS, quantile_groups


def evaluate_run(
    workdir: str = "",
    directory: str = "",
    output: str = "",
    config: Config = None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    *,
    rerank: bool = False,
    features: str = "",
    lights: tuple[float, ...] = (),
    report: str = "",
    onnx: str = "",
    also: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> tuple[dict[str, Any], list[Path]]:
    """Evaluate a run's best checkpoint, a given checkpoint, or an ONNX file.

    Args:
        workdir: a training run. Without `workdir`, `directory` and `onnx` the newest run is evaluated.
        directory: a checkpoint.
        output: the result's file; "" for the file beside the weights that `result_file.choose_file` names.
        config: says which data to use; None for the run's own config, or the defaults for a checkpoint without a run.
        overrides: single options to change in the config, as {"data.root": …}.
        rerank: whether to switch re-ranking on.
        features: a .npz file to write the features to; "" for no file.
        lights: intensities to degrade the test images to, each above 0 and at most 1.
        report: a folder for a page of the results; "" for no page.
        onnx: a file of `nrsrd export` to evaluate. Its own features are compared: eval.feature and eval.flip of
            `config` are ignored, and in `overrides` they must be those of the file.
        also: runs or checkpoints whose features are appended to those of the first model, as EDA does. Each uses its
            own eval.feature and eval.flip.
        weights: the length to which each model's features are scaled, the first model's first; () for 1 each.

    Returns:
        The result, and the files written, the result's first.

    Raises:
        InputError: the checkpoint or the data cannot be used, or a file cannot be written.
    """
    keep_compiled()
    source, path, config = _choose(workdir, directory, onnx, config, overrides)
    config.eval.rerank.enabled |= rerank
    options = read_options(config)
    # Raise InputError for a wrong option of the degradation now, before any data is read.
    degradation_options(options)
    weights = _check_flags(features, lights, report, onnx, also, weights)
    beside = path.with_suffix(".result.json") if onnx else source / PLAIN
    written = _files(beside, output, features, lights, report)
    refuse_same_files([*written.values(), *([path] if onnx else [])])
    # Load the weights first, because reading the data may take long.
    embedder, options, fingerprint = load_file(path, options, overrides) if onnx else load_embedder(path, options)
    others = [load_beside(name, options) for name in also]
    targets = read_targets(options)
    # A calibration holds only for plain similarities, because `nrsrd calibrate` measures those.
    plain = options.eval.normalize == "none" and not (options.eval.expand or options.eval.rerank.enabled)
    calibration = calibration_beside(source, embedder.identity()) if report and plain else None

    begin = time.perf_counter()
    results = evaluate(embedder, options, targets, fingerprint, others=others, weights=weights)
    rows = {name: target_record(results[name], target, options) for name, target in targets.items()}
    result = headline(results) | {"targets": rows, "warnings": find_warnings(targets), "lights": list(lights)}
    result |= provenance(embedder, options, path) | {"selected_by": selected_by(source, path)}
    if also:
        result |= _record_of_others(also, [each for each, *_ in others], weights)
    if not isinstance(embedder, Embedder):
        result["onnx_sha256"] = embedder.sha256
    if not output:
        written["result"] = choose_file(beside, result, embedder.description.provenance.get("data"))
        if lights:
            written["plot"] = _plot_beside(written["result"])
    # Write the result at once, because the next steps may fail.
    write_result(written["result"], result, begin, follow=bool(output))
    if features:
        export_features(written["features"], results, targets)
    if lights:
        for name, curve in evaluate_in_lights(embedder, options, targets, fingerprint, lights).items():
            rows[name]["illumination"] = curve
        result["degradation"] = degradation_options(options) | {"seed": SEED}
        write_result(written["result"], result, begin, follow=bool(output))
        plot_illumination(written["plot"], rows, f"{source}, degraded by preset {options.degradation.preset}")
    if report:
        images = {
            name: (read_test_images(options, target.query), read_test_images(options, target.gallery))
            for name, target in targets.items()
        }
        place = written["page"], str(source)
        home = run_of(path) or source
        write_report(*place, result, results, targets, images, _probe(embedder), home, calibration)
    return result, list(written.values())


def _check_flags(
    features: str,
    lights: Sequence[float],
    report: str,
    onnx: str,
    also: Sequence[str],
    weights: Sequence[float],
) -> Sequence[float]:
    """Return the weight of each model. InputError if arguments of `evaluate_run` do not go together."""
    if features and Path(features).suffix != ".npz":
        raise InputError(f"--features {features}: name a .npz file")
    if onnx and report:
        raise InputError("--report shows attention, which an ONNX file does not give: leave --report out")
    if also and (onnx or report or lights):
        raise InputError("--also combines several models: leave out --onnx, --report and --illumination")
    if weights and not also:
        raise InputError("--weights weighs the features of several models: give --also too, or leave --weights out")
    weights = weights or [1.0] * (1 + len(also))
    if len(weights) != 1 + len(also):
        raise InputError(f"--weights has {len(weights)} numbers; give {1 + len(also)}, one for each model")
    return weights


def _files(beside: Path, output: str, features: str, lights: Sequence[float], report: str) -> dict[str, Path]:
    """Return the files to write: "result" and, if asked for, "features", "plot" and "page".

    Raises:
        InputError: a file cannot be written, or is a link that the user did not name.
    """
    written = {"result": writable_file(output or beside, "--output")}
    if not output:
        refuse_links(beside)
    if features:
        written["features"] = writable_file(features, "--features")
    if lights:
        written["plot"] = _plot_beside(written["result"])
        if written["plot"].is_symlink():
            raise InputError(f"{written['plot']} is a symbolic link; remove it, or name another --output")
    if report:
        written["page"] = report_file(report)
    return written


def _record_of_others(names: Sequence[str], embedders: Sequence[Embeds], weights: Sequence[float]) -> dict[str, Any]:
    """Return what a result says about the models of --also, and the weight of the first model."""
    hashes = [each.identity()["weights_sha256"] for each in embedders]
    others = [
        {"model": name, "weights_sha256": digest, "weight": weight}
        for name, digest, weight in zip(names, hashes, weights[1:], strict=True)
    ]
    return {"also": others, "weight": weights[0]}


def _probe(embedder: Embeds) -> Probe | None:
    """Return the Probe of an evaluated checkpoint. Without attention to show, print why and return None."""
    # `_check_flags` refuses a report of an ONNX file.
    assert isinstance(embedder, Embedder)
    if reason := no_attention(embedder.description):
        say(f"the page shows no attention: {reason}")
        return None
    return Probe(embedder.description, embedder.variables, embedder.mesh)


def _plot_beside(result_file: Path) -> Path:
    return result_file.with_name(f"{result_file.stem}-illumination.png")


def write_result(path: Path, result: dict[str, Any], begin: float, follow: bool) -> None:
    """Write the result with the time and the seconds since `begin`. Links are followed only with `follow`."""
    result["seconds"] = round(time.perf_counter() - begin, 2)
    result["time"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_whole(path, json.dumps(result, indent=1) + "\n", follow)


def _choose(
    workdir: str, directory: str, onnx: str, config: Config, overrides: Mapping[str, Any]
) -> tuple[Path, Path, Config]:
    """Return the weights that the user named (or the newest run), their checkpoint or file, and the config to use."""
    if bool(workdir) + bool(directory) + bool(onnx) > 1:
        raise InputError("--workdir, --checkpoint and --onnx each name weights; give one of them")
    if not (workdir or directory or onnx):
        workdir = str(newest_run())
        say(f"evaluating the newest run, {workdir}; --workdir names another")
    source = absolute(onnx) if onnx else expanded(directory or workdir)
    path = source if onnx else find_checkpoint(source)
    if config is None:
        config = config_of(run_of(path))
        config.update_from_flattened_dict(dict(overrides))
    return source, path, config


def evaluate_in_lights(
    embedder: Embeds,
    options: Options,
    targets: Mapping[str, Target],
    fingerprint: str,
    lights: tuple[float, ...],
) -> dict[str, list[dict[str, Any]]]:
    """Evaluate each data set at every intensity. Return the rows of each data set, one for each intensity."""
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
    for light in lights:
        for name, evaluation in evaluate(embedder, options, targets, fingerprint, light).items():
            curves[name].append({"light": light} | _numbers(evaluation) | {"seconds": evaluation.seconds})
    return curves


def target_record(evaluation: Evaluation, target: Target, options: Options) -> dict[str, Any]:
    """Return the scores of one data set, also by the queries' camera and brightness, and what identifies the data."""
    numbers = numbers_by_group(evaluation, target, mean_luminance(read_test_images(options, target.query)))
    return numbers | hashes_of(target, options) | {"seconds": evaluation.seconds}


def numbers_by_group(evaluation: Evaluation, target: Target, luminance: np.ndarray) -> dict[str, Any]:
    """Return the scores of one data set, also by the queries' camera and mean `luminance` [Q], in 0..255."""
    metrics = evaluation.metrics
    group, edges = quantile_groups(luminance)
    cameras = {str(camera): target.query.cameras == camera for camera in np.unique(target.query.cameras)}
    brightness = {
        f"{i + 1}/{BRIGHTNESS_GROUPS}, {low:.1f}–{high:.1f}": group == i
        for i, (low, high) in enumerate(itertools.pairwise(edges))
    }
    return (
        _numbers(evaluation)
        | {"gallery": len(target.gallery), "cmc": [round(float(x), 6) for x in metrics.cmc]}
        | {"by_camera": _groups(metrics, cameras), "by_brightness": _groups(metrics, brightness)}
        | pair_table(evaluation.features["query"], evaluation.features["gallery"], target)
    )


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    plain = {"without_rerank": evaluation.plain.summary()} if evaluation.plain else {}
    return evaluation.metrics.summary() | plain


def _groups(metrics: RankMetrics, groups: dict[Any, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the scores of each group of queries, a mask [Q], that has a query with a match."""
    return {str(name): metrics.of(mask).summary() for name, mask in groups.items() if metrics.valid[mask].any()}


def export_features(path: Path, results: Mapping[str, Evaluation], targets: Mapping[str, Target]) -> None:
    """Write the features to a .npz file. With several data sets the names of the arrays begin with "NAME/".

    The file holds `query_features` and `gallery_features` as embedded (not scaled, before expansion), their `_pids`,
    `_cameras`, `_views` (the ranking leaves out gallery images of a query's identity and view) and `_paths`, and each
    query's `average_precision` and `first_match` in the final ranking.
    """
    arrays = {}
    for name, target in targets.items():
        prefix, result = f"{name}/" if len(targets) > 1 else "", results[name]
        parts = (("query", target.query, target.query_views), ("gallery", target.gallery, target.gallery_views))
        for part, split, views in parts:
            columns = {"features": result.features[part], "pids": split.pids, "cameras": split.cameras, "views": views}
            # Paths are kept as text, because NumPy would pickle objects.
            columns["paths"] = np.array([str(path) for path in split.paths])
            arrays |= {f"{prefix}{part}_{column}": values for column, values in columns.items()}
        arrays[f"{prefix}average_precision"] = result.metrics.average_precision
        arrays[f"{prefix}first_match"] = result.metrics.first_match
    # Given a path, NumPy would append .npz to it, because the partial file has another suffix.
    with written_whole(path, follow=True) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def find_warnings(targets: Mapping[str, Target]) -> list[str]:
    """Return a warning for each data set whose scores are meaningless."""
    return [
        f"{name}: all {counted(len(target.gallery), 'gallery image')} show one person, so that no ranking can be "
        "wrong: its mAP and Rank-1 of 100 % mean nothing; add images of other people to the gallery"
        for name, target in targets.items()
        if len(np.unique(target.gallery.pids)) == 1
    ]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Format named results as a table for the screen, in per cent."""
    width = max(map(len, rows))
    lines = [f"{'%':<{width}}" + "".join(f"{title:>9}" for title in TITLES.values())]
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{100 * values[key]:>9.1f}" for key in TITLES))
    return "\n".join(lines)


def full_table(result: dict[str, Any]) -> str:
    """Format a result as text: a table for each data set, by camera, brightness and light, and then the mean.

    Scores without re-ranking have their own table. Warnings come last.
    """
    tables, ending = [], ""
    if result["normalize"] != "none":
        ending += f", normalised by {result['normalize']} (transductive)"
    if result["rerank"]:
        ending += ", re-ranked"
    for name, target in result["targets"].items():
        rows = {name + ending: target}
        for kind, title in (("by_camera", "camera"), ("by_brightness", "brightness")):
            if len(target[kind]) > 1:
                rows |= {
                    f"  {title} {group} ({counted(x['queries'], 'query', 'queries')}){ending}": x
                    for group, x in target[kind].items()
                }
        for point in target.get("illumination", ()):
            rows[f"  light {point['light']:g}, {result['degradation']['preset']}{ending}"] = point
        tables.append(table(rows))
        if strangers := target.get("open_set", {}).get("queries"):
            tables.append(f"{counted(strangers, 'query', 'queries')} of {name} show people who are not in the gallery")
            tables += [
                f"  from a similarity of {row['threshold']:.4f}, {100 * row['fpir']:.1f} % of them are taken for "
                f"somebody; {100 * row['fnir']:.1f} % of the other queries do not find their person first"
                for row in target["open_set"]["searches"]
            ]
        if "without_rerank" in target:
            tables.append(table({f"{name}, not re-ranked": target["without_rerank"]}))
    if len(result["targets"]) > 1:
        tables.append(table({f"mean of {len(result['targets'])} data sets{ending}": result}))
    return "\n".join([*tables, *(f"warning: {warning}" for warning in result["warnings"])])
