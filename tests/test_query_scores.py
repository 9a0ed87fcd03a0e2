"""The scores of each query in a run folder, and the intervals of mAP and Rank-1 that a table shows."""

import csv

import numpy as np
import pytest

from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import logged_scores
from nrsrd_jax.query_scores import NAME, intervals

pytestmark = pytest.mark.slow


def write(folder, precisions, people):
    folder.mkdir()
    lines = [
        f"night600,q{i}.jpg,{person},{value},{1 if value > 0.5 else 2}"
        for i, (value, person) in enumerate(zip(precisions, people, strict=True))
    ]
    (folder / NAME).write_text("\n".join(["data,path,identity,average_precision,first_match", *lines]) + "\n")
    return folder


def test_the_means_over_a_runs_queries_are_its_logged_scores(finished):
    with (finished / NAME).open() as file:
        rows = list(csv.DictReader(file))
    scores = logged_scores(finished, 6)
    assert np.mean([float(row["average_precision"]) for row in rows]) == pytest.approx(scores["mAP"])
    assert np.mean([row["first_match"] == "1" for row in rows]) == pytest.approx(scores["rank1"])
    low, high = map(float, intervals([finished])[0].split("–"))
    assert low <= 100 * scores["mAP"] <= high


def test_the_interval_widens_if_people_differ_and_closes_if_all_queries_are_alike(tmp_path):
    alike = write(tmp_path / "alike", [0.4] * 20, range(20))
    assert intervals([alike]) == ["40.0–40.0", "0.0–0.0"]
    many = write(tmp_path / "many", [0.0, 1.0] * 50, range(100))
    few = write(tmp_path / "few", [0.0, 1.0] * 50, [i % 4 for i in range(100)])
    width = {run: np.ptp([float(x) for x in intervals([run])[0].split("–")]) for run in (many, few)}
    # For 100 people the standard error is 5 %, so the interval is about 20 % wide. Each of the four people has only
    # right or only wrong queries, which makes theirs about five times as wide.
    assert 15 < width[many] < 25 < 50 < width[few]


def test_there_is_no_interval_without_scores_or_with_different_queries(tmp_path):
    one = write(tmp_path / "one", [0.5], [1])
    other = write(tmp_path / "other", [0.5, 0.5], [1, 2])
    assert intervals([one, other]) == intervals([one, tmp_path]) == intervals([]) == ["", ""]


def test_a_damaged_file_of_scores_is_named(tmp_path):
    run = write(tmp_path / "run", [0.5], [1])
    (run / NAME).write_text("data,path\nnight600,q.jpg\n")
    with pytest.raises(InputError, match=r"run/queries\.csv is damaged .*; delete it"):
        intervals([run])
