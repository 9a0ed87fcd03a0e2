"""Handle signals, so that a run that is asked to stop saves its state first."""

import contextlib
import os
import signal
import stat
import threading
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from .errors import Stopped


class Termination:
    """Handle SIGTERM (from a cluster), SIGHUP (the terminal was closed) and Ctrl-C within a `with` block.

    Call `told()` after each step: it returns whether a signal came. Before the first step there is nothing to save, so
    SIGTERM immediately raises Stopped, and Ctrl-C raises KeyboardInterrupt. After that, only a second Ctrl-C stops the
    run immediately. With several processes, JAX handles SIGTERM, and all processes stop after the same step. Outside
    the main thread, signals are not handled, and the caller decides when to stop.

    Args:
        status: the exit status that `Stopped` carries.
    """

    def __init__(self, status: int = 143):
        self._status = status
        self._steps = 0  # steps of this process; a resumed run has done more
        self._came: int | None = None

    def __enter__(self) -> "Termination":
        self._previous: dict[int, Any] = {}
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            heard = [
                n for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN
            ]
            self._previous = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, error: type | None, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        # The signal came after the last step, so this run is complete; an enclosing Termination must still stop.
        if self._came and not error:
            outer = getattr(self._previous[self._came], "__self__", None)
            if isinstance(outer, Termination):
                outer._handle(self._came)

    def _handle(self, number: int, _: object = None) -> None:
        if number == signal.SIGINT and (self._came or not self._steps):
            # Python swallows an exception inside a callback of the garbage collector, of which JAX has one. The run
            # then stops after its first step.
            self._came = number
            raise KeyboardInterrupt
        self._came = self._came or number
        if not self._steps:
            self.end("stopped before the first step; the same command continues from there")
        hint = b"; Ctrl-C again ends at once" if number == signal.SIGINT else b""
        # Use `os.write`, because the signal may have interrupted a print.
        with contextlib.suppress(OSError):
            os.write(2, b"\nsaving after the next logged step (train.log_every), then stopping" + hint + b"\n")
        if number in (signal.SIGINT, signal.SIGHUP):
            # Ctrl-C also ends `| tee`, and after SIGHUP the terminal is gone. The run must save although nobody reads
            # its output, so send the output to /dev/null.
            for output in (1, 2):
                with contextlib.suppress(OSError):
                    if number == signal.SIGHUP or stat.S_ISFIFO(os.fstat(output).st_mode):
                        os.dup2(os.open(os.devnull, os.O_WRONLY), output)

    def told(self) -> bool:
        """Return whether to stop after this step."""
        # JAX picks the step after the latest one that any process has queried.
        self._steps += 1
        return bool(self._came) or (
            jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._steps)
        )

    def end(self, message: str) -> NoReturn:
        """Raise KeyboardInterrupt after Ctrl-C, otherwise Stopped."""
        raise KeyboardInterrupt if self._came == signal.SIGINT else Stopped(message, self._status)
