"""End a command with one line after Ctrl-C, whatever it is doing."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# Seconds until a swallowed Ctrl-C comes again.
DELAY = 0.05


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Within this block, end the process with one line and status 130 after Ctrl-C, unless the block catches it.

    Ctrl-C raises KeyboardInterrupt, as usual. During an import it ends the process at once: modules in C swallow the
    exception or crash. If Python swallows it elsewhere, it comes again.
    """
    # SIGINT is ignored in a process that a shell script has started in the background.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _come_again
    try:
        yield
    except KeyboardInterrupt:
        _end()


def _interrupt(_: int, frame: FrameType | None) -> None:
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _come_again(report: "sys.UnraisableHookArgs") -> None:
    """Send this process another SIGINT, if Python has swallowed a KeyboardInterrupt.

    Python swallows exceptions in finalizers and in callbacks of the garbage collector, of which JAX has one.
    """
    if not issubclass(report.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(report)
        return
    again = threading.Timer(DELAY, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    again.daemon = True
    again.start()


def _end() -> NoReturn:
    # Use `os.write`, because the signal may have interrupted a print.
    with contextlib.suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    os._exit(130)
