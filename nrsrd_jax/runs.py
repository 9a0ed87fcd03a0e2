"""Find the checkpoints and scores in the work directory of a run, and lock it for one process."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, Missing, printable
from .files import absolute, locked_open, read_bounded
from .locks import try_lock
from .metrics_log import is_number, read_metrics

LOCK = ".lock"
FOLDER = "checkpoints"


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Create the folder, and lock it until the end of the block or of the process.

    Raises:
        InputError: the folder cannot be created, its lock is a symbolic link, or another process holds the lock. The
            message names that process.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = locked_open(workdir / LOCK)
    except OSError as error:
        raise InputError(f"cannot create the work directory {workdir}: {error.strerror}") from error
    with file:
        try:
            try_lock(file, workdir, "run only one training in it at a time")
        except BlockingIOError as error:
            owner = printable(os.pread(file.fileno(), 200, 0).decode(errors="replace").strip()) or "another process"
            raise InputError(f"{workdir} is in use by {owner}; wait for it, or choose another --workdir") from error
        # If the disk is full, hold the lock without writing the name of its owner.
        with contextlib.suppress(OSError):
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def saved_steps(workdir: Path) -> list[int]:
    """Return the steps of a run's complete checkpoints, in ascending order."""
    # Orbax gives a folder its step as a name when it is complete; damaged folders are renamed. Step 0 is never saved.
    return sorted(int(path.name) for path in (workdir / FOLDER).glob("*") if re.fullmatch("[1-9][0-9]*", path.name))


def saved_score(workdir: Path, step: int) -> float | None:
    """Return the mAP that was saved with a checkpoint; None if it was not evaluated, or the score is unreadable."""
    path = workdir / FOLDER / str(step) / "metrics" / "metrics"
    try:
        score = json.loads(read_bounded(path, 2**16))["mAP"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(score) if is_number(score) else None


def known_score(workdir: Path, step: int) -> float | None:
    """Return the mAP that training measured for a checkpoint; None if it was not evaluated.

    If the evaluation failed at first and succeeded in a rerun, only the log has the score.
    """
    saved = saved_score(workdir, step)
    if saved is not None:
        return saved
    logged = [row["mAP"] for row in read_metrics(workdir) if "mAP" in row and row["step"] == step]
    return logged[-1] if logged else None


def run_of(checkpoint: Path) -> Path | None:
    """Return the work directory of the run that a checkpoint belongs to; None if it does not belong to a run."""
    home = checkpoint.parents[1] if checkpoint.parent.name == FOLDER else checkpoint
    return home if (home / "config.json").is_file() else None


def newest_run(runs: Path = Path("runs")) -> Path:
    """Return the work directory under `runs` with the newest checkpoint. InputError if none has a checkpoint."""
    # The runs of an ablation lie one folder deeper.
    homes = [path.parent for depth in ("*", "*/*") for path in runs.glob(f"{depth}/{FOLDER}")]
    found = [home for home in homes if saved_steps(home)]
    if not found:
        raise InputError(f"no run under {runs}/ has a checkpoint; train a model, or give --checkpoint")
    return max(found, key=lambda home: (home / FOLDER).stat().st_mtime)


def find_checkpoint(directory: str | Path) -> Path:
    """Return `directory` if it is a checkpoint, otherwise the best checkpoint of the run in it.

    The best has the highest mAP. If no checkpoint was evaluated, it is the last one.

    Raises:
        Missing: the directory does not exist, or holds no checkpoint.
        InputError: it is a file.
    """
    directory = absolute(directory)
    if (directory / "model").is_dir():
        return directory
    if directory.is_file():
        raise InputError(f"{directory} is a file; to import a PyTorch file: nrsrd convert {directory}")
    if not directory.exists():
        raise Missing(f"{directory} does not exist; give a checkpoint, or the work directory of a run")
    steps = saved_steps(directory)
    if not steps and (directory / "config.json").is_file():
        raise Missing(f"{directory} is a run without a checkpoint yet; the same nrsrd train command continues it")
    if not steps:
        raise Missing(f"{directory} holds no checkpoint: it is neither a checkpoint nor the work directory of a run")

    # A checkpoint without a score ranks below all others; among equal scores the later checkpoint ranks higher.
    def score(step: int) -> tuple[float, int]:
        known = known_score(directory, step)
        return -1.0 if known is None else known, step

    return directory / FOLDER / str(max(steps, key=score))
