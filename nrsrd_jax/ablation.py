"""Train the rows of the paper's table 1 (methods), 2 (modules) or 3 (backbones), or your own rows, with several seeds.

  nrsrd ablation --config demo [--seeds 3] [--workdir runs/x] [--config.KEY=VALUE ...]
  nrsrd ablation --config night600 --table 3 --config.init.checkpoint=weights/{backbone}
  nrsrd ablation --config night600 --table 1 --config.init.checkpoint=weights/{backbone}
  nrsrd ablation --config demo --table 1 --same-start
  nrsrd ablation --config demo --row small=baseline,image_size=64,32 --row slow=nrsrd,optim.lr=1e-4
  nrsrd ablation --config demo --table none --rows rows.txt --jobs 2

Your own row is NAME=VARIANT,KEY=VALUE,…: a variant of the file, with options that override --config.KEY=VALUE. You can
repeat --row. --rows names a file with one row per line; lines that begin with # are comments. A comma begins an option
only if KEY= follows it, so a value may contain commas (image_size=64,32). Your own rows come after those of the table.
--table none trains only your own rows.

Table 1 trains each method as its official code does. With --same-start, everything except the method comes from the
config, so that rows of one backbone differ only in the method. If the config has a vit_tiny, the ResNets are small
too. {backbone} in init.checkpoint stands for each row's backbone, and for resnet50 in the rows of ResNet methods.
Without {backbone}, ResNets start from random weights and ViTs from init.checkpoint. A row of table 1 whose weights or
data are missing is left out, and the table says why.

If you run the same command again, it continues where it stopped, row by row. The scores are those of the last epoch,
because the best epoch would be chosen on the test data. Each row is compared with its baseline seed by seed. The
baseline is the last row above it of the variant `baseline` without own options, or otherwise the first row.

--jobs N trains N rows at the same time, each in its own process, as nrsrd train would in the row's folder. The GPUs are
split among the processes. If there are fewer than N GPUs, several processes share a GPU, which pays off for small
models. If a training fails, the others continue, and the command ends with status 2.
"""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import config_flags

from . import costs
from .command import config_overrides, define_config, define_preempted_status, run
from .config import Config, flatten
from .data.readers import LAYOUTS
from .errors import InputError, say
from .files import expanded, write_csv, write_whole, written_whole
from .inputs import Records
from .jobs import device_shares, run_jobs
from .metrics_log import TITLES, logged_scores
from .options import Options, read_options
from .rows import TABLES, Row, choose_rows, row_config, variant_config
from .runs import owned
from .termination import Termination
from .training import check_run, check_same_run, train

# The scores of each row by seed: name -> seed -> {score: value}.
Results = dict[str, dict[int, dict[str, float]]]


class Training(NamedTuple):
    """The training of a row with one seed: its config and its folder."""

    row: Row
    seed: int
    config: Config
    folder: Path

    def logged(self) -> dict[str, float]:
        """Return the scores of the last epoch, or {} if the training is not complete."""
        return logged_scores(self.folder, self.config.train.epochs)


def run_ablation(
    file: str,
    rows: tuple[Row, ...],
    seeds: int,
    workdir: Path,
    overrides: dict[str, Any],
    preempted_status: int = 143,
    jobs: int = 1,
    same_start: bool = False,
) -> tuple[Results, dict[str, str]]:
    """Train every row with each seed, and write the tables after each training.

    Args:
        file: the config file.
        rows: the rows to train.
        seeds: the number of seeds; they count up from the config's train.seed.
        workdir: the folder of the tables and of the trainings.
        overrides: the options of the command line, {"data.root": …}.
        preempted_status: the exit status that `Stopped` carries.
        jobs: the number of trainings at a time; if it is above 1, each runs in its own process.
        same_start: whether the rows of table 1 differ only in the method, not in how it is trained.

    Returns:
        The results, and for each row of table 1 that was left out the reason.

    Raises:
        InputError: a row has a wrong config or data, which is found before anything is trained, or as `train` and
            `run_jobs` raise it.
        Stopped: SIGTERM came, and what was learned is saved.
    """
    trainings = []
    for seed in range(seeds):
        for row in rows:
            with _naming(row):
                config = row_config(file, row, seed, overrides, same_start)
            trainings.append(Training(row, seed, config, workdir / f"{row.name}-seed{seed}"))
    paper = tuple(row for row in rows if row.paper)
    missing: dict[str, str] = {}
    # Check all rows first, so that a mistake in the last one does not show after days of training.
    for row, seed, config, folder in trainings:
        if row.name in missing:
            continue
        with _naming(row):
            if seed:
                check_same_run(read_options(config), folder)
                continue
            try:
                start = check_run(config, folder)
            except InputError as error:
                if not _has_methods(rows):
                    raise
                missing[row.name] = str(error)
                continue
            if not start.records.targets:
                raise InputError(
                    "its data set has no queries to compare rows by; set data.name and data.root to one with queries"
                )
        if row.paper and not is_the_papers(start.options, start.records):
            paper = ()
    trainings = [each for each in trainings if each.row.name not in missing]
    rows = tuple(row for row in rows if row.name not in missing)
    if not rows:
        raise InputError(f"no row can be trained; {next(iter(missing.values()))}")
    tests = {how_tested(read_options(each.config)) for each in trainings}
    if len(tests) > 1:
        raise InputError(
            "rows differ in data.holdout or eval.normalize, so their scores do not compare; set both alike in all rows"
        )
    tested = tests.pop()
    shares = device_shares(jobs) if jobs > 1 else []
    with owned(workdir):
        known = {(each.row.name, each.seed): each.logged() for each in trainings}
        results: Results = {}

        def record(row: Row, seed: int, scores: dict[str, float]) -> None:
            known[row.name, seed] = scores
            for name in (row.name for row in rows):
                results[name] = {s: known[name, s] for s in range(seeds) if known[name, s]}
            write(workdir, results, rows, paper, tested, missing)

        if shares:
            named = {each.folder.name: each for each in trainings}
            commands = {name: train_command(file, each) for name, each in named.items()}
            run_jobs(
                *(commands, shares),
                lambda name: record(named[name].row, named[name].seed, named[name].logged()),
                preempted_status,
            )
            return results, missing
        for number, (row, seed, config, folder) in enumerate(trainings, start=1):
            say(f"{number}/{len(trainings)}: {row.name}, seed {seed}, in {folder}")
            # If the run is complete, `train` returns the scores that it logged.
            record(row, seed, train(config, folder, preempted_status=preempted_status))
    return results, missing


def _has_methods(rows: Sequence[Row]) -> bool:
    """Return whether the rows include methods of table 1."""
    return any(row.recipe for row in rows)


@contextlib.contextmanager
def _naming(row: Row) -> Iterator[None]:
    """Put the row's name in front of an InputError that the block raises."""
    try:
        yield
    except InputError as error:
        raise InputError(f"row {row.name}: {error}") from error


def train_command(file: str, training: Training) -> list[str]:
    """Return the command line that runs a training in its own process."""
    row, _, config, folder = training
    plain = flatten(variant_config(file, row))
    options = [f"--config.{name}={value}" for name, value in flatten(config).items() if value != plain[name]]
    place = ["--config", f"{file}:{row.variant}", "--workdir", str(folder)]
    return [sys.executable, "-m", "nrsrd_jax.train", *place, *options]


def how_tested(options: Options) -> str:
    """Return a remark for readers of the scores on how the test differs from an ordinary one; "" if it does not."""
    words = ["people held out of training are tested"] if options.data.holdout else []
    if options.eval.normalize != "none":
        words.append(f"features are normalised by {options.eval.normalize} over the test set (transductive)")
    return "; ".join(words)


def is_the_papers(options: Options, records: Records) -> bool:
    """Return whether data, protocol and evaluation are those of the paper on Night600."""
    published = LAYOUTS["night600"].images("")
    query = sum(len(target.query) for target in records.targets.values())
    as_published = (len(records.train), query) == (published["train"], published["query"])
    chosen = options.eval
    plain = not (chosen.rerank.enabled or chosen.flip or chosen.expand or chosen.normalize != "none")
    plain = plain and chosen.feature == "cls"
    return options.data.name == "night600" and as_published and plain and options.eval.protocol == "cross-camera"


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
            paired = [runs[seed]["mAP"] - baseline[seed]["mAP"] for seed in runs.keys() & baseline.keys()]
            columns["difference"] = [] if is_reference else paired
            table.append({"name": row.name, "seeds": len(runs)} | {key: _mean_and_std(x) for key, x in columns.items()})
    return table


def _mean_and_std(values: list[float]) -> tuple[float, float]:
    mean = float(np.mean(values)) if values else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


UNBUILT = (
    "Rows of table 1 that are missing here: EDA's enhancement and CENet have no readable code, and ABD-Net is not "
    "implemented. The paper's 9.2 / 17.2 for IDF is of a form on a ViT whose code is not released. GFLOP is the work "
    "for one image, and minutes are the time of one training."
)
NOTE = "Scores of the last epoch in per cent: mean ± standard deviation over seeds."


def table_cells(results: Results, rows: tuple[Row, ...], paper: tuple[Row, ...] = ()) -> list[list[str]]:
    """Return the titles and the rows of the table, in per cent. Rows in `paper` add columns of the paper's numbers."""
    published = {row.name: row.paper for row in paper if row.paper}
    extra = ["paper's mAP", "paper's Rank-1", "paper's Rank-5"] if published else []
    lines = [["", "seeds", *TITLES.values(), "mAP − baseline", *extra]]
    for row in statistics(results, rows):
        cells = [row["name"], str(row["seeds"]), *(_cell(row[score]) for score in TITLES)]
        cells.append(_cell(row["difference"], "+"))
        numbers = ["" if value is None else f"{value:.1f}" for value in published.get(row["name"], ())]
        lines.append(cells + (numbers or [""] * len(extra)))
    return lines


def method_cells(rows: Sequence[Row], results: Results, workdir: Path) -> dict[str, list[str]]:
    """Return the cells under `costs.TITLES` by row: each method's backbone, first weights, size and cost."""
    return {
        row.name: costs.costs(workdir / f"{row.name}-seed{min(results[row.name])}") for row in rows if results[row.name]
    }


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
        titles += costs.TITLES
        lines = [line + about.get(line[0], [""] * len(costs.TITLES)) for line in lines]
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
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "−": "$-$"}
    text = "".join(special.get(character, character) for character in cell.removeprefix("-"))
    return f"$-${text}" if cell.startswith("-") else text


def _cell(mean_and_std: tuple[float, float], sign: str = "") -> str:
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
) -> None:
    """Write ablation.md and ablation.tex (means), ablation.csv (every run) and ablation.png in `workdir`."""
    about = method_cells(rows, results, workdir) if _has_methods(rows) else {}
    write_whole(workdir / "ablation.md", markdown(results, rows, paper, tested, about, missing))
    write_whole(workdir / "ablation.tex", latex(results, rows, paper))
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
        raise InputError(f"--config {file}:{variant}: leave out the variant, because each row has its own")
    rows = choose_rows(values.table, values.row, values.rows)
    if values.jobs > 1:
        # This process only checks and waits. It must leave the GPUs' memory to the processes that train.
        jax.config.update("jax_platforms", "cpu")
    endings = {"1": "-methods", "2": "", "3": "-backbones", "none": "-rows"}
    workdir = expanded(values.workdir or f"runs/ablation-{Path(file).stem}{endings[values.table]}")
    status = values.preempted_status
    with Termination(status):
        results, missing = run_ablation(
            *(file, rows, values.seeds, workdir, config_overrides(), status, values.jobs),
            same_start=bool(values["same-start"].value),
        )
    rows = tuple(row for row in rows if row.name not in missing)
    say(*(workdir / "ablation.md").read_text(encoding="utf-8").split("\n"))
    best = max(statistics(results, rows), key=lambda row: row["mAP"][0])
    say(f"best mean mAP: {best['name']} {_cell(best['mAP'])} %; tables, runs and plot are in {workdir}")


def command() -> None:
    """Run `nrsrd ablation` with the arguments of the process."""
    define_config(
        "The config: a name such as night600, or a file, without a variant. It must have the variants of table 2."
    )
    flags.DEFINE_string("workdir", "", "The folder of the runs and tables; default: runs/ablation-CONFIG-TABLE.")
    flags.DEFINE_integer(
        "seeds", 3, "How many seeds to train each row with: train.seed, train.seed+1, …", lower_bound=1
    )
    define_preempted_status()
    flags.DEFINE_enum(
        *("table", "2", list(TABLES)),
        "The table of the paper to train: 1 (methods), 2 (modules), 3 (backbones); none: only your own rows.",
    )
    flags.DEFINE_bool("same-start", False, "With --table 1: take everything except the method from the config.")
    flags.DEFINE_multi_string("row", [], "Your own row, NAME=VARIANT,KEY=VALUE,…; can be repeated.")
    flags.DEFINE_string("rows", "", "A text file with your own rows, one per line.")
    flags.DEFINE_integer("jobs", 1, "How many rows to train at the same time, each in its own process.", lower_bound=1)
    run(main, __doc__, "interrupted; the same command continues from the last checkpoint")


if __name__ == "__main__":
    command()
