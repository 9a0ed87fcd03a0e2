"""Conditions in SQL that select crops of a gallery."""

import datetime
import re
from collections.abc import Sequence

from ..data.crops import parse_time
from ..errors import InputError

PRESENT = "vanished IS NULL"


def in_brackets(where: str) -> str:
    """Put the user's condition in brackets, to combine it with others.

    Raises:
        InputError: the condition's own brackets do not match.
    """
    # Otherwise a condition such as "a) OR (b" would leave its brackets, and `nrsrd forget` would delete crops that
    # other conditions exclude.
    depth = 0
    # Brackets within quoted texts do not count.
    for sign in re.sub(r"'[^']*'", "", where):
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            break
    if depth:
        raise InputError(f"the brackets of the condition {where} do not match; correct it")
    return f"({where})"


def time_condition(option: str, sign: str, text: str) -> str:
    """Return the condition that crops were seen before a time ("<"), or at or after it (">=").

    Args:
        option: the name of the option that gave the time, for the error message.
        sign: "<" or ">=".
        text: the time, as the user wrote it.

    Raises:
        InputError: the text is not a time.
    """
    try:
        return f"time {sign} {timestamp(parse_time(text))}"
    except ValueError as error:
        raise InputError(f"{option}: {error}") from error


def timestamp(time: datetime.datetime) -> str:
    return f"TIMESTAMP '{time:%Y-%m-%d %H:%M:%S.%f}'"


def one_of(column: str, values: Sequence[str]) -> str:
    """Return the condition that a column has one of these texts."""
    return f"{column} IN ({', '.join(map(quote, values))})"


def quote(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"
