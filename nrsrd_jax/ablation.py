"""Trains the rows of the paper's table 2 (modules) or 3 (backbones) with several seeds, and compares them.

  nrsrd ablation --config demo [--seeds 3] [--workdir runs/x] [--config.KEY=VALUE ...]
  nrsrd ablation --config night600 --table 3 --config.init.checkpoint=weights/{backbone}

A rerun of the same command goes on where it stopped, row by row. The numbers are those of the last epoch: the best one
would be chosen on the test data. The difference from a row's baseline is taken seed by seed.
"""

import dataclasses
import inspect
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import config_flags

from .command import config_overrides, define_config, run
from .config import VARIANTS, Config
from .data.readers import LAYOUTS
from .errors import InputError, say
from .files import expanded, write_csv, write_whole, written_whole
from .inputs import Records
from .metrics_log import TITLES, logged_scores
from .options import Options, read_options
from .runs import owned
from .termination import Termination
from .training import check_run, check_same_run, train


@dataclasses.dataclass(frozen=True)
class Row:
    """One training: a variant, perhaps on a backbone; `paper` has its mAP, Rank-1, Rank-5 on Night600 in per cent."""

    name: str
    variant: str
    paper: tuple[float, float, float]
    backbone: str = ""


TABLES = {
    "2": (
        Row("baseline", "baseline", (9.5, 20.0, 36.1)),
        Row("nra", "nra", (10.4, 21.8, 39.0)),
        Row("mdl", "mdl", (10.9, 24.2, 41.8)),
        Row("nra_mdl", "nra_mdl", (12.2, 27.1, 41.8)),
        Row("srd", "srd", (11.4, 25.3, 41.4)),
        Row("nrsrd", "nrsrd", (12.5, 27.2, 43.9)),
    ),
    "3": (
        Row("vit_small", "baseline", (8.5, 18.8, 34.2), "vit_small"),
        Row("vit_small-nra", "nra", (8.2, 18.1, 33.2), "vit_small"),
        Row("vit_small_ics", "baseline", (8.3, 17.4, 34.5), "vit_small_ics"),
        Row("vit_small_ics-nra", "nra", (8.7, 18.5, 34.8), "vit_small_ics"),
        Row("vit_base_ics", "baseline", (9.5, 20.0, 36.1), "vit_base_ics"),
        Row("vit_base_ics-nra", "nra", (10.4, 21.8, 39.0), "vit_base_ics"),
    ),
}
Results = dict[str, dict[int, dict[str, float]]]  # a row's name -> seed -> its scores


def row_config(file: str, row: Row, seed: int, overrides: dict[str, Any]) -> Config:
    """The config of one training: the file's variant, the overrides on top, `{backbone}` in init.checkpoint filled in.

    InputError if the file has no variants.
    """
    get_config = runpy.run_path(file)["get_config"]
    if not inspect.signature(get_config).parameters:
        raise InputError(f"{file} has no variants ({', '.join(VARIANTS)}): no ablation can be made of it")
    config = get_config(row.variant)
    config.update_from_flattened_dict(overrides)
    if row.backbone:
        config.model.backbone = row.backbone
    config.init.checkpoint = config.init.checkpoint.replace("{backbone}", config.model.backbone)
    config.train.seed += seed
    return config


def run_ablation(
    file: str,
    rows: tuple[Row, ...],
    seeds: int,
    workdir: Path,
    overrides: dict[str, Any],
    preempted_status: int = 143,
) -> Results:
    """Train every row with seeds 0..seeds−1, and write what is known so far after each. Raises as `train` does."""
    jobs = [
        (row, seed, row_config(file, row, seed, overrides), workdir / f"{row.name}-seed{seed}")
        for seed in range(seeds)
        for row in rows
    ]
    paper = rows
    for row, seed, config, folder in jobs:  # a mistake in the last row shows now
        if seed:
            check_same_run(read_options(config), folder)
            continue
        start = check_run(config, folder)
        if not start.records.targets:
            raise InputError(f"{file}: its data has no queries; there is nothing to compare {row.name} by")
        paper = paper if is_the_papers(start.options, start.records) else ()
    with owned(workdir):
        known = {(row.name, seed): logged_scores(folder, config.train.epochs) for row, seed, config, folder in jobs}
        results: Results = {}
        for number, (row, seed, config, folder) in enumerate(jobs, start=1):
            say(f"{number}/{len(jobs)}: {row.name}, seed {seed}, in {folder}")
            # A complete run returns what it logged.
            known[row.name, seed] = train(config, folder, preempted_status=preempted_status)
            results = {row.name: {s: known[row.name, s] for s in range(seeds) if known[row.name, s]} for row in rows}
            write(workdir, results, rows, paper)
    return results


def is_the_papers(options: Options, records: Records) -> bool:
    """Whether the numbers are of Night600 as the paper tests on it."""
    published = LAYOUTS["night600"].images("")
    query = sum(len(target.query) for target in records.targets.values())
    as_published = (len(records.train), query) == (published["train"], published["query"])
    plain = not (options.eval.rerank.enabled or options.eval.flip or options.eval.expand)
    return options.data.name == "night600" and as_published and plain and options.eval.protocol == "cross-camera"


def statistics(results: Results, rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """Per row: `name`, `seeds`, the mean and the standard deviation over seeds of each score and, as `difference`, of
    the mAP's difference from the last baseline above with the same seed; in 0..1, NaN where there is nothing to tell.
    """
    table: list[dict[str, Any]] = []
    baseline: dict[int, dict[str, float]] = {}
    for row in rows:
        runs = results[row.name]
        if row.variant == "baseline":
            baseline = runs
        if runs:
            columns = {score: [run[score] for run in runs.values()] for score in TITLES}
            paired = [runs[seed]["mAP"] - baseline[seed]["mAP"] for seed in runs.keys() & baseline.keys()]
            columns["difference"] = [] if row.variant == "baseline" else paired
            table.append({"name": row.name, "seeds": len(runs)} | {key: _mean_and_std(x) for key, x in columns.items()})
    return table


def _mean_and_std(values: list[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def markdown(results: Results, rows: tuple[Row, ...], paper: tuple[Row, ...] = ()) -> str:
    """The table in per cent; `paper` rows add the paper's columns."""
    published = {row.name: row.paper for row in paper}
    titles = ["", "seeds", *TITLES.values(), "mAP − baseline"]
    titles += ["paper's mAP", "paper's Rank-1", "paper's Rank-5"] if published else []
    lines = [titles, ["---"] * len(titles)]
    for row in statistics(results, rows):
        cells = [row["name"], str(row["seeds"]), *(_cell(row[score]) for score in TITLES)]
        cells.append(_cell(row["difference"], "+"))
        lines.append(cells + [f"{value:.1f}" for value in published.get(row["name"], ())])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\nIn per cent, of the last epoch: mean ± standard deviation over seeds.\n"


def _cell(mean_and_std: tuple[float, float], sign: str = "") -> str:
    mean, std = (100 * x for x in mean_and_std)
    if math.isnan(mean):
        return ""
    return f"{mean:{sign}.1f}" + ("" if math.isnan(std) else f" ± {std:.1f}")


def write(workdir: Path, results: Results, rows: tuple[Row, ...], paper: tuple[Row, ...]) -> None:
    """Write ablation.md (means), ablation.csv (every run) and ablation.png in `workdir`."""
    write_whole(workdir / "ablation.md", markdown(results, rows, paper))
    runs = [(name, seed, run) for name, seeds in results.items() for seed, run in seeds.items()]
    write_csv(
        workdir / "ablation.csv",
        [{"row": name, "seed": seed} | {score: run[score] for score in TITLES} for name, seed, run in runs],
    )
    figure = Figure(figsize=(7, 0.5 * len(results) + 1.5), layout="constrained")
    axes = figure.subplots()
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


def main() -> None:
    values = flags.FLAGS
    file, _, variant = config_flags.get_config_filename(values["config"]).partition(":")
    if variant:
        raise InputError(f"--config {file}:{variant}: name the file alone, the variants are the rows")
    default = f"runs/ablation-{Path(file).stem}" + ("" if values.table == "2" else "-backbones")
    workdir = expanded(values.workdir or default)
    status = values.preempted_status
    with Termination(status):
        results = run_ablation(file, TABLES[values.table], values.seeds, workdir, config_overrides(), status)
    say(*(workdir / "ablation.md").read_text(encoding="utf-8").split("\n"))
    best = max(statistics(results, TABLES[values.table]), key=lambda row: row["mAP"][0])
    say(f"best mean mAP: {best['name']} {_cell(best['mAP'])} %; table, runs and plot are in {workdir}")


def command() -> None:
    """Run `nrsrd ablation` with the arguments of the process."""
    define_config("The runs: a name such as night600, or a file, with the variants of table 2, without a colon.")
    flags.DEFINE_string("workdir", "", "Where runs and table are kept; default: runs/ablation-CONFIG.")
    flags.DEFINE_integer("seeds", 3, "How often to train each row: with train.seed, train.seed+1, …", lower_bound=1)
    flags.DEFINE_integer("preempted_status", 143, "Exit status after SIGTERM, once what was learned is saved.", 0, 255)
    flags.DEFINE_enum("table", "2", list(TABLES), "Of the paper: 2 its modules, 3 its backbones.")
    run(main, __doc__, "interrupted; the same command continues from the last checkpoint")


if __name__ == "__main__":
    command()
