"""What people see as a single line, an error or an early end, and text of theirs that is safe to show."""


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, where, and what to do.

    Commands print it without a traceback; any other exception is a fault of the program.
    """


class Stopped(BaseException):
    """The run was told to end (SIGTERM) and has saved what it has. The message says how to go on; the status is 0.

    As KeyboardInterrupt, it is no Exception: it may come anywhere.
    """


def printable(text: object, limit: int = 0) -> str:
    """Text from a file, safe for a terminal: what cannot be shown is escaped; `limit` cuts it to so many characters."""
    whole = str(text)
    cut = whole[:limit] + "…" if limit and len(whole) > limit else whole
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in cut)
