"""Describe one option and check its value. options.py lists all options."""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from .errors import InputError, printable

Default = TypeVar("Default")
Pair = tuple[float, float]


def option(
    default: Default,
    text: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    positive: bool = False,
    choices: tuple[str, ...] = (),
    resumable: bool = False,
) -> Default:
    """Return a dataclass field of an option.

    Args:
        default: the value if the user does not set one. None means that the value follows from another option.
        text: what the option does, in a sentence; `nrsrd train --options` prints it.
        unit: the unit of a number.
        low, high: the smallest and the largest valid number; `high` and `below` need `low`.
        below: the upper limit, which itself is not valid.
        positive: whether a number must be above 0.
        choices: the valid texts.
        resumable: whether a resumed run may change it, because it changes results only by rounding.

    Returns:
        The field. Its declared type is that of `default`, so that type checkers know the option's type.
    """
    known = {"text": text, "unit": unit, "low": low, "high": high, "below": below, "positive": positive}
    return dataclasses.field(default=default, metadata=known | {"choices": choices, "resumable": resumable})


def _is_whole(value: Any) -> bool:
    # Larger numbers would overflow NumPy's int64.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    try:
        # A text may become a path, which ends at NUL and cannot hold a lone surrogate.
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


# Each type of option, with its name in messages and a check of a value. The check is needed because ml_collections
# accepts None and numbers of any size.
TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number of less than 64 bits", _is_whole),
    float: ("a finite number", _is_number),
    str: ("a text that a file name can hold", _is_text),
    Pair: ("two finite numbers", lambda value: isinstance(value, tuple) and [*map(_is_number, value)] == [True] * 2),
    tuple[int, int]: (
        "two whole numbers",
        lambda value: isinstance(value, tuple) and [*map(_is_whole, value)] == [True] * 2,
    ),
    tuple[int, ...]: ("whole numbers", lambda value: isinstance(value, tuple) and all(map(_is_whole, value))),
}


@dataclasses.dataclass(frozen=True)
class Option:
    """The description of an option, with the arguments of `option`.

    `kind` is a key of TYPES; `name` is the full name, such as "train.epochs".
    """

    name: str
    kind: Any
    default: Any
    text: str
    unit: str
    low: float | None
    high: float | None
    below: float | None
    positive: bool
    choices: tuple[str, ...]
    resumable: bool

    @property
    def range(self) -> str:
        """Return the condition on a value, such as "must be positive", or "" if every value of the type is valid."""
        if self.high is not None:
            return f"must lie in {self.low}..{self.high}"
        if self.below is not None:
            return f"must lie in {self.low}..{self.below}, {self.below} excluded"
        if self.positive:
            return "must be positive"
        if self.low is not None:
            return "must not be negative" if self.low == 0 else f"must be at least {self.low}"
        return f"must be one of {', '.join(self.choices)}" if self.choices else ""

    def check(self, value: Any) -> None:
        """Raise InputError if a value is not of the option's type or not in its range."""
        # None is valid only as the default, where it stands for what another option says.
        if (value, self.default) == (None, None):
            return
        shown = f"{self.name} is {printable(repr(value), 100)}"
        words, fits = TYPES[self.kind]
        if not fits(value):
            raise InputError(f"{shown}; it must be {words}")
        if self.choices and value not in self.choices:
            raise InputError(f"{shown}; choose one of {', '.join(self.choices)}")
        inside = (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
            and (not self.positive or value > 0)
        )
        if not inside:
            raise InputError(f"{shown}; it {self.range}")


def listed(group: type, prefix: str = "") -> Iterator[Option]:
    """Yield the options of a dataclass and of the dataclasses nested in it."""
    types_of = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        kind = types_of[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from listed(kind, f"{prefix}{field.name}.")
        else:
            # An optional type, such as float | None: check the type itself.
            if isinstance(kind, types.UnionType):
                kind = typing.get_args(kind)[0]
            yield Option(prefix + field.name, kind, field.default, **field.metadata)


def check_parts(value: Pair, name: str) -> None:
    """Raise InputError if an option's value is not a smallest and a largest part of an image."""
    low, high = value
    if not 0 < low <= high <= 1:
        raise InputError(f"{name} is {low},{high}; give two parts of the image, 0 < low <= high <= 1")
