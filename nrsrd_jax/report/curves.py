"""Curves: of a training run, from its metrics.jsonl, and of recognition as the light falls."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..files import written_whole
from ..metrics_log import read_metrics

MOST_TICKS = 8  # beside each other in a plot
MOST_POINTS = 300  # of a curve; of more, neighbours are averaged
NORM_RATIO = ("norm_ratio", "leverage", "logit_spread")
EVALUATION = {"mAP": "mAP", "rank1": "Rank-1"}


def read_curves(workdir: Path) -> list[dict]:
    """Charts as {"title", "unit", "series": [{"name", "points": [[step, value], …]}]}; none if nothing was logged."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_metrics(workdir):
        for name, value in row.items():
            if name != "step":
                curves.setdefault(name, []).append((row["step"], value))
    percent = {name: [(step, 100 * value) for step, value in points] for name, points in curves.items()}
    losses = [name for name in curves if name == "loss" or name.startswith(("id_", "triplet_", "distill"))]
    accuracies = [name for name in curves if name.startswith("accuracy_")]
    charts = [
        _chart("Loss and its terms", "nats", {name: curves[name] for name in losses}),
        _chart("Accuracy on training batches", "%", {name: percent[name] for name in accuracies}),
        _chart("NRA: λ, and spreads over keys (nats)", "", {x: curves[x] for x in NORM_RATIO if "leverage" in curves}),
        _chart("Evaluation", "%", {label: percent[name] for name, label in EVALUATION.items() if name in percent}),
    ]
    return [chart for chart in charts if chart["series"]]


def _chart(title: str, unit: str, curves: dict[str, list[tuple[float, float]]]) -> dict:
    series = [{"name": name, "points": _thinned(points)} for name, points in curves.items()]
    return {"title": title, "unit": unit, "series": series}


def _thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    parts = np.array_split(np.array(points), min(len(points), MOST_POINTS))
    return [[round(float(x), 1), float(f"{y:.5g}")] for x, y in (part.mean(0) for part in parts)]


def plot_illumination(path: Path, targets: Mapping[str, dict[str, Any]], title: str) -> None:
    """mAP and Rank-1 of each data set's "illumination" against the light, as a PNG; dashed: images as they are."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lights = []
    for index, (name, target) in enumerate(targets.items()):
        lights = [row["light"] for row in target["illumination"]]
        for metric, label, marker in (("mAP", "mAP", "o"), ("rank1", "Rank-1", "s")):
            values, colour = [100 * row[metric] for row in target["illumination"]], f"C{2 * index + (marker == 's')}"
            axes.plot(lights, values, marker=marker, label=f"{name} {label}", color=colour, clip_on=False)
            axes.axhline(100 * target[metric], color=colour, linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="light, with the sensor's noise", ylabel="mAP, Rank-1 (%)", ylim=(0, None))
    axes.set_title(title, fontsize="small")
    if len(lights) <= MOST_TICKS:
        axes.set_xticks(lights, [f"{light:g}" for light in lights])
        axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend(title="dashed: as given")
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
