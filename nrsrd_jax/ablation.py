"""Train the rows of the paper's table 1 (methods), 2 (modules) or 3 (backbones), or your own rows, with several seeds.

  nrsrd ablation --config demo [--seeds 3] [--workdir runs/x] [--config.KEY=VALUE ...]
  nrsrd ablation --config night600 --table 3 --config.init.checkpoint=weights/{backbone}
  nrsrd ablation --config night600 --table 1 --only bot,agw --config.init.checkpoint=weights/{backbone}
  nrsrd ablation --config demo --table 1 --same-start
  nrsrd ablation --config demo --row small=baseline,image_size=64,32 --row slow=nrsrd,optim.lr=1e-4
  nrsrd ablation --config demo --table none --rows rows.txt --jobs 2

Your own row is NAME=VARIANT,KEY=VALUE,…: a variant of the file, with options that override --config.KEY=VALUE. You can
repeat --row. --rows names a file with one row per line; lines that begin with # are comments. A comma begins an option
only if KEY= follows it, so a value may contain commas (image_size=64,32). Your own rows come after those of the table.
--table none trains only your own rows.

--only bot,agw trains only these rows, and the tables show only them. Without --only, the same command later continues
with the other rows.

Table 1 trains each method as its official code does. With --same-start, everything except the method comes from the
config, so that rows of one backbone differ only in the method; --config.model.backbone then chooses the ViT. If the
config has a vit_tiny, the ResNets are small too, and TransReID trains that vit_tiny. {backbone} in init.checkpoint
stands for each row's backbone, and for resnet50 in the rows of ResNet methods. Without {backbone}, ResNets start from
random weights and ViTs from init.checkpoint. A row of table 1 whose weights or data are missing is left out: a line at
the start and the table say why.

If you run the same command again, it continues where it stopped, row by row. The scores are those of the last epoch,
because the best epoch would be chosen on the test data. Each row is compared with its baseline seed by seed. The
baseline is the last row above it of the variant `baseline` without own options, or otherwise the first row.

--jobs N trains N rows at the same time, each in its own process, as nrsrd train would in the row's folder. The GPUs are
split among the processes. If there are fewer than N GPUs, several processes share a GPU, which pays off for small
models. If a training fails, the others continue, and the command ends with status 2.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import config_flags

from .ablation_tables import Results, cell, has_methods, statistics, write
from .command import config_overrides, define_config, define_preempted_status, run
from .config import Config, flatten
from .data.readers import LAYOUTS
from .errors import InputError, Missing, say
from .files import expanded
from .inputs import Records
from .jobs import device_shares, run_jobs
from .metrics_log import logged_scores
from .options import Options, read_options
from .recipes import RECIPES
from .rows import TABLES, Row, choose_rows, row_config, variant_config
from .runs import owned
from .termination import Termination
from .training import check_run, check_same_run, train


class Training(NamedTuple):
    """The training of a row with one seed: its config and its folder."""

    row: Row
    seed: int
    config: Config
    folder: Path

    def logged(self) -> dict[str, float]:
        """Return the scores of the last epoch, or {} if the training is not complete."""
        return logged_scores(self.folder, self.config.train.epochs)


def _plan(
    file: str, rows: tuple[Row, ...], seeds: int, workdir: Path, overrides: dict[str, Any], same_start: bool
) -> list[Training]:
    """Return the trainings of all rows and seeds, with the arguments of `run_ablation`."""
    trainings = []
    # Every row gets its first seed before a row gets its second, so that a table of all rows exists early.
    for seed in range(seeds):
        for row in rows:
            with _naming(row):
                config = row_config(file, row, seed, overrides, same_start)
            trainings.append(Training(row, seed, config, workdir / f"{row.name}-seed{seed}"))
    return trainings


def _check_rows(trainings: Sequence[Training], methods: bool) -> tuple[tuple[Row, ...], dict[str, str]]:
    """Check all rows, so that a mistake in the last one does not show after days of training.

    Args:
        trainings: the trainings of all rows.
        methods: whether a row whose weights or data are missing is left out, as in table 1; otherwise it is an error.

    Returns:
        The rows beside which the table shows the paper's numbers, and for each row that is left out the reason.
    """
    paper: tuple[Row, ...] = ()
    missing: dict[str, str] = {}
    for row, seed, config, folder in trainings:
        if row.name in missing:
            continue
        with _naming(row):
            # Rows of other seeds read the same data, so check only that their folders hold no other run.
            if seed:
                check_same_run(read_options(config), folder)
                continue
            try:
                start = check_run(config, folder)
            except Missing as error:
                # Table 1 needs weights of many sources, so train its other rows; elsewhere an error is a mistake.
                if not methods:
                    raise
                missing[row.name] = str(error)
                say(f"row {row.name} is left out: {error}")
                continue
            if not start.records.targets:
                raise InputError(
                    "its data set has no queries to compare rows by; set data.name and data.root to one with queries"
                )
        if row.paper and is_the_papers(row, start.options, start.records):
            paper += (row,)
    return paper, missing


def run_ablation(
    file: str,
    rows: tuple[Row, ...],
    seeds: int,
    workdir: Path,
    overrides: dict[str, Any],
    preempted_status: int = 143,
    shares: Sequence[Mapping[str, str]] = (),
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
        shares: the environment variables of each process that trains, as `device_shares` returns them. They make as
            many trainings run at the same time. If empty, this process trains one row after another.
        same_start: whether the rows of table 1 differ only in the method, not in how it is trained.

    Returns:
        The results, and for each row of table 1 that was left out the reason.

    Raises:
        InputError: a row has a wrong config or data, which is found before anything is trained, or as `train` and
            `run_jobs` raise it.
        Stopped: SIGTERM came, and what was learned is saved.
    """
    trainings = _plan(file, rows, seeds, workdir, overrides, same_start)
    methods = has_methods(rows)
    paper, missing = _check_rows(trainings, methods)
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
    with owned(workdir):
        # Trainings that an earlier run of the command completed are in the tables from the start.
        known = {(each.row.name, each.seed): each.logged() for each in trainings}
        results: Results = {}

        def record(row: Row, seed: int, scores: dict[str, float]) -> None:
            known[row.name, seed] = scores
            for name in (row.name for row in rows):
                results[name] = {s: known[name, s] for s in range(seeds) if known[name, s]}
            write(workdir, results, rows, paper, tested, missing, methods)

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


def is_the_papers(row: Row, options: Options, records: Records) -> bool:
    """Return whether data and protocol are those of the paper on Night600, and the evaluation is that of the method."""
    published = LAYOUTS["night600"].images("")
    query = sum(len(target.query) for target in records.targets.values())
    as_published = (len(records.train), query) == (published["train"], published["query"])
    chosen = options.eval
    # The official codes of IDE and IDF test with mirrored images, so for these methods that is the plain evaluation.
    flip = row.recipe != "" and RECIPES[row.recipe].config().eval.flip
    plain = not (chosen.rerank.enabled or chosen.expand or chosen.normalize != "none") and chosen.flip == flip
    plain = plain and chosen.feature == "cls"
    return options.data.name == "night600" and as_published and plain and options.eval.protocol == "cross-camera"


def default_workdir(file: str, table: str, same_start: bool) -> str:
    """Return the folder of an ablation without --workdir."""
    # With --same-start, table 1 trains other runs with the same names, so it needs a folder of its own.
    methods = "-methods-same-start" if same_start else "-methods"
    ending = {"1": methods, "2": "", "3": "-backbones", "none": "-rows"}[table]
    return f"runs/ablation-{Path(file).stem}{ending}"


def main() -> None:
    values = flags.FLAGS
    file, _, variant = config_flags.get_config_filename(values["config"]).partition(":")
    if variant:
        raise InputError(f"--config {file}:{variant}: leave out the variant, because each row has its own")
    rows = choose_rows(values.table, values.row, values.rows, values.only)
    shares = device_shares(values.jobs) if values.jobs > 1 else []
    if shares:
        # This process only checks and waits. It must leave the GPUs' memory to the processes that train.
        jax.config.update("jax_platforms", "cpu")
        # Batches and parameters must divide over the devices of each of these processes, so check with as many.
        if gpus := shares[0].get("CUDA_VISIBLE_DEVICES"):
            jax.config.update("jax_num_cpu_devices", len(gpus.split(",")))
    same_start = bool(values["same-start"].value)
    workdir = expanded(values.workdir or default_workdir(file, values.table, same_start))
    status = values.preempted_status
    with Termination(status):
        results, missing = run_ablation(
            *(file, rows, values.seeds, workdir, config_overrides(), status, shares),
            same_start=same_start,
        )
    rows = tuple(row for row in rows if row.name not in missing)
    say(*(workdir / "ablation.md").read_text(encoding="utf-8").split("\n"))
    best = max(statistics(results, rows), key=lambda row: row["mAP"][0])
    say(f"best mean mAP: {best['name']} {cell(best['mAP'])} %; tables, runs and plot are in {workdir}")


def command() -> None:
    """Run `nrsrd ablation` with the arguments of the process."""
    define_config(
        "The config: a name such as night600, or a file, without a variant. It must have the variants of table 2."
    )
    flags.DEFINE_string(
        "workdir",
        "",
        "The folder of the runs and tables; default: runs/ablation-CONFIG, with a suffix for tables other than 2 "
        "and for --same-start.",
    )
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
    flags.DEFINE_list("only", [], "The names of the rows to train, separated by commas; default: all rows.")
    flags.DEFINE_integer("jobs", 1, "How many rows to train at the same time, each in its own process.", lower_bound=1)
    run(main, __doc__, "interrupted; the same command continues from the last checkpoint")


if __name__ == "__main__":
    command()
