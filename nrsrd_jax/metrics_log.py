"""Write and read the log of a training run: metrics.jsonl, and the trackers that get the same numbers."""

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .errors import InputError, Stopped
from .files import append_open, read_bounded, write_whole
from .trackers import Trackers

# The scores of an evaluation, as logs and results name them, with their titles in tables.
TITLES = {"mAP": "mAP", "mINP": "mINP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10"}
NAME = "metrics.jsonl"
LOG_BYTES = 2**30
# These entries of a line describe the machine, not the training, so they differ between runs of the same training.
MACHINE = ("time", "images_per_second", "host_peak_gib", "device_peak_gib")


class MetricsLog:
    """Append to WORKDIR/metrics.jsonl and send the same numbers to the trackers, if `active`.

    Lines that an interrupted run wrote after step `start` are removed, because the resumed run writes them again.

    Args:
        workdir: the folder of the run.
        start: the number of steps done.
        loggers: the option train.loggers.
        options: all options by name, for the trackers.
        active: whether to write at all; only one of several processes does.

    Raises:
        InputError: metrics.jsonl or a tracker's folder is a symbolic link, or a tracker cannot start.
    """

    def __init__(self, workdir: Path, start: int, loggers: str, options: Mapping[str, Any], active: bool = True):
        self._active = active
        if not active:
            return
        path = workdir / NAME
        if os.path.lexists(path):
            kept = [row for row in read_metrics(workdir) if row["step"] <= start]
            write_whole(path, "".join(f"{json.dumps(row)}\n" for row in kept))
        with contextlib.ExitStack() as opened:
            self._file = opened.enter_context(append_open(path))
            self._trackers = Trackers(loggers, workdir, start, options)
            # If the trackers cannot start, the file is closed; otherwise it stays open until `__exit__`.
            opened.pop_all()

    def write(self, step: int, values: dict[str, float], prefix: str = "train/") -> None:
        """Write a line {"step": …, name: value, …, "time": …} with the numbers, the time and the peak memory.

        Args:
            step: the number of steps done.
            values: the numbers by name; those that are not finite are left out.
            prefix: the group of the names in trackers.

        Raises:
            InputError: the disk is full.
        """
        if not self._active:
            return
        # JSON has no NaN. A diagnostic may be NaN although the training goes well.
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        try:
            self._file.write(json.dumps({"step": step} | values | machine_figures()) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"cannot write {self._file.name}: {error.strerror}; make room, then the same command continues"
            ) from error
        self._trackers.write(step, {prefix + name: value for name, value in values.items()})

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, error: type | None, *_) -> None:
        if self._active:
            stopped = error is not None and issubclass(error, (Stopped, KeyboardInterrupt))
            self._trackers.close("KILLED" if stopped else "FAILED" if error else "FINISHED")
            # If the disk is full, `write` has reported it already.
            with contextlib.suppress(OSError):
                self._file.close()


def machine_figures() -> dict[str, float]:
    """Return the time and the peak memory: {"time", "host_peak_gib", "device_peak_gib"}.

    `time` is in Unix seconds. `host_peak_gib` is the peak of this process, and `device_peak_gib` that of the fullest of
    its devices. The latter is missing if the devices do not report it.
    """
    # macOS reports bytes, Linux KiB.
    unit = 1 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    figures = {"time": round(time.time(), 1), "host_peak_gib": round(peak / 2**30, 3)}
    told = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    peaks = [bytes_in_use for bytes_in_use in told if bytes_in_use is not None]
    return figures | ({"device_peak_gib": round(max(peaks) / 2**30, 3)} if peaks else {})


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines that a run logged, each with `step` and finite numbers by name; [] without a log.

    Skips lines that are not valid JSON, such as one truncated by a kill.

    Raises:
        InputError: the log is not a regular file, or is larger than LOG_BYTES.
    """
    try:
        lines = read_bounded(workdir / NAME, LOG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append({name: value for name, value in row.items() if is_number(value)})
    return rows


def is_number(value: Any) -> bool:
    # The comparison is false for NaN and infinity. math.isfinite would raise OverflowError for a huge integer.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def logged_scores(workdir: Path, epoch: int) -> dict[str, float]:
    """Return the scores that a run logged after `epoch` epochs; {} if it was not evaluated then."""
    found = [row for row in read_metrics(workdir) if row.get("epoch") == epoch and row.keys() >= TITLES.keys()]
    last = found[-1] if found else {}
    return {name: value for name, value in last.items() if name not in ("step", "epoch", *MACHINE)}


def logged_accuracy(workdir: Path, epoch: int) -> float | None:
    """Return the mean accuracy, in 0..1, on the training batches of a 1-based epoch; None if it was not logged."""
    rows = [row for row in read_metrics(workdir) if row.get("epoch") == epoch]
    found = [row["accuracy_real"] for row in rows if "accuracy_real" in row]
    return float(np.mean(found)) if found else None
