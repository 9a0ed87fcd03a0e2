"""A run's folder belongs to one process at a time, and a run ends in order when it is told to."""

import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

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
        except OSError as error:  # a file system without locks
            print(
                f"warning: {workdir} cannot be locked ({error.strerror}): train in it once at a time", file=sys.stderr
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def told_to_end() -> Iterator[Callable[[int], bool]]:
    """A function of the steps done: whether to end after them, since SIGTERM came, as a cluster sends it beforehand.

    Several processes agree on the step. Outside the main thread it is never time: whoever runs that ends it.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    signals: list[int] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    except ValueError:
        yield lambda _: False
        return
    try:
        yield lambda _: bool(signals)
    finally:
        signal.signal(signal.SIGTERM, previous)
