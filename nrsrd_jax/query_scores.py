"""Keep the scores of each query of a run's last evaluation, and compute intervals of mAP and Rank-1 from them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .data.protocol import Target
from .errors import InputError
from .files import write_csv
from .retrieval.bootstrap import percentile_interval, resampled_means
from .retrieval.scoring import Evaluation

NAME = "queries.csv"
TITLES = "mAP 95 %", "Rank-1 95 %"
# The seed is fixed, so that a table that is made again shows the same intervals.
RESAMPLES, SEED = 2000, 0


def write_scores(workdir: Path, results: Mapping[str, Evaluation], targets: Mapping[str, Target]) -> None:
    """Write a row for each query that has a match: data set, file, identity, average precision, rank of the match.

    Raises:
        InputError: the file cannot be written.
    """
    rows = [
        {"data": name, "path": str(path), "identity": identity, "average_precision": precision, "first_match": rank}
        for name, result in results.items()
        for path, identity, precision, rank in zip(
            targets[name].query.paths,
            targets[name].query.pids.tolist(),
            result.metrics.average_precision.tolist(),
            result.metrics.first_match.tolist(),
            strict=True,
        )
        if rank
    ]
    write_csv(workdir / NAME, rows, columns=("data", "path", "identity", "average_precision", "first_match"))


def intervals(runs: Sequence[Path]) -> list[str]:
    """Return the 95 % intervals of mAP and Rank-1, in per cent, by a bootstrap over people and over the trainings.

    Args:
        runs: the folders of trainings of one method.

    Returns:
        The cells under TITLES. They are empty if a run has no scores of queries, the runs were tested on different
        queries, or several data sets were tested.

    Raises:
        InputError: a file of scores is damaged.
    """
    tables = [_read(run / NAME) for run in runs]
    queries = [[key for key, _, _ in table] for table in tables]
    if not queries or not queries[0] or any(each != queries[0] for each in queries):
        return ["", ""]
    if len({data for data, _, _ in queries[0]}) > 1:
        return ["", ""]
    values = np.array([[(precision, rank == 1) for _, precision, rank in table] for table in tables])
    # People are drawn, not queries, because the queries of a person are alike.
    people = np.array([identity for _, _, identity in queries[0]])
    means = resampled_means(values, resamples=RESAMPLES, seed=SEED, groups=people)
    return [f"{100 * low:.1f}–{100 * high:.1f}" for low, high in zip(*percentile_interval(means), strict=True)]


def _read(path: Path) -> list[tuple[tuple[str, str, str], float, int]]:
    """Return ((data set, file, identity), average precision, rank of the first match) by query; [] without a file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                ((row["data"], row["path"], row["identity"]), float(row["average_precision"]), int(row["first_match"]))
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    # A table without these columns raises KeyError; a short row holds None, which raises TypeError.
    except (OSError, csv.Error, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to leave out the intervals of its row") from error
