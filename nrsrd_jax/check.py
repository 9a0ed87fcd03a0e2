"""Check every image of a data set before training.

  nrsrd check night600 data/Night600
  nrsrd check folders DIR --fix-list bad.txt     then train with --config.data.exclude=bad.txt
  nrsrd check crops DIR                          for a pretraining: crops without labels, in folders or a list (.csv)
  nrsrd check --config night600:nrsrd --config.data.root=DIR

It takes the --config FILE[:VARIANT] and --config.KEY=VALUE of nrsrd train, and judges as training with these options
would; without FILE, as night600:baseline. A fault would stop training; a warning would not. The exit status is 0
if training with these options would start, 1 if there are faults, 2 if the data or the options cannot be read at all.
With only NAME ROOT, too few people for the default batch give a warning: training then needs a smaller
train.batch_size.
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
from .errors import InputError, counted, say
from .files import expanded, written_whole
from .options import Data, EvalData, read_options


def main() -> None:
    arguments, config, given = _read_arguments()
    options = read_options(config)
    # Not imported before the flags are parsed, so that --help is quick.
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
    # A pretraining is tested on eval.data only.
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
        smaller = dataclasses.replace(options.train, batch_size=2 * options.train.instances)
        if given or _refusals(lambda: make_plans(smaller, domains)):
            refused += too_few
        else:
            # The user did not choose the batch size, and a smaller one would work.
            total.warnings += too_few
            say(*(f"warning: {text}" for text in too_few))
    if given and not (refused or total.faults):
        refused = _refusals(lambda: _start(config))
    say(*(f"fault: {text}" for text in refused))
    say(f"{len(total.faults) + len(refused)} faults, {len(total.warnings)} warnings")
    if arguments.fix_list:
        _write_fix_list(arguments.fix_list, {os.path.abspath(path) for path in (*left_out, *total.offending)})
    sys.exit(1 if total.faults or refused else 0)


def _read_arguments() -> tuple[argparse.Namespace, Config, bool]:
    """Return the arguments, the config that they stand for, and whether the user gave --config."""
    parser = Parser(__doc__, "nrsrd check")
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join((*LAYOUTS, CROPS)))
    parser.add_argument(
        "root", nargs="?", metavar="ROOT", help="its folder; of a manifest or a list of crops the CSV file"
    )
    parser.add_argument("--protocol", default="", help="of nightreid and knight")
    parser.add_argument("--exclude", default="", help="a file of paths to leave out, as --fix-list writes it")
    parser.add_argument(
        "--fix-list", type=Path, help="write the paths of unreadable, unnamed, tiny and single-coloured images there"
    )
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="as in nrsrd train, with --config.KEY=VALUE")
    ours, rest = split_config_arguments(sys.argv[1:])
    arguments = parser.parse_args(rest)
    config = read_config(ours)
    if arguments.name and not arguments.root:
        parser.error(f"give the folder of data set {arguments.name} after its name")
    if not (arguments.name or ours):
        parser.error("give a data set, NAME ROOT, or --config FILE")
    if arguments.name:
        config.data.name, config.data.root = arguments.name, arguments.root
    for key in filter(arguments.__dict__.get, ("protocol", "exclude")):
        config.data[key] = getattr(arguments, key)
    return arguments, config, bool(ours)


def _refusals(step: Callable[[], object]) -> list[str]:
    """Run a step of training. Return [its message] if it refuses, otherwise []."""
    try:
        step()
    except InputError as error:
        return [str(error)]
    return []


def _start(config: Config) -> None:
    """Do what training does before it decodes images, in a temporary work directory."""
    from .training import check_run

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        check_run(config, Path(folder) / "run")


def _write_fix_list(file: Path, listed: set[str]) -> None:
    lines = [os.fsencode(path) for path in sorted(listed) if not {"\n", "\r"} & set(path)]
    with written_whole(expanded(file), follow=True) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in lines))
    hint = f"; leave them out with --config.data.exclude={file}" if lines else ""
    say(f"{counted(len(lines), 'path', 'paths')} written to {file}{hint}")
    if len(lines) < len(listed):
        say(f"{len(listed) - len(lines)} have a line break in their names: rename those")


def command() -> None:
    """Run `nrsrd check` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
