"""A run's folder belongs to one process at a time, and a run ends in order when it is told to."""

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError

LOCK = ".lock"


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Makes the folder, and holds it until the end of the block or of the process.

    InputError if it cannot be made, or if another process holds it, whose number and host are named.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("a+")
    except OSError as error:
        raise InputError(f"cannot make the work directory {workdir}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise InputError(f"{workdir} is in use by {owner}; wait for it, or choose another --workdir") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def told_to_end() -> Iterator[list[int]]:
    """A list that is filled by SIGTERM, which a cluster sends before it takes a machine away; in the main thread."""
    signals: list[int] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    except ValueError:  # not the main thread: whoever runs that ends it
        yield signals
        return
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, previous)
