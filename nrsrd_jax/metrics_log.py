"""Where training's numbers go: metrics.jsonl, one line each, and TensorBoard."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from .errors import InputError
from .files import write_whole

NAME = "metrics.jsonl"


class MetricsLog:
    """Appends to WORKDIR/metrics.jsonl and to TensorBoard's files in WORKDIR/tensorboard, if `active`.

    What an earlier, killed run wrote after `start` steps is dropped: the resumed run writes it again.
    """

    def __init__(self, workdir: Path, start: int, active: bool = True):
        self._active = active
        if not active:
            return
        path = workdir / NAME
        if path.exists():
            kept = [row for row in read_metrics(workdir) if row["step"] <= start]
            write_whole(path, "".join(f"{json.dumps(row)}\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float], prefix: str = "train/") -> None:
        """Writes {"step": …, name: value, …}; `prefix` groups names in TensorBoard. InputError if the disk is full."""
        if not self._active:
            return
        try:
            print(json.dumps({"step": step} | values), file=self._file, flush=True)
            for name, value in values.items():
                if math.isfinite(value):
                    self._board.add_scalar(prefix + name, value, step)
        except OSError as error:
            raise InputError(
                f"cannot write {self._file.name}: {error.strerror}; make room, then the same command goes on"
            ) from error

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._active:
            with contextlib.suppress(OSError):  # of a full disk `write` has told
                self._file.close()
                self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """What a run logged: per line `step` and finite numbers by name. Lines that are none, as a kill cuts them, are left
    out; no lines if there is no log.
    """
    try:
        lines = (workdir / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append({name: value for name, value in row.items() if _is_number(value)})
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def logged_scores(workdir: Path, epoch: int) -> dict[str, float]:
    """The scores that a run logged after so many epochs; none if it was not evaluated then."""
    found = [row for row in read_metrics(workdir) if "mAP" in row and row.get("epoch") == epoch]
    return {name: value for name, value in found[-1].items() if name not in ("step", "epoch")} if found else {}
