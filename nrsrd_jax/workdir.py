"""A run's folder belongs to one process at a time, and a run ends in order when it is told to."""

import contextlib
import fcntl
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

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
    """Within `with`, SIGTERM, which a cluster sends before it takes a machine away, and Ctrl-C end the run in order.

    Before the first step there is nothing to save: they raise Stopped and KeyboardInterrupt at once, as a second Ctrl-C
    does. `told()`, asked after each step, says whether one came; several processes agree on the step, and there JAX
    takes SIGTERM. Outside the main thread it is as if they never came: whoever runs that ends it.
    """

    def __init__(self):
        self._steps = 0  # of this process, not of the run
        self._came: int | None = None

    def __enter__(self) -> "Termination":
        self._previous: dict[int, Any] = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, error: type | None, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._came and not error:  # too late for this run; what holds more of them ends all the same
            outer = getattr(self._previous[self._came], "__self__", None)
            if isinstance(outer, Termination):
                outer._handle(self._came)

    def _handle(self, number: int, _: object = None) -> None:
        if number == signal.SIGINT and (self._came or not self._steps):
            raise KeyboardInterrupt
        self._came = self._came or number
        if not self._steps:
            self.end("stopped before it took a step; the same command goes on from there")
        if number == signal.SIGINT:
            with contextlib.suppress(OSError):  # print may be what it came in the middle of
                os.write(2, b"\nsaving after the next logged step, then ending; Ctrl-C again ends at once\n")
            for output in (1, 2):  # Ctrl-C reaches `| tee` too, which then no longer reads: no reason not to save
                with contextlib.suppress(OSError):
                    if stat.S_ISFIFO(os.fstat(output).st_mode):
                        os.dup2(os.open(os.devnull, os.O_WRONLY), output)

    def told(self) -> bool:
        """Whether to end after this step."""
        self._steps += 1  # JAX agrees on the one after the last that a process has asked about, or on the first
        return bool(self._came) or (
            jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._steps)
        )

    def end(self, message: str) -> NoReturn:
        """KeyboardInterrupt if it was told by Ctrl-C, else Stopped."""
        raise KeyboardInterrupt if self._came == signal.SIGINT else Stopped(message)
