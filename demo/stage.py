"""Run a stage of `make demo`: a Python script whose output goes to runs/demo-NAME.log.

  python demo/stage.py [--show] NAME SCRIPT [ARGUMENT…]

The terminal shows one line with the time and the log of the stage. If the script fails, it also shows the log's end.
The exit status is that of the script. With --show, the script's stdout follows that line.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

from nrsrd_jax.command import Parser, one_line
from nrsrd_jax.errors import say
from nrsrd_jax.files import append_open

# The number of lines of the log that a failure shows.
TAIL = 15


def wait(process: subprocess.Popen, name: str) -> int:
    """Wait for the script of a stage, and return its exit status as a shell reports it.

    Signals are passed on to the script, so that a training saves its state. A terminal shows the seconds meanwhile.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: process.send_signal(received))
    begin = time.monotonic()
    while True:
        try:
            status = process.wait(timeout=1)
            break
        except subprocess.TimeoutExpired:
            if sys.stdout.isatty():
                sys.stdout.write(f"\r{name:<12}{time.monotonic() - begin:>6.0f} s")
                sys.stdout.flush()
    if sys.stdout.isatty():
        sys.stdout.write("\r")
    # A script that a signal ended has the negative number of the signal as its status; a shell reports 128 plus the
    # number.
    return 128 - status if status < 0 else status


def run(name: str, command: list[str], log: TextIO, show: bool) -> int:
    """Run a script with its output in `log`, print the lines of the stage, and return the exit status."""
    start, begin = log.tell(), time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as shown:
        # In a session of its own, the script receives Ctrl-C only once, from this process.
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=shown if show else log,
            stderr=log,
            start_new_session=True,
        )
        status = wait(process, name)
        shown.seek(0)
        output = shown.read()
    log.write(output)
    log.flush()
    say(f"{name:<12}{time.monotonic() - begin:>6.0f} s   log: {log.name}")
    if status:
        with open(log.name, encoding="utf-8", errors="replace") as written:
            written.seek(start)
            say(*written.read().splitlines()[-TAIL:], error=True)
        say(f"error: {name} failed with status {status}; its whole output is in {log.name}", error=True)
    elif show:
        say(*output.splitlines())
    return status


def main() -> None:
    parser = Parser(__doc__, "python demo/stage.py")
    parser.add_argument("--show", action="store_true", help="also print what the script writes to stdout")
    parser.add_argument("name", help="name of the stage")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="script and its arguments")
    options = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    with append_open(Path("runs") / f"demo-{options.name}.log") as log:
        status = run(options.name, options.command, log, options.show)
    sys.exit(status)


if __name__ == "__main__":
    one_line(main)
