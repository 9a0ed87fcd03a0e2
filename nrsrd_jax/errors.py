"""Exceptions that commands print as one line, and the one way to print: foreign text is escaped."""

import sys


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, where, and what to do.

    Commands print it without a traceback. Any other exception is a fault of the program.
    """


class Stopped(BaseException):
    """The run was told to stop (SIGTERM) and has saved its state. The message says how to continue.

    Like KeyboardInterrupt it is not an Exception, because it may be raised anywhere.

    Attributes:
        status: the exit status of the command. A scheduler must see a preempted run as a failure, or it does not
            start the run again: 143 is what the shell reports for a process that SIGTERM ended.
    """

    def __init__(self, message: str, status: int = 143):
        super().__init__(message)
        self.status = status


def printable(text: object, limit: int = 0) -> str:
    """Return text from a file, safe for one line of a terminal: control characters and line breaks are escaped.

    Args:
        text: any object; its `str` is taken.
        limit: the most characters to keep, 0 for all of them. A cut text ends in "…".
    """
    whole = str(text)
    cut = whole[:limit] + "…" if limit and len(whole) > limit else whole
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def say(*lines: object, error: bool = False) -> None:
    """Print each argument as exactly one line, escaped by `printable`, to stdout or with `error` to stderr.

    Every message goes through here. A file name with a line break or an escape sequence can then neither forge a
    line nor control the terminal.
    """
    stream = sys.stderr if error else sys.stdout
    stream.write("".join(printable(line) + "\n" for line in lines))
    stream.flush()


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun: counted(1, "query", "queries") is "1 query"; without `several` an s is added."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
