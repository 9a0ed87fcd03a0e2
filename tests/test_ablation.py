"""The ablation trains each row once per seed, continues where it stopped, and compares the scores."""

import csv
import json
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from people import ROOT, run

from nrsrd_jax import ablation, ablation_tables
from nrsrd_jax.ablation import run_ablation
from nrsrd_jax.ablation_tables import latex, markdown, statistics
from nrsrd_jax.build import check_model
from nrsrd_jax.data.readers import LAYOUTS
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import TITLES
from nrsrd_jax.options import read_options
from nrsrd_jax.rows import TABLES, Row, choose_rows, parse_row, row_config
from nrsrd_jax.training import check_run

pytestmark = pytest.mark.slow

ROWS = TABLES["2"][:2]


def scores(*values):
    """Return scores by seed, where a seed has the same value in all metrics."""
    return {seed: dict.fromkeys(TITLES, value) for seed, value in enumerate(values)}


def test_mean_spread_and_paired_difference_match_a_hand_calculation():
    first, second = statistics({"baseline": scores(0.1, 0.3), "nra": scores(0.2, 0.5)}, ROWS)
    # The standard deviation of a sample divides by n − 1.
    np.testing.assert_allclose(first["mAP"], (0.2, np.sqrt(0.02)))
    np.testing.assert_allclose(second["difference"], (0.15, np.sqrt(0.005)))
    assert (first["seeds"], np.isnan(first["difference"]).all()) == (2, True)
    assert statistics({"baseline": scores(0.1), "nra": {}}, ROWS)[-1]["name"] == "baseline"


def test_nra_is_compared_with_the_same_backbone_without_it():
    """Table 3 shows what NRA adds to each backbone, and not the difference between backbones."""
    rows = TABLES["3"][:4]
    table = statistics({row.name: scores(x) for row, x in zip(rows, (0.1, 0.2, 0.5, 0.4), strict=True)}, rows)
    np.testing.assert_allclose([row["difference"][0] for row in table], [np.nan, 0.1, np.nan, -0.1])


def test_the_table_shows_the_papers_numbers_beside_ours():
    text = markdown({"baseline": scores(0.1), "nra": scores(0.2)}, ROWS, ROWS)
    assert text.splitlines()[3] == f"| nra | 1 |{' 20.0 |' * len(TITLES)} +10.0 | 10.4 | 21.8 | 39.0 |"
    assert "paper" not in markdown({"baseline": scores(0.1), "nra": {}}, ROWS)


def test_each_seed_has_its_own_run_and_rows_are_compared_seed_by_seed(ablation_file, tmp_path, monkeypatch):
    """Without training, two rows with two seeds use four folders, and the table has all of them."""
    seen = []

    def train(config, workdir, preempted_status):
        seen.append((Path(workdir).name, config.train.seed, config.model.norm_ratio))
        return scores(len(seen) / 10)[0]

    monkeypatch.setattr(ablation, "train", train)
    run_ablation(ablation_file, ROWS, 2, tmp_path / "w", {})
    assert seen == [
        ("baseline-seed0", 0, False), ("nra-seed0", 0, True), ("baseline-seed1", 1, False), ("nra-seed1", 1, True),
    ]  # fmt: skip
    table = (tmp_path / "w/ablation.md").read_text().splitlines()
    assert table[2].startswith("| baseline | 2 | 20.0 ± 14.1 |")
    assert table[3].startswith("| nra | 2 | 30.0 ± 14.1 |")
    assert table[3].endswith("| +10.0 ± 0.0 |")
    rows = list(csv.reader((tmp_path / "w/ablation.csv").read_text().splitlines()))
    assert [row[:3] for row in rows[1:]] == [
        ["baseline", "0", "0.1"], ["baseline", "1", "0.3"], ["nra", "0", "0.2"], ["nra", "1", "0.4"],
    ]  # fmt: skip


def test_rows_are_trained_once_and_a_rerun_continues(ablation_file, tmp_path, monkeypatch):
    """After a kill before the second row, a rerun trains only that row, and another rerun trains nothing."""
    # This option does not change the compiled program, so both rows share it.
    rows = (ROWS[0], parse_row("later=baseline,train.log_every=2"))
    trained, real = [], ablation.train

    def train(config, workdir, preempted_status):
        trained.append((Path(workdir).name, config.train.seed))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(config, workdir, preempted_status=preempted_status)

    monkeypatch.setattr(ablation, "train", train)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(ablation_file, rows, 1, tmp_path / "w", {"train.seed": 7})
    table = (tmp_path / "w/ablation.md").read_text()
    assert "| baseline | 1 |" in table
    assert "paper" not in table
    results, _ = run_ablation(ablation_file, rows, 1, tmp_path / "w", {"train.seed": 7})
    assert trained == [("baseline-seed0", 7), ("later-seed0", 7), ("baseline-seed0", 7), ("later-seed0", 7)]
    logged = json.loads((tmp_path / "w/later-seed0/metrics.jsonl").read_text().splitlines()[-1])
    assert results["later"][0]["mAP"] == logged["mAP"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("*/checkpoints/*")}
    # The table has the paper's numbers only if the data has the published size.
    for split, count in (("train", 32), ("query", 4)):
        monkeypatch.setitem(LAYOUTS["night600"].published[""], split, count)
    assert run_ablation(ablation_file, rows, 1, tmp_path / "w", {"train.seed": 7})[0] == results
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("*/checkpoints/*")}
    assert "paper's mAP" in (tmp_path / "w/ablation.md").read_text()
    assert (tmp_path / "w/ablation.png").read_bytes().startswith(b"\x89PNG")
    first = iter([results["baseline"][0]])
    monkeypatch.setattr(ablation, "train", lambda *_, **__: next(first))
    # A rerun that stops after its first row keeps the results of the other rows.
    with pytest.raises(StopIteration):
        run_ablation(ablation_file, rows, 1, tmp_path / "w", {"train.seed": 7})
    assert (tmp_path / "w/ablation.csv").read_text().count("\n") == 3
    with pytest.raises(InputError, match="other options"):
        run_ablation(ablation_file, rows, 1, tmp_path / "w", {"train.seed": 7, "optim.lr": 1e-4})


def test_rows_with_different_test_options_are_not_compared(ablation_file, tmp_path, monkeypatch):
    """If all rows hold out people, the table says so. If only some rows do, nothing is trained."""
    monkeypatch.setattr(ablation, "train", lambda *_, **__: scores(0.5)[0])
    run_ablation(ablation_file, ROWS, 1, tmp_path / "w", {"data.holdout": 0.2, "train.batch_size": 8})
    assert "Note on the test: people held out of training are tested." in (tmp_path / "w/ablation.md").read_text()
    rows = (ROWS[0], parse_row("other=nra,eval.normalize=camera"))
    monkeypatch.setattr(ablation, "train", pytest.fail)
    with pytest.raises(InputError, match=r"rows differ in data.holdout or eval.normalize"):
        run_ablation(ablation_file, rows, 1, tmp_path / "v", {})


def test_a_mistake_in_the_last_row_is_reported_before_training(ablation_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "train", pytest.fail)
    with pytest.raises(InputError, match="train a teacher with"):
        run_ablation(ablation_file, TABLES["2"], 3, tmp_path / "w", {})
    with pytest.raises(InputError, match="has no queries"):
        run_ablation(
            ablation_file, ROWS, 1, tmp_path / "w", {"data.name": "bright", "data.root": str(tmp_path / "aux")}
        )
    assert not (tmp_path / "w").exists()


def test_each_backbone_starts_from_its_own_weights(ablation_file):
    row = Row("x", "nra", (1, 2, 3), "vit_small")
    config = row_config(ablation_file, row, 2, {"init.checkpoint": "weights/{backbone}", "model.depth": 0})
    assert (config.model.backbone, config.init.checkpoint) == ("vit_small", "weights/vit_small")
    assert (config.model.norm_ratio, config.train.seed) == (True, 2)


def test_another_backbone_is_refused_in_a_table_of_backbones(ablation_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "train", pytest.fail)
    words = (
        r"^row vit_small: model\.backbone=vit_tiny: this row trains vit_small; leave it out, or give your own --row$"
    )
    with pytest.raises(InputError, match=words):
        run_ablation(ablation_file, TABLES["3"], 1, tmp_path / "w", {"model.backbone": "vit_tiny"})
    # The rows of table 2 have the config's backbone, which can be changed.
    assert row_config(ablation_file, ROWS[1], 0, {"model.backbone": "vit_small"}).model.backbone == "vit_small"


def test_a_row_of_your_own_is_a_variant_with_options(ablation_file):
    row = parse_row("wide=nra,image_size=64,32,optim.lr=2e-3, degradation.light=0.1,0.5,loss.margin=0.3")
    config = row_config(ablation_file, row, 1, {"optim.lr": 1e-4, "optim.momentum": 0.5})
    assert (row.name, row.variant, row.paper, config.model.norm_ratio) == ("wide", "nra", None, True)
    assert (config.image_size, config.optim.lr, config.optim.momentum) == ((64, 32), 2e-3, 0.5)
    assert (config.degradation.light, config.loss.margin, config.train.seed) == ((0.1, 0.5), 0.3, 1)


def test_rows_from_a_file_come_after_the_rows_of_the_table(tmp_path):
    (tmp_path / "rows.txt").write_text(
        "# learning rates\n\nslow=baseline,optim.lr=1e-4\n  fast=baseline,optim.lr=1e-2\n"
    )
    rows = choose_rows("2", ["own=nra"], str(tmp_path / "rows.txt"))
    assert [row.name for row in rows] == [*(row.name for row in TABLES["2"]), "slow", "fast", "own"]
    assert rows[-2].options == (("optim.lr", "1e-2"),)
    assert [row.name for row in choose_rows("none", ["own=nra"])] == ["own"]
    (tmp_path / "rows.txt").write_text("a=nra\nb\n")
    with pytest.raises(InputError, match=r'rows.txt, line 2: "b" is not a row; write a row as NAME=VARIANT,KEY=VALUE'):
        choose_rows("2", [], str(tmp_path / "rows.txt"))


@pytest.mark.parametrize("table", ["1", "2", "3", "none"])
def test_only_the_rows_that_are_chosen_are_trained(table):
    """The rows keep the order of the table. An unknown name is refused with the names of all rows."""
    every = choose_rows(table, ["own=nra", "next=nra"])
    assert choose_rows(table, ["own=nra", "next=nra"], only=["own", every[0].name]) == tuple(
        row for row in every if row.name in ("own", every[0].name)
    )
    names = ", ".join(row.name for row in every)
    with pytest.raises(InputError, match=f"^--only: there is no row nope; the rows are {re.escape(names)}$"):
        choose_rows(table, ["own=nra", "next=nra"], only=["own", "nope"])


@pytest.mark.parametrize(("table", "own", "message"), [
    ("none", [], "--table none leaves no rows"),
    ("2", ["nra=nra,optim.lr=1"], "two rows are called nra"),
    ("2", ["../x=nra"], "is not a row"),
    ("2", ["x=nra,optim.lr"], "is not a row"),
    ("2", ["x=nra,optim.lr=1,optim.lr=2"], "row x sets optim.lr twice"),
])  # fmt: skip
def test_an_invalid_row_is_refused(table, own, message):
    with pytest.raises(InputError, match=message):
        choose_rows(table, own)


@pytest.mark.parametrize(("own", "message"), [
    ("x=nope", "row x: there is no variant 'nope'; choose one of baseline, nra"),
    ("x=nra,optim.rate=1", "row x: optim.rate is not an option; did you mean optim.name or optim.lr?"),
    ("x=nra,train=1", "row x: train is not an option"),
    ("x=nra,train.epochs=many", 'row x: train.epochs is "many"; it must be a whole number'),
    ("x=nra,optim.lr=-1", "row x: optim.lr is -1.0; it must be positive"),
    ("x=nra,data.root=/nowhere", "row x: no folder /nowhere for data set night600"),
])  # fmt: skip
def test_a_mistake_in_a_row_is_reported_with_its_option_before_training(
    ablation_file, tmp_path, monkeypatch, own, message
):
    monkeypatch.setattr(ablation, "train", pytest.fail)
    with pytest.raises(InputError) as error:
        run_ablation(ablation_file, (*ROWS, parse_row(own)), 1, tmp_path / "w", {})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "w").exists()


def test_rows_of_your_own_are_compared_with_the_baseline_and_have_no_paper_columns():
    rows = (*ROWS, parse_row("slow=baseline,optim.lr=1e-4"), parse_row("own=nra"))
    results = {row.name: scores(x) for row, x in zip(rows, (0.1, 0.2, 0.05, 0.4), strict=True)}
    differences = [row["difference"][0] for row in statistics(results, rows)]
    np.testing.assert_allclose(differences, [np.nan, 0.1, -0.05, 0.3])
    lines = markdown(results, rows, ROWS).splitlines()
    assert lines[3].endswith("| +10.0 | 10.4 | 21.8 | 39.0 |")
    assert lines[5].endswith("| +30.0 |  |  |  |")
    assert len({line.count("|") for line in lines[:6]}) == 1
    alone = tuple(map(parse_row, ("a=nra", "b=mdl")))
    first, second = statistics({"a": scores(0.1), "b": scores(0.3)}, alone)
    assert np.isnan(first["difference"][0])
    np.testing.assert_allclose(second["difference"][0], 0.2)


def test_the_latex_table_is_a_plain_tabular_with_special_characters_escaped():
    rows = (ROWS[0], parse_row("lower_lr=baseline,optim.lr=1e-4"))
    lines = latex({"baseline": scores(0.2, 0.4), "lower_lr": scores(0.1, 0.2)}, rows).splitlines()
    assert lines[0].startswith(r"% Scores of the last epoch in per cent: mean $\pm$ standard")
    assert lines[1:3] == [rf"\begin{{tabular}}{{l{'r' * len(TITLES)}rr}}", r"\hline"]
    assert lines[3] == rf" & seeds & {' & '.join(TITLES.values())} & mAP $-$ baseline \\"
    assert lines[6].startswith(r"lower\_lr & 2 & 15.0 $\pm$ 7.1 &")
    assert lines[6].endswith(r"& $-$15.0 $\pm$ 7.1 \\")
    assert lines[7:] == [r"\hline", r"\end{tabular}"]


@pytest.mark.long
def test_parallel_rows_make_the_same_runs_as_sequential_rows(ablation_file, tmp_path, monkeypatch, capsys):
    """Train two rows in two processes. A later ablation without --jobs finds their runs complete."""
    tests = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), tests]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # These options do not change the compiled programs, which other tests have compiled already.
    rows = (ROWS[0], parse_row("dim=nra,degradation.light=0.1,0.5"))
    results, _ = run_ablation(ablation_file, rows, 1, tmp_path / "w", {"train.log_every": 2}, shares=[{}, {}])
    output = capsys.readouterr().out
    assert "2/2: dim-seed0\n" in output
    assert "dim-seed0: epoch 1: mAP" in output
    saved = json.loads((tmp_path / "w/dim-seed0/config.json").read_text())
    assert (saved["degradation"]["light"], saved["train"]["log_every"]) == ([0.1, 0.5], 2)
    assert saved["model"]["norm_ratio"]
    table = (tmp_path / "w/ablation.md").read_text()
    assert table == markdown(results, rows)
    assert (tmp_path / "w/ablation.tex").read_text() == latex(results, rows)

    def train(config, folder, preempted_status):
        start = check_run(config, folder)
        assert start.done == start.records.plans["real"].steps(config.train.epochs)
        return results[folder.name.removesuffix("-seed0")][0]

    monkeypatch.setattr(ablation, "train", train)
    assert run_ablation(ablation_file, rows, 1, tmp_path / "w", {"train.log_every": 2})[0] == results


@pytest.mark.parametrize(("model_parallel", "message"), [
    (2, "the trainings would start"), (4, "train.model_parallel 4 does not divide 2 devices; lower it"),
])  # fmt: skip
def test_parallel_rows_are_checked_with_the_gpus_of_each_process(ablation_file, tmp_path, model_parallel, message):
    arguments = ["--table=none", "--row=a=nra", "--jobs=2", f"--config.train.model_parallel={model_parallel}"]
    code = f"""
import sys
from nrsrd_jax import ablation
from nrsrd_jax.errors import InputError
def run_jobs(*_):
    raise InputError("the trainings would start")
ablation.device_shares = lambda count: [{{"CUDA_VISIBLE_DEVICES": gpus}} for gpus in ("0,1", "2,3")]
ablation.run_jobs = run_jobs
sys.argv = ["ablation", "--config", {ablation_file!r}, "--workdir", {str(tmp_path / "w")!r}, *{arguments!r}]
ablation.command()
"""
    assert message in run("-c", code, status=2).stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["configs/demo.py:nra"], "leave out the variant, because each row has its own"),
    (["configs/teacher.py"], "has no variants"),
    (["configs/demo.py", "--seeds=0"], "seeds"),
    (["configs/demo.py", "--table=none", "--row=a=nra,optim.rate=1"], "row a: optim.rate is not an option"),
    (["configs/demo.py", "--table=1", "--only=bot, agw,best"], "--only: there is no row best; the rows are ide, pcb, "),
])  # fmt: skip
def test_a_wrong_command_ends_with_a_one_line_message(tmp_path, arguments, message):
    done = run("-m", "nrsrd_jax.ablation", "--config", *arguments, "--workdir", tmp_path / "w", status=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_costs_of_a_model_are_listed(finished):
    """The model is a ViT of one block on 32×16 pixels, from random weights."""
    backbone, start, parameters, operations, minutes = ablation_tables.costs.costs(finished)
    assert (backbone, start, parameters) == ("vit_tiny", "random", "0.6")
    assert 0 < float(operations) < 0.1
    assert float(minutes) >= 0


@pytest.mark.parametrize("name", ["ide", "pcb", "bot", "agw", "transreid", "idf"])
def test_each_config_of_a_method_is_valid(name):
    config = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
    options = read_options(config)
    check_model(options)
    # The shortest official training, that of IDE and PCB, has 60 epochs.
    assert options.train.epochs >= 60
