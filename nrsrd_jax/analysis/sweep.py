"""What Norm-Ratio Attention can change: scores on a test set with altered attention in the last block, not retrained.

A sweep alters one thing at a time: λ of either form of NRA, or the temperature τ of plain attention, which divides its
logits. For each value it reports the leverage (the spread of γ over the keys, in nats), the share of the CLS token's
attention that moves, mAP and Rank-1, and the difference in mAP from plain attention with its interval.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .. import checkpoint
from ..compiled import keep_compiled
from ..data.protocol import Target
from ..description import Description
from ..files import write_csv, written_whole
from ..inputs import read_test_images
from ..models import with_base
from ..models.attention import NormRatio
from ..models.vit import ViTSpec
from ..options import Options
from ..retrieval.comparison import paired_differences
from ..retrieval.loading import make_embedder
from ..retrieval.ranking import RankMetrics
from ..retrieval.scoring import evaluate
from ..sharding import make_mesh
from .maps import Probe, with_attention
from .statistics import moved_attention
from .study import evenly

# The values of each sweep. PLAIN has the values that leave attention unchanged.
VALUES = {
    "ratio": (-30.0, -10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0, 30.0, 100.0),
    "standard": (-2.0, -1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0, 2.0),
    "temperature": (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0),
}
PLAIN = {"ratio": 0.0, "standard": 0.0, "temperature": 1.0}
TITLES = {
    "ratio": "λ of NRA, γ = λ‖K‖/(‖Q‖+ε)",
    "standard": "λ of NRA, γ = λ(‖K‖ − mean)/deviation",
    "temperature": "τ of plain attention",
}
# The largest number of query images from which leverage and moved attention are computed.
IMAGES = 64
RESAMPLES = 2000


def sweep(source: Path, options: Options, targets: Mapping[str, Target]) -> list[dict[str, Any]]:
    """Evaluate a checkpoint with altered attention in its last block.

    Args:
        source: a checkpoint, or a run, of which the best checkpoint is used.
        options: how to evaluate.
        targets: the test sets by name.

    Returns:
        A dict for each test set, sweep and value: `data`, `altered`, `value`, `leverage` (nats), `moved` (0..1), `mAP`,
        `rank1`, and `difference`, that of mAP from plain attention. `low` and `high` are the ends of its 95 % interval,
        by a paired bootstrap over people.

    Raises:
        InputError: the checkpoint cannot be used, or its attention cannot be shown.
    """
    keep_compiled()
    mesh = make_mesh()
    description, variables = checkpoint.load(source, mesh)
    # A Probe would refuse the model only after the scores of all values.
    spec = with_attention(description)
    # The model's image size replaces that of the options.
    options = dataclasses.replace(options, image_size=description.image_size)
    # Leverage and moved attention are measured on queries of the first test set.
    pixels = read_test_images(options, next(iter(targets.values())).query)
    pixels = np.asarray(pixels[evenly(len(pixels), IMAGES)])
    rows: list[dict[str, Any]] = []
    for altered, values in VALUES.items():
        # Temperatures are swept with λ = 0, so the form of NRA does not matter for them.
        form = "ratio" if altered == "temperature" else altered
        ratio = dataclasses.replace(description.norm_ratio or NormRatio(), form=form)
        described = dataclasses.replace(description, norm_ratio=ratio)
        bases = {value: _alter(spec, variables["params"]["base"], altered, value) for value in values}
        metrics = dict(_scores(described, variables, bases, options, targets))
        probe = Probe(described, variables, mesh)
        maps = {value: probe.with_base(base)(pixels) for value, base in bases.items()}
        plain = PLAIN[altered]
        for name, target in targets.items():
            for value in values:
                row: dict[str, Any] = {"data": name, "altered": altered, "value": value}
                row["leverage"] = 0.0 if altered == "temperature" else float(np.median(maps[value].leverage))
                row["moved"] = moved_attention(maps[value], maps[plain])
                summary = metrics[value][name].summary()
                row |= {key: summary[key] for key in ("mAP", "rank1")}
                pair = {"plain": [metrics[plain][name]], "altered": [metrics[value][name]]}
                (found,) = paired_differences(pair, target.query.pids, RESAMPLES, 0)
                rows.append(row | {"difference": found["mAP"], "low": found["low"], "high": found["high"]})
    return rows


def _alter(spec: ViTSpec, base: dict, altered: str, value: float) -> dict:
    """Return the backbone's parameters with another λ, or with another temperature and λ = 0."""
    if altered == "temperature":
        return spec.with_temperature(spec.with_strength(base, 0.0), value)
    return spec.with_strength(base, value)


def _scores(
    description: Description,
    variables: dict,
    bases: Mapping[float, dict],
    options: Options,
    targets: Mapping[str, Target],
) -> Iterator[tuple[float, dict[str, RankMetrics]]]:
    """Yield each value with its metrics by data set. The model is compiled once for all values."""
    embedder = make_embedder(description, variables, make_mesh(), options)
    for value, base in bases.items():
        embedder.variables = with_base(variables, base)
        yield value, {name: result.metrics for name, result in evaluate(embedder, options, targets).items()}


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each test set and sweep, with the best value and the interval of its gain."""
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for altered, title in TITLES.items():
            own = [row for row in rows if (row["data"], row["altered"]) == (data, altered)]
            best = max(own, key=lambda row: row["mAP"])
            if best["difference"] <= 0:
                found = "no value is better than plain attention"
            else:
                gain, low, high = (100 * best[key] for key in ("difference", "low", "high"))
                found = f"best at {best['value']:g}, {gain:+.1f} mAP [{low:+.1f}, {high:+.1f}]"
                found += f" with {100 * best['moved']:.0f} % of the attention moved"
            lines.append(f"{data}: {title}: {found}")
    return [*lines, "the best value was chosen on the test set, so its interval is too favourable"]


def write(rows: list[dict[str, Any]], folder: Path, about: str) -> None:
    """Write sweep.csv and sweep.png."""
    write_csv(folder / "sweep.csv", rows)
    data = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(11, 3.4 * len(data)), layout="constrained")
    grid = figure.subplots(len(data), len(VALUES), sharey="row", squeeze=False)
    for name, line in zip(data, grid, strict=True):
        for (altered, title), axes in zip(TITLES.items(), line, strict=True):
            own = [row for row in rows if (row["data"], row["altered"]) == (name, altered)]
            x = np.array([row["value"] for row in own])
            middle, low, high, moved = (
                100 * np.array([row[key] for row in own]) for key in ("difference", "low", "high", "moved")
            )
            axes.axhline(0, color="0.6", linewidth=1)
            axes.fill_between(x, low, high, alpha=0.2, label="95 % interval")
            axes.plot(x, middle, "o-", markersize=4, label="mAP − mAP of plain attention")
            beside = axes.twinx()
            beside.plot(x, moved, "C1:", label="attention moved (%)")
            beside.set(ylim=(0, 100))
            beside.tick_params(colors="C1")
            if altered == "temperature":
                axes.set_xscale("log")
            else:
                # λ may be negative or 0, which a logarithmic axis cannot show.
                axes.set_xscale("symlog", linthresh=0.2 if altered == "standard" else 1)
            axes.set(xlabel=title)
            axes.grid(alpha=0.3)
        line[0].set_ylabel(f"{name}\npoints of mAP")
        line[0].legend(fontsize=7)
    figure.suptitle(
        f"{about}: the last block's attention altered at test time; dotted: attention moved (%)", fontsize=9
    )
    with written_whole(folder / "sweep.png") as partial:
        figure.savefig(partial, format="png", dpi=130)
