"""Check every image of a data set before training.

  nrsrd check night600 data/Night600
  nrsrd check folders DIR --fix-list bad.txt     then train with --config.data.exclude=bad.txt
  nrsrd check crops DIR                          for pretraining: crops without labels, in folders or a list (.csv)
  nrsrd check --config night600:nrsrd --config.data.root=DIR

It takes the --config FILE[:VARIANT] and --config.KEY=VALUE of nrsrd train, and checks what training with these options
would need. Without FILE, it takes night600:baseline. A fault would stop training; a warning would not. The exit status
is 0 if training would start, 1 if there are faults, and 2 if the data or the options cannot be read. With only NAME
ROOT, too few people for the default batch give a warning, because a smaller train.batch_size would work.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .command import Parser, one_line, read_config, split_config_arguments
from .config import Config
from .data import datasets
from .data.check import Findings, check, report
from .data.crops import CROPS
from .data.datasets import Dataset, Split
from .data.readers import LAYOUTS
from .data_options import Data
from .errors import InputError, counted, say
from .eval_options import EvalData
from .files import writable_file, written_whole
from .options import read_options


def main() -> None:
    arguments, config, given = _read_arguments()
    options = read_options(config)
    # Refuse the list's place before all images are decoded.
    fix_list = arguments.fix_list and writable_file(arguments.fix_list, "--fix-list")
    # Import these after reading the arguments, so that --help is quick.
    from .inputs import make_domains, make_plans, make_targets, read_crops, read_sources

    left_out = datasets.read_exclude(options.data.exclude)

    def surveyed(choice: Data | EvalData) -> dict[str, Dataset]:
        if isinstance(choice, Data) and choice.name == CROPS:
            crops = read_crops(choice, left_out)
            nothing = crops.subset(np.array([], int))
            return {CROPS: Dataset(crops, nothing, nothing, source=CROPS)}
        return read_sources(choice, left_out, datasets.survey)

    unlabelled = options.dino.enabled or options.data.name == CROPS
    sources = surveyed(options.data)
    # A pretraining has no labels, so it can be tested only on eval.data.
    own_tests = {} if unlabelled else sources
    tests = surveyed(options.eval.data) if options.eval.data.name else own_tests
    others = {f"evaluated {label}": data for label, data in tests.items()} if tests is not own_tests else {}
    if options.aux.enabled:
        for name, root in (("bright_root", options.aux.bright_root), ("dark_root", options.aux.dark_root)):
            if root:
                others[f"aux.{name}"] = datasets.survey("bright", root, exclude=left_out)
    total = Findings()
    for label, data in (sources | others).items():
        findings, pixels = check(data)
        if len(sources) + len(others) > 1:
            say(f"{label}:")
        say(*report(data, findings, pixels))
        for field in dataclasses.fields(Findings):
            getattr(total, field.name).extend(getattr(findings, field.name))
    refused = _refusals(lambda: make_targets(options, tests))
    if not unlabelled:
        domains: dict[str, Split] = {}
        refused += _refusals(lambda: domains.update(make_domains(options.aux, sources, left_out)[0]))
        too_few = _refusals(lambda: make_plans(options.train, domains))
        # The smallest useful batch has two identities, because the triplet loss compares one with another.
        smaller = dataclasses.replace(options.train, batch_size=2 * max(options.train.instances, 1))
        if given or _refusals(lambda: make_plans(smaller, domains)):
            refused += too_few
        else:
            # The user did not choose the batch size, and a smaller batch would work.
            total.warnings += too_few
            say(*(f"warning: {text}" for text in too_few))
    # `check_run` stops at the first fault, and would report one of those above a second time.
    if given and not (refused or total.faults):
        refused = _refusals(lambda: _start(config))
    say(*(f"fault: {text}" for text in refused))
    say(f"{len(total.faults) + len(refused)} faults, {len(total.warnings)} warnings")
    if fix_list:
        # Paths in data.exclude are relative to the current folder, so write absolute ones, which fit any folder.
        _write_fix_list(fix_list, {os.path.abspath(path) for path in (*left_out, *total.offending)})
    sys.exit(1 if total.faults or refused else 0)


def _read_arguments() -> tuple[argparse.Namespace, Config, bool]:
    """Return the arguments, the config that they stand for, and whether the user gave --config or --config.KEY."""
    parser = Parser(__doc__, "nrsrd check")
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join((*LAYOUTS, CROPS)))
    parser.add_argument(
        "root",
        nargs="?",
        metavar="ROOT",
        help="the folder of the data set, or the CSV file of a manifest or list of crops",
    )
    parser.add_argument("--protocol", default="", help="which test to use of nightreid or knight (data.protocol)")
    parser.add_argument("--exclude", default="", help="a text file of paths to leave out, as --fix-list writes it")
    parser.add_argument(
        "--fix-list",
        type=Path,
        help="the file to write the paths of images to that are unreadable, tiny, of one colour, or named wrongly",
    )
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]", help="the config, as in nrsrd train; also takes --config.KEY=VALUE"
    )
    ours, rest = split_config_arguments(sys.argv[1:])
    arguments = parser.parse_args(rest)
    config = read_config(ours)
    if arguments.name and not arguments.root:
        parser.error(f"give the folder of data set {arguments.name} after its name")
    if not (arguments.name or ours):
        parser.error("give a data set as NAME ROOT, or give --config FILE")
    if arguments.name:
        config.data.name, config.data.root = arguments.name, arguments.root
    for key in filter(arguments.__dict__.get, ("protocol", "exclude")):
        config.data[key] = getattr(arguments, key)
    return arguments, config, bool(ours)


def _refusals(step: Callable[[], object]) -> list[str]:
    """Run a part of training. Return its message in a list if it raises InputError, otherwise []."""
    try:
        step()
    except InputError as error:
        return [str(error)]
    return []


def _start(config: Config) -> None:
    """Run the checks of training that need no images to be decoded, in a temporary work directory."""
    from .training import check_run

    # The remarks on the data were printed above, when the data was surveyed.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        check_run(config, Path(folder) / "run")


def _write_fix_list(file: Path, listed: set[str]) -> None:
    # The list has one path per line, so it cannot hold a path with a line break.
    lines = [os.fsencode(path) for path in sorted(listed) if not {"\n", "\r"} & set(path)]
    with written_whole(file, follow=True) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in lines))
    hint = f"; leave them out with --config.data.exclude={file}" if lines else ""
    say(f"{counted(len(lines), 'path', 'paths')} written to {file}{hint}")
    if len(lines) < len(listed):
        say(f"{len(listed) - len(lines)} have a line break in their names and are not listed; rename them")


def command() -> None:
    """Run `nrsrd check` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
