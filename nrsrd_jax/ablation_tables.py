"""Write the tables of an ablation: means and differences over seeds, as Markdown, LaTeX, CSV and a plot."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import costs, query_scores
from .files import write_csv, write_whole, written_whole
from .metrics_log import TITLES
from .rows import Row

# The scores of each row by seed: name -> seed -> {score: value}.
Results = dict[str, dict[int, dict[str, float]]]


def statistics(results: Results, rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """Summarise the results over the seeds.

    A row's baseline is the last row above it that `is_baseline`, or otherwise the first row.

    Args:
        results: the scores of each row by seed.
        rows: the rows, in the order of the table.

    Returns:
        A dict for each row with results: `name`, `seeds` (their number), and for each score of TITLES its (mean,
        standard deviation) over the seeds, in 0..1. `difference` is the same for the difference of mAP from the
        baseline with the same seed. A value is NaN if there are too few seeds for it.
    """
    table: list[dict[str, Any]] = []
    baseline: dict[int, dict[str, float]] = {}
    for row in rows:
        runs = results[row.name]
        is_reference = row.is_baseline or row is rows[0]
        if is_reference:
            baseline = runs
        if runs:
            columns = {score: [run[score] for run in runs.values()] for score in TITLES}
            # Compare equal seeds, because these start from the same weights and see the same batches.
            paired = [runs[seed]["mAP"] - baseline[seed]["mAP"] for seed in runs.keys() & baseline.keys()]
            # A baseline's difference from itself is 0 by construction, and would look like a measurement.
            columns["difference"] = [] if is_reference else paired
            table.append({"name": row.name, "seeds": len(runs)} | {key: _mean_and_std(x) for key, x in columns.items()})
    return table


def _mean_and_std(values: list[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else math.nan
    # The seeds are a sample of all seeds, so the deviation divides by n − 1; a single seed has no deviation.
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


METHOD_TITLES = *query_scores.TITLES, *costs.TITLES
UNBUILT = (
    "Rows of table 1 that are missing here: EDA's enhancement and CENet have no readable code, and ABD-Net is not "
    "implemented. The paper's 9.2 / 17.2 for IDF is of a form on a ViT whose code is not released. "
    "Intervals are bootstraps over the people of the queries and over seeds. GFLOP is the work for one image, and "
    "minutes are the time of one training."
)
NOTE = "Scores of the last epoch in per cent: mean ± standard deviation over seeds."


def table_cells(results: Results, rows: tuple[Row, ...], paper: tuple[Row, ...] = ()) -> list[list[str]]:
    """Return the titles and the rows of the table, in per cent. Rows in `paper` add columns of the paper's numbers."""
    published = {row.name: row.paper for row in paper if row.paper}
    extra = ["paper's mAP", "paper's Rank-1", "paper's Rank-5"] if published else []
    lines = [["", "seeds", *TITLES.values(), "mAP − baseline", *extra]]
    for row in statistics(results, rows):
        cells = [row["name"], str(row["seeds"]), *(cell(row[score]) for score in TITLES)]
        cells.append(cell(row["difference"], "+"))
        numbers = ["" if value is None else f"{value:.1f}" for value in published.get(row["name"], ())]
        lines.append(cells + (numbers or [""] * len(extra)))
    return lines


def method_cells(rows: Sequence[Row], results: Results, workdir: Path) -> dict[str, list[str]]:
    """Return the cells under METHOD_TITLES by row: intervals of scores, backbone, first weights, size and cost."""
    cells = {}
    for row in rows:
        folders = [workdir / f"{row.name}-seed{seed}" for seed in sorted(results[row.name])]
        if folders:
            cells[row.name] = query_scores.intervals(folders) + costs.costs(folders[0])
    return cells


def markdown(
    results: Results,
    rows: tuple[Row, ...],
    paper: tuple[Row, ...] = (),
    tested: str = "",
    about: Mapping[str, list[str]] = MappingProxyType({}),
    missing: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the table as Markdown.

    Args:
        results: the scores of each row by seed.
        rows: the rows, in order.
        paper: the rows to show the paper's numbers for.
        tested: a remark on the test, from `how_tested`.
        about: more cells by row, from `method_cells`.
        missing: by row, why it was left out.
    """
    titles, *lines = table_cells(results, rows, paper)
    if about:
        titles += METHOD_TITLES
        lines = [line + about.get(line[0], [""] * len(METHOD_TITLES)) for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *lines))
    left_out = "".join(f"\nNot trained: {name}, because {reason}\n" for name, reason in missing.items())
    unknown = f"\n{UNBUILT}\n" if about else ""
    return f"{table}\n\n{_note(tested)}\n{left_out}{unknown}"


def _note(tested: str) -> str:
    return NOTE + (f" Note on the test: {tested}." if tested else "")


def latex(results: Results, rows: tuple[Row, ...], paper: tuple[Row, ...] = ()) -> str:
    """Return the table as a LaTeX tabular that needs no packages."""
    titles, *lines = (list(map(_escaped, line)) for line in table_cells(results, rows, paper))
    body = "".join(f"{' & '.join(line)} \\\\\n" for line in lines)
    columns = "l" + "r" * (len(titles) - 1)
    head = f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{' & '.join(titles)} \\\\\n\\hline\n"
    return f"% {_escaped(NOTE)}\n{head}{body}\\hline\n\\end{{tabular}}\n"


def _escaped(cell: str) -> str:
    """Return a cell as LaTeX: escape special characters, and typeset a leading hyphen as a minus."""
    # Escape the characters in one pass, so that no escape is escaped again.
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "−": "$-$"}
    text = "".join(special.get(character, character) for character in cell.removeprefix("-"))
    return f"$-${text}" if cell.startswith("-") else text


def cell(mean_and_std: tuple[float, float], sign: str = "") -> str:
    mean, std = (100 * x for x in mean_and_std)
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(std) else f" ± {std:.1f}")


def write(
    workdir: Path,
    results: Results,
    rows: tuple[Row, ...],
    paper: tuple[Row, ...],
    tested: str = "",
    missing: Mapping[str, str] = MappingProxyType({}),
    methods: bool = False,
) -> None:
    """Write ablation.md and ablation.tex (means), ablation.csv (every run) and ablation.png in `workdir`.

    Args:
        workdir: the folder to write to. It also holds the runs.
        results, rows, paper, tested, missing: as in `markdown`.
        methods: whether the table is one of methods, which also has the columns METHOD_TITLES.
    """
    about = method_cells(rows, results, workdir) if methods else {}
    write_whole(workdir / "ablation.md", markdown(results, rows, paper, tested, about, missing))
    write_whole(workdir / "ablation.tex", latex(results, rows, paper))
    runs = [(name, seed, run) for name, seeds in results.items() for seed, run in seeds.items()]
    write_csv(
        workdir / "ablation.csv",
        [{"row": name, "seed": seed} | {score: run[score] for score in TITLES} for name, seed, run in runs],
    )
    # A Figure made without pyplot needs no display, and is freed at the end, although this runs after every training.
    figure = Figure(figsize=(7, 0.5 * len(results) + 1.5), layout="constrained")
    axes = figure.subplots()
    # One line per row of the table: the mean with its deviation, and a dot for each seed just below it.
    shown = statistics(results, rows)
    for y, row in enumerate(shown):
        mean, std = (100 * x for x in row["mAP"])
        axes.errorbar(mean, y, xerr=0 if math.isnan(std) else std, fmt="o", color="C0", capsize=4)
        dots = [100 * run["mAP"] for run in results[row["name"]].values()]
        axes.plot(dots, [y + 0.2] * len(dots), "k.", markersize=4)
    axes.set_yticks(range(len(shown)), [row["name"] for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set(xlabel="mAP of the last epoch (%): mean, standard deviation, and each seed")
    axes.grid(axis="x", alpha=0.3)
    with written_whole(workdir / "ablation.png") as partial:
        figure.savefig(partial, format="png", dpi=150)


def has_methods(rows: Sequence[Row]) -> bool:
    """Return whether the rows include methods of table 1."""
    return any(row.recipe for row in rows)
