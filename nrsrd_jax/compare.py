"""Compare runs or checkpoints on the same query and gallery, with confidence intervals of their differences.

  nrsrd compare runs/a runs/b                                 each run's best checkpoint, on the data of the first run
  nrsrd compare runs/a runs/b runs/c --by identity            intervals over identities instead of queries
  nrsrd compare A B --config.data.root=DIR                    data that has moved, or any other option of nrsrd eval
  nrsrd compare A B --config.eval.data.name=night600,folders --config.eval.data.root=DIR1,DIR2
  nrsrd compare plain=a0,a1,a2 nra=b0,b1,b2                   three trainings of each method, seed by seed
  nrsrd compare A B --flips flips.csv                         queries whose first match is right under one run only

For each pair of runs, the table shows the difference b − a of mAP and Rank-1, and its 95 % interval: how far it could
change with other queries. The interval is that of a paired bootstrap, which draws the same queries for both runs.
Queries of one person resemble each other, so if people have many queries, use --by identity, which gives wider and
more realistic intervals. With NAME=RUN,RUN,… the bootstrap also draws among the trainings, so that the interval covers
other seeds; with few trainings it is too narrow. Queries without a match are left out.

compare.json (or --output) has all numbers as fractions in 0..1. compare.png beside it shows the differences.
"""

import argparse
import sys

from .command import Parser, one_line, positive, read_overrides, split_config_arguments
from .errors import say


def _read_options() -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the arguments that choose the config."""
    parser = Parser(__doc__, "nrsrd compare")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="a work directory (its best checkpoint), a checkpoint, or NAME=RUN,RUN,…"
    )
    parser.add_argument(
        "--output", default="", help="the file to write or replace; default: compare.json in the current folder"
    )
    parser.add_argument(
        "--flips",
        default="",
        metavar="FILE.csv",
        help="the file to write the queries to whose first match is right under one run only",
    )
    parser.add_argument(
        "--by", choices=("query", "identity"), default="query", help="what the bootstrap draws; default: query"
    )
    parser.add_argument(
        "--resamples",
        type=positive,
        default=10_000,
        help="how many times the bootstrap draws, at least 100; default: 10,000",
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of the bootstrap; default: 0")
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="the data to compare on, as in nrsrd eval; also takes --config.KEY=VALUE",
    )
    ours, rest = split_config_arguments(sys.argv[1:])
    # Runs may stand on both sides of an option, as in `compare A --by identity B`, which parse_args refuses.
    options = parser.parse_intermixed_args(rest)
    if options.resamples < 100:
        parser.error(f"argument --resamples: {options.resamples} is too few for an interval; give at least 100")
    if options.seed < 0:
        parser.error(f"argument --seed: {options.seed} is negative")
    return options, ours


def main() -> None:
    options, ours = _read_options()
    # Import these after reading the arguments, so that --help is quick.
    from .retrieval.comparison import compare
    from .retrieval.comparison_tables import tables

    config, overrides = read_overrides(ours)
    result, files = compare(
        *(options.runs, options.output, config, overrides),
        flips=options.flips,
        resamples=options.resamples,
        seed=options.seed,
        by=options.by,
    )
    say(*tables(result))
    say(*(f"weights: {each['checkpoint']} (chosen by {each['selected_by']})" for each in result["runs"]))
    say(f"written to {', '.join(map(str, files))}")


def command() -> None:
    """Run `nrsrd compare` with the arguments of the process."""
    one_line(main, "interrupted; complete features are kept")


if __name__ == "__main__":
    command()
