"""A run's folder belongs to one process at a time, and a run ends in order when it is told to."""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from .errors import InputError, Stopped

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
        with contextlib.suppress(OSError):  # of a full disk: it is held all the same, without a name
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


class Termination:
    """Within `with`, SIGTERM, which a cluster sends before it takes a machine away, ends the run in order.

    Before the first step there is nothing to save: it raises Stopped at once. `told()`, asked after each, says
    whether it came; several processes agree on the step, and there JAX takes the signal. Outside the main thread it is
    as if it never came: whoever runs that ends it.
    """

    def __init__(self):
        self._steps = 0  # of this process, not of the run
        self._came = False

    def __enter__(self) -> "Termination":
        self._previous = None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, *_) -> None:
        self._came = True
        if not self._steps:
            raise Stopped("stopped before it took a step; the same command goes on from there")

    def told(self) -> bool:
        """Whether to end after this step."""
        self._steps += 1  # JAX agrees on the one after the last that a process has asked about, or on the first
        return self._came or (jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._steps))
