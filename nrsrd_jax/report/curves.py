"""Curves of a training run (from its metrics.jsonl), of recognition as the light falls, and of two error rates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import ndtri

from ..files import written_whole
from ..metrics_log import MACHINE, TITLES, read_metrics

# The most ticks that fit beside each other in a plot.
MOST_TICKS = 8
# The most points of a curve. In longer curves neighbouring points are averaged.
MOST_POINTS = 300
NORM_RATIO = ("norm_ratio", "leverage", "logit_spread")
EVALUATION = {"mAP": "mAP", "rank1": "Rank-1"}
OPTIMISER = ("learning_rate", "gradient_norm", "parameter_norm", "update_norm")
# The numbers that only a pretraining logs.
TEACHER = {"teacher_entropy": "entropy of an answer", "teacher_information": "information about the image"}
SCHEDULES = ("weight_decay", "teacher_momentum", "centre_norm")
# Numbers in the log that are not terms of the loss.
NO_LOSS = {"step", "epoch", *NORM_RATIO, *OPTIMISER, *TEACHER, *SCHEDULES, *TITLES, *MACHINE}
# The ticks of the axes of error rates.
DEVIATES = 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 0.999
# Curves share a chart if their largest values differ by at most this factor.
SAME_AXIS = 10


def read_curves(workdir: Path) -> list[dict]:
    """Return charts as {"title", "unit", "series": [{"name", "points": [[step, value], …]}]}; [] if nothing was logged.

    Every number that training logs is drawn as a term of the loss, unless its name is known to mean something else.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    trained: set[str] = set()
    for row in read_metrics(workdir):
        trained |= set() if "mAP" in row else row.keys()
        for name, value in row.items():
            if name != "step":
                curves.setdefault(name, []).append((row["step"], value))
    percent = {name: [(step, 100 * value) for step, value in points] for name, points in curves.items()}
    accuracies = [name for name in curves if name.startswith("accuracy")]
    losses = {name: curves[name] for name in curves if name in trained - NO_LOSS - set(accuracies)}
    charts = [
        *(
            _chart("Loss and its terms" if "loss" in group else f"Loss terms: {', '.join(group)}", "loss", group)
            for group in _of_one_size(losses)
        ),
        _chart("Accuracy on training batches", "%", {name: percent[name] for name in accuracies}),
        _chart("NRA: λ, and spreads over keys (nats)", "", {x: curves[x] for x in NORM_RATIO if x in curves}),
        _chart("The teacher's answers (nats)", "", {label: curves[x] for x, label in TEACHER.items() if x in curves}),
        _chart("Evaluation", "%", {label: percent[name] for name, label in EVALUATION.items() if name in percent}),
    ]
    return [chart for chart in charts if chart["series"]]


def _of_one_size(curves: dict[str, list[tuple[float, float]]]) -> list[dict[str, list[tuple[float, float]]]]:
    """Split curves into groups that fit on one axis; the group of the loss comes first."""
    largest = {name: max(abs(value) for _, value in points) for name, points in curves.items()}
    groups: list[list[str]] = []
    for name in sorted(curves, key=lambda name: -largest[name]):
        if groups and SAME_AXIS * largest[name] >= largest[groups[-1][0]]:
            groups[-1].append(name)
        else:
            groups.append([name])
    groups.sort(key=lambda group: "loss" not in group)
    return [{name: points for name, points in curves.items() if name in group} for group in groups]


def _chart(title: str, unit: str, curves: dict[str, list[tuple[float, float]]]) -> dict:
    series = [{"name": name, "points": _thinned(points)} for name, points in curves.items()]
    return {"title": title, "unit": unit, "series": series}


def _thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    """Average neighbouring points, so that at most MOST_POINTS remain."""
    parts = np.array_split(np.array(points), min(len(points), MOST_POINTS))
    # Five digits are finer than a pixel, and keep the page small.
    return [[round(float(x), 1), float(f"{y:.5g}")] for x, y in (part.mean(0) for part in parts)]


def plot_illumination(path: Path, targets: Mapping[str, dict[str, Any]], title: str) -> None:
    """Plot mAP and Rank-1 of each data set against the light, as a PNG. Dashed lines show the images as given.

    Args:
        path: the file to write.
        targets: the results of the data sets by name, each with "illumination".
        title: the title of the plot.
    """
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
        # A logarithmic axis would label ticks of its own between these.
        axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend(title="dashed: as given")
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def plot_det(path: Path, curve: Mapping[str, Sequence[float]], pairs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Plot false-non-match against false-match rates, on normal deviate axes, as a PNG.

    Args:
        path: the file to write.
        curve: the rates "fmr" and "fnmr" at ascending thresholds.
        pairs: rows with "threshold", both rates and "fnmr_interval", drawn as points.
        title: the title of the plot.
    """
    rates = [np.array(curve[name]) for name in ("fmr", "fnmr")]
    # Rates of 0 and 1 would lie at infinity on these axes.
    shown = np.all([(rate > 0) & (rate < 1) for rate in rates], axis=0)
    points = [row for row in pairs if 0 < row["fmr"] < 1]
    lowest = min([0.1, *(rates[0][shown]), *(row["fmr"] for row in points)])
    missed = [value for row in points for value in (row["fnmr"], *row["fnmr_interval"]) if 0 < value < 1]
    least = min([0.1, *(rates[1][shown]), *missed])
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(ndtri(rates[0][shown]), ndtri(rates[1][shown]), color="C0")
    for row in points:
        low, middle, high = np.clip([row["fnmr_interval"][0], row["fnmr"], row["fnmr_interval"][1]], least, 1 - 1e-6)
        place = ndtri(row["fmr"])
        axes.plot([place, place], ndtri([low, high]), color="C0", linewidth=1)
        axes.plot(place, ndtri(middle), "o", color="C0")
        axes.annotate(f" {row['threshold']:.3f}", (place, ndtri(middle)), fontsize="small", va="bottom")
    for axis, least_shown in ((axes.xaxis, lowest), (axes.yaxis, least)):
        ticks = [tick for tick in DEVIATES if tick >= least_shown / 2]
        axis.set_ticks(ndtri(ticks), [f"{100 * tick:g}" for tick in ticks])
        axis.grid(alpha=0.3)
    axes.set(xlabel="false-match rate: strangers that match (%)", ylabel="false-non-match rate: people missed (%)")
    axes.set(xlim=ndtri([lowest / 2, 0.6]), ylim=ndtri([least / 2, 0.999 if missed and max(missed) > 0.9 else 0.95]))
    axes.set_title(f"{title}; points: threshold, 95 % interval", fontsize="small")
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
