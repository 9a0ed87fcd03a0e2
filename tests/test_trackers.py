"""Trackers get the numbers of metrics.jsonl, a resumed run continues theirs, and their faults stop no training."""

import json
import sys
import types

import jax
import pytest
from people import small_config

from nrsrd_jax import trackers
from nrsrd_jax.errors import InputError, Stopped
from nrsrd_jax.metrics_log import MetricsLog, read_metrics
from nrsrd_jax.training import train


class FakeWandB(types.ModuleType):
    """Keeps what it is given: `runs` by id, and the arguments of each `init`."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.calls = {}, []

    def init(self, **arguments):
        self.calls.append(arguments)
        number = arguments["id"] or f"run{len(self.calls)}"
        return self.runs.setdefault(number, FakeRun(number))


class FakeRun:
    def __init__(self, number):
        self.id, self.rows, self.statuses = number, [], []

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self, exit_code):
        self.statuses.append(exit_code)


class FakeMLflow(types.ModuleType):
    """Keeps what it is given, as one list of calls."""

    def __init__(self):
        super().__init__("mlflow")
        self.calls = []

    def start_run(self, run_id, run_name):
        self.calls.append(("start", run_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))

    def log_params(self, values):
        self.calls.append(("parameters", values))

    def log_metrics(self, values, step):
        self.calls.append((step, values))

    def end_run(self, status):
        self.calls.append(("end", status))


@pytest.fixture
def fakes(monkeypatch):
    found = FakeWandB(), FakeMLflow()
    for module in found:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


OPTIONS = {"optim.lr": 0.5, "init.checkpoint": "", "loss.margin": None}


def log(workdir, start, loggers, *rows):
    with MetricsLog(workdir, start, loggers, OPTIONS) as opened:
        for step, values in rows:
            opened.write(step, values)


def test_wandb_and_mlflow_get_the_options_and_each_finite_number(tmp_path, fakes):
    wandb, mlflow = fakes
    with MetricsLog(tmp_path, 0, "wandb, mlflow", OPTIONS) as opened:
        opened.write(2, {"loss": 1.5, "margin": float("nan")})
        opened.write(2, {"mAP": 0.5}, prefix="eval/")
    rows = [(2, {"train/loss": 1.5}), (2, {"eval/mAP": 0.5})]
    (run,) = wandb.runs.values()
    assert run.rows == rows
    assert run.statuses == [0]
    assert wandb.calls[0]["name"] == tmp_path.name
    assert wandb.calls[0]["config"] == OPTIONS
    assert mlflow.calls == [
        ("start", None, tmp_path.name),
        ("parameters", {"optim.lr": 0.5}),
        *rows,
        ("end", "FINISHED"),
    ]
    assert [(row["step"], row.get("loss"), row.get("mAP")) for row in read_metrics(tmp_path)] == [
        (2, 1.5, None),
        (2, None, 0.5),
    ]


def test_a_resumed_run_continues_the_runs_of_the_trackers_and_a_new_run_does_not(tmp_path, fakes):
    wandb, mlflow = fakes
    log(tmp_path, 0, "wandb,mlflow", (1, {"loss": 3.0}))
    log(tmp_path, 1, "wandb,mlflow", (2, {"loss": 2.0}))
    assert [step for step, _ in wandb.runs["run1"].rows] == [1, 2]
    assert ("start", "new", None) in mlflow.calls
    assert sum(call[0] == "parameters" for call in mlflow.calls) == 1
    log(tmp_path, 0, "wandb", (1, {"loss": 3.0}))
    assert list(wandb.runs) == ["run1", "run3"]
    # Without a readable id, a resumed run starts a new one in the tracker.
    (tmp_path / trackers.IDS).write_text("[" * 9999)
    log(tmp_path, 1, "wandb", (2, {"loss": 2.0}))
    assert list(wandb.runs) == ["run1", "run3", "run4"]


def test_trackers_are_told_how_a_run_ended(tmp_path, fakes):
    wandb, mlflow = fakes
    for error in (Stopped("saved"), InputError("the disk is full")):
        with pytest.raises(type(error)), MetricsLog(tmp_path, 0, "wandb,mlflow", OPTIONS):
            raise error
    assert [status for call, *status in mlflow.calls if call == "end"] == [["KILLED"], ["FAILED"]]
    # W&B knows only success and failure.
    assert [run.statuses for run in wandb.runs.values()] == [[1], [1]]


def test_a_tracker_that_fails_while_the_run_trains_is_left_out_after_one_warning(tmp_path, fakes, monkeypatch, capsys):
    wandb, mlflow = fakes

    def away(*_, **__):
        raise ConnectionError("the server\nis away")

    monkeypatch.setattr(mlflow, "log_metrics", away)
    log(tmp_path, 0, "mlflow,wandb", (1, {"loss": 3.0}), (2, {"loss": 2.0}))
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(r"warning: mlflow failed (the server\nis away); the run continues without it")
    assert [step for step, _ in wandb.runs["run1"].rows] == [1, 2]
    assert [row["loss"] for row in read_metrics(tmp_path)] == [3.0, 2.0]


def test_a_tracker_that_does_not_start_ends_the_run_and_closes_the_others(tmp_path, fakes, monkeypatch):
    wandb, mlflow = fakes

    def refuse(**_):
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(InputError, match=r"cannot start wandb: no API key; set it up, or leave it out of train\.log"):
        log(tmp_path, 0, "mlflow,wandb")
    assert mlflow.calls[-1] == ("end", "FAILED")


def test_tensorboard_gets_the_numbers_and_hides_what_a_resumed_run_writes_again(tmp_path):
    from tensorboardX.proto import event_pb2

    log(tmp_path, 4, "auto", (5, {"loss": 1.5}))
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = [event_pb2.Event.FromString(record) for record in records(file.read_bytes())]
    assert [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value] == [
        (5, "train/loss", 1.5)
    ]
    # TensorBoard hides what an earlier session wrote from this step on.
    assert [event.step for event in events if event.session_log.status == event_pb2.SessionLog.START] == [5]


def records(data: bytes):
    """Yield the records of a TFRecord file: length (8 bytes), its checksum (4), data, its checksum (4)."""
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_a_tracker_writes_through_no_link_in_the_work_directory(tmp_path, fakes):
    run, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    run.mkdir()
    (run / "wandb").symlink_to(victim)
    with pytest.raises(InputError, match=r"wandb: it is a symbolic link; remove it"):
        log(run, 0, "wandb")
    assert not fakes[0].calls


def test_no_tracker_is_needed(tmp_path, monkeypatch):
    log(tmp_path, 0, "", (1, {"loss": 3.0}))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert trackers.chosen("auto") == []


@pytest.mark.parametrize("loggers", ["neptune", "wandb,wandb", "wandb,", "auto,wandb"])
def test_an_unknown_tracker_ends_the_run_before_anything_is_read(tmp_path, loggers):
    with pytest.raises(InputError, match=r"train\.loggers is '.*'; choose auto, or from tensorboard, wandb, mlflow"):
        train(small_config(tmp_path / "nothing", train__loggers=loggers), tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", trackers.MODULES)
def test_a_tracker_that_is_not_installed_ends_the_run_before_anything_is_read(tmp_path, monkeypatch, name):
    # Python refuses to import a module whose entry is None, as if it were not installed.
    monkeypatch.setitem(sys.modules, trackers.MODULES[name], None)
    with pytest.raises(InputError, match=rf"names {name}, which needs a package: pip install 'nrsrd-jax\[{name}\]'"):
        train(small_config(tmp_path / "nothing", train__loggers=name), tmp_path / "run", jax.devices()[:1])
    assert not (tmp_path / "run").exists()


def test_the_ids_of_the_trackers_are_kept_in_the_run(tmp_path, fakes):
    log(tmp_path, 0, "wandb,mlflow")
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "run1", "mlflow": "new"}


def test_a_number_that_is_not_finite_is_left_out_of_the_log(tmp_path):
    with MetricsLog(tmp_path, 0, "", OPTIONS) as log:
        log.write(1, {"loss": 1.0, "spread": float("nan"), "length": float("inf")})
    # `read_metrics` would leave out NaN and infinity itself, so read the file.
    line = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"))
    assert line["loss"] == 1.0
    assert not {"spread", "length"} & line.keys()
