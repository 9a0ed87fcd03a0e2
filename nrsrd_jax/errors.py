"""Define exceptions that commands print as one line, and print messages with untrusted text escaped."""

import sys


class InputError(ValueError):
    """Report a mistake of the user. The message says what is wrong, where, and what to do.

    Commands print it without a traceback. Any other exception is a bug in this package.
    """


class Missing(InputError):
    """Report data, weights or a teacher that do not exist where the options say."""


class Stopped(BaseException):
    """Report that a run received SIGTERM and has saved its state. The message says how to continue.

    Like KeyboardInterrupt, this is not an Exception, so that `except Exception` does not catch it.

    Attributes:
        status: the exit status of the command. A scheduler starts a preempted run again only if it sees a failure;
            143 is what the shell reports for a process that SIGTERM ended.
    """

    def __init__(self, message: str, status: int = 143):
        super().__init__(message)
        self.status = status


def printable(text: object, limit: int = 0) -> str:
    """Return text that is safe to print as one line: escape control characters and line breaks.

    Args:
        text: any object, of which `str` is printed.
        limit: the largest number of characters to keep; 0 for all. A cut text ends in "…".

    Returns:
        The escaped text.
    """
    whole = str(text)
    cut = whole[:limit] + "…" if limit and len(whole) > limit else whole
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def say(*lines: object, error: bool = False) -> None:
    """Print each argument as exactly one line, escaped by `printable`, to stdout, or to stderr with `error`.

    Every message of this package is printed here, so that a file name with a line break or an escape sequence can
    neither forge a line nor control the terminal.
    """
    stream = sys.stderr if error else sys.stdout
    stream.write("".join(printable(line) + "\n" for line in lines))
    stream.flush()


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun: counted(1, "query", "queries") is "1 query". The default plural adds an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
