"""The one error that people see as a single line."""


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, where, and what to do.

    `train.py` and `eval.py` print it without a traceback; any other exception is a fault of the program.
    """
