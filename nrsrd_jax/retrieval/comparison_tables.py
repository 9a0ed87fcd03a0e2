"""Show a comparison of runs: tables for the screen, and a plot of the differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..errors import counted, printable
from ..files import written_whole
from .result import table

LEVEL = 0.95
# What is resampled, in words: the singular and the plural.
UNITS = {"query": ("query", "queries"), "identity": ("person", "people")}
# The keys of a difference and of the ends of its interval, by the score's title.
SCORES = {"mAP": ("mAP", "low", "high"), "Rank-1": ("rank1", "rank1_low", "rank1_high")}


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return the lines to print, in per cent: scores, a matrix if there are several data sets, and differences."""
    rows, differences, interval = result["rows"], result["differences"], result["interval"]
    data = list(dict.fromkeys(row["data"] for row in rows))
    lines = []
    for name in data:
        lines += [f"{name}:"] if len(data) > 1 else []
        lines += table({row["run"]: row for row in rows if row["data"] == name}).split("\n")
    if len(data) > 1:
        lines += _matrix(rows, data)
    titles = [_title(each, len(data) > 1) for each in differences]
    width = max(map(len, (*titles, "difference")))
    heads = "".join(f"{title:>9}{'95 % interval':>17}" for title in ("mAP", "Rank-1"))
    lines.append(f"{'difference':<{width}}{heads}{'better':>8}{'worse':>8}")
    for title, each in zip(titles, differences, strict=True):
        cells = ""
        for keys in SCORES.values():
            middle, low, high = (100 * each[key] for key in keys)
            cells += f"{middle:>+9.1f}{f'[{low:+.1f}, {high:+.1f}]':>17}"
        counts = "".join(f"{x:>8d}" if isinstance(x, int) else f"{x:>8.1f}" for x in (each["better"], each["worse"]))
        lines.append(f"{title:<{width}}{cells}{counts}")
    counts = {each["data"]: counted(each["resampled"], *UNITS[interval["by"]]) for each in differences}
    how = {each["run"]: _how_compared(each) for each in result["runs"]}
    if len(set(how.values())) > 1 or any(each["transductive"] for each in result["runs"]):
        lines += [f"{run} is compared by {words}" for run, words in how.items()]
    drawn = ", ".join(f"{count} of {name}" for name, count in counts.items())
    trainings = differences[0]["trainings"]
    covered = "other training seeds are not covered"
    if trainings > 1:
        covered = f"with {trainings} trainings of each (few trainings give too narrow intervals)"
    lines.append(f"intervals: {drawn}, resampled {interval['resamples']:,} times; {covered}")
    lines.append("for a difference 'x − y', better: queries whose first match is right only under x; worse: only y")
    return lines + [f"warning: {warning}" for warning in result["warnings"]]


def _how_compared(run: Mapping[str, Any]) -> str:
    """Return in words which features of a run are compared."""
    words = [f"{run['feature']} features"] + (["mirrored images too"] if run["flip"] else [])
    if run["transductive"]:
        words.append(f"normalised by {run['normalize']} over the whole test set (transductive)")
    return ", ".join(words)


def _matrix(rows: Sequence[Mapping[str, Any]], data: Sequence[str]) -> list[str]:
    """Return the mAP of each run on each data set, and the mean, as lines."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["run"], []).append(100 * row["mAP"])
    width, widths = max(map(len, (*scores, "mAP"))), [max(9, len(name) + 2) for name in (*data, "mean")]
    lines = [f"{'mAP':<{width}}" + "".join(f"{n:>{w}}" for n, w in zip((*data, "mean"), widths, strict=True))]
    for run, values in scores.items():
        shown = zip((*values, float(np.mean(values))), widths, strict=True)
        lines.append(f"{run:<{width}}" + "".join(f"{value:>{w}.1f}" for value, w in shown))
    return lines


def _title(difference: Mapping[str, Any], with_data: bool) -> str:
    title = f"{difference['b']} − {difference['a']}" + (f", {difference['data']}" if with_data else "")
    return printable(title)


def plot_differences(path: Path, result: Mapping[str, Any]) -> None:
    """Draw each difference in mAP and Rank-1 with its interval."""
    shown = result["differences"]
    several = len({each["data"] for each in shown}) > 1
    figure = Figure(figsize=(9, 0.4 * len(shown) + 1.6), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, 2, sharey=True), SCORES.items(), strict=True):
        axes.axvline(0, color="0.6", linewidth=1)
        for y, each in enumerate(shown):
            middle, low, high = (100 * each[key] for key in keys)
            axes.plot([low, high], [y, y], color="C0", linewidth=2)
            axes.plot(middle, y, "o", color="C0" if low > 0 or high < 0 else "white", markeredgecolor="C0")
        # A dollar sign in a run's name would begin a formula.
        axes.set_yticks(range(len(shown)), [_title(each, several) for each in shown], parse_math=False)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set(xlabel=f"difference in {title} (percentage points)")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(
        f"difference and its {LEVEL:.0%} interval; filled dot: the interval does not contain 0", fontsize="medium"
    )
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
