"""Experiment trackers of a training run: TensorBoard, Weights & Biases and MLflow.

WORKDIR/metrics.jsonl has every number, and nothing is read back from a tracker. So a tracker that fails while a run
trains is left out after a warning.
"""

import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .errors import InputError, printable, say
from .files import read_bounded, write_whole

AUTO = "auto"
# This file in the work directory has the ids by which a resumed run finds its runs in the trackers.
IDS = "trackers.json"
# Each tracker's module. The extra of this package that installs it has the tracker's name.
MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """A tracker's side of one training run.

    Attributes:
        id: finds the same run again; "" for a tracker that needs no id.
    """

    id: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record finite numbers by name, such as {"train/loss": 1.5}, after `step` steps."""
        ...

    def close(self, status: str) -> None:
        """Send what is left. `status` is FINISHED, KILLED (a signal stopped the run) or FAILED."""
        ...


class TensorBoard:
    """Event files in WORKDIR/tensorboard. A resumed run hides the later steps of the run before."""

    id = ""

    def __init__(self, workdir: Path, start: int):
        self._board = _load("tensorboard").SummaryWriter(
            str(_own_folder(workdir / "tensorboard")), purge_step=start + 1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self, status: str) -> None:
        self._board.close()


class WandB:
    """A run of Weights & Biases, of the project WANDB_PROJECT or nrsrd-jax, with files in WORKDIR/wandb.

    A resumed run continues the same run. It sends the steps since the last checkpoint again, which W&B ignores.
    """

    def __init__(self, workdir: Path, options: Mapping[str, Any], known: str):
        _own_folder(workdir / "wandb")
        self._run = _load("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "nrsrd-jax"),
            name=workdir.name,
            dir=str(workdir),
            config=dict(options),
            id=known or None,
            resume="allow" if known else None,
        )
        self.id = self._run.id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, status: str) -> None:
        self._run.finish(exit_code=int(status != "FINISHED"))


class MLflow:
    """A run of MLflow, in the store and experiment that MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name.

    A resumed run continues the same run. It writes the steps since the last checkpoint again: MLflow keeps both.
    """

    def __init__(self, workdir: Path, options: Mapping[str, Any], known: str):
        self._mlflow = _load("mlflow")
        run = self._mlflow.start_run(run_id=known or None, run_name=None if known else workdir.name)
        self.id = run.info.run_id
        if not known:
            # MLflow's parameters cannot change, so a resumed run does not send them again.
            self._mlflow.log_params({name: value for name, value in options.items() if value not in (None, "")})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, status: str) -> None:
        self._mlflow.end_run(status)


def chosen(loggers: str) -> list[str]:
    """Return the trackers that train.loggers names.

    Args:
        loggers: names of MODULES with commas between them; "" for none; "auto" for TensorBoard if it is installed.

    Raises:
        InputError: a name is unknown or given twice.
    """
    if loggers == AUTO:
        return ["tensorboard"] if importlib.util.find_spec("tensorboardX") else []
    names = [name.strip() for name in loggers.split(",")] if loggers else []
    if set(names) - MODULES.keys() or len(set(names)) < len(names):
        known = ", ".join(MODULES)
        raise InputError(f"train.loggers is {loggers!r}; choose {AUTO}, or from {known}, separated by commas")
    return names


def check(loggers: str) -> None:
    """Raise InputError if train.loggers names an unknown tracker, or a tracker whose package is not installed."""
    for name in chosen(loggers):
        _load(name)


class Trackers:
    """The trackers of one training run. A tracker that fails is left out, and the training continues.

    Args:
        loggers: the option train.loggers.
        workdir: the run; its name is the run's name in the trackers.
        start: the steps that are done, 0 for a new run.
        options: all options by name, which the trackers show beside the numbers.

    Raises:
        InputError: a tracker cannot start.
    """

    def __init__(self, loggers: str, workdir: Path, start: int, options: Mapping[str, Any]):
        self._open: dict[str, Tracker] = {}
        # A new run in an old folder must not continue the trackers' old runs.
        known = _read_ids(workdir) if start else {}
        for name in chosen(loggers):
            try:
                match name:
                    case "tensorboard":
                        self._open[name] = TensorBoard(workdir, start)
                    case "wandb":
                        self._open[name] = WandB(workdir, options, known.get(name, ""))
                    case _:
                        self._open[name] = MLflow(workdir, options, known.get(name, ""))
            except Exception as error:  # Each tracker has exceptions of its own.
                self.close("FAILED")
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"cannot start {name}: {printable(error, 200)}; set it up, or leave it out of train.loggers"
                ) from error
        ids = known | {name: tracker.id for name, tracker in self._open.items() if tracker.id}
        if ids:
            write_whole(workdir / IDS, json.dumps(ids) + "\n")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send finite numbers by name to each tracker."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.write(step, values)
            except Exception as error:  # A server that is away must not end a training.
                del self._open[name]
                _warn(name, error)

    def close(self, status: str) -> None:
        """Close each tracker; `status` is FINISHED, KILLED or FAILED."""
        for name, tracker in self._open.items():
            try:
                tracker.close(status)
            except Exception as error:  # Everything is in metrics.jsonl.
                _warn(name, error)
        self._open = {}


def _warn(name: str, error: Exception) -> None:
    text = printable(error, 200)
    say(f"warning: {name} failed ({text}); the run continues without it, metrics.jsonl has every number", error=True)


def _load(name: str) -> Any:
    """Return a tracker's module. InputError if it is not installed."""
    try:
        # A tracker is imported only if it is chosen, because it is optional and slow to import.
        return importlib.import_module(MODULES[name])
    except ImportError as missing:
        raise InputError(
            f"train.loggers names {name}, which needs a package: pip install 'nrsrd-jax[{name}]'"
        ) from missing


def _own_folder(folder: Path) -> Path:
    """Return a tracker's folder in the work directory. InputError if it is a symbolic link."""
    if folder.is_symlink():
        raise InputError(f"cannot write in {folder}: it is a symbolic link; remove it")
    return folder


def _read_ids(workdir: Path) -> dict[str, str]:
    """Return what IDS of a work directory holds; {} if it is missing or unreadable."""
    try:
        ids = json.loads(read_bounded(workdir / IDS, 2**16))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: each for name, each in ids.items() if isinstance(each, str)} if isinstance(ids, dict) else {}
