"""The curves of a training run, from its metrics.jsonl."""

from pathlib import Path

import numpy as np

from ..metrics_log import read_metrics

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
