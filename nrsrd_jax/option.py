"""One option: its description, and the check of its value. options.py lists all of them."""

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
        default: its value unless it is set. None means that the value follows from another option.
        text: what it does, in a sentence.
        unit: the unit of a number.
        low, high: the smallest and the largest valid number; `high` and `below` need `low`.
        below: numbers from this one on are invalid.
        positive: only numbers above 0 are valid.
        choices: the valid texts.
        resumable: whether it may change when a run is resumed, because it changes results by rounding only.
    """
    known = {"text": text, "unit": unit, "low": low, "high": high, "below": below, "positive": positive}
    return dataclasses.field(default=default, metadata=known | {"choices": choices, "resumable": resumable})


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


# The types of options: in words, and the test of a value. ml_collections lets None and numbers of any size through.
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
    """The description of an option, as `option` takes it. `kind` is a key of TYPES, `name` is like "train.epochs"."""

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
        """Return the condition on a value, such as "must be positive"; "" for an option without a range."""
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
        """Raise InputError unless a value is of the option's type and in its range."""
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
    """Yield the options of a dataclass and of the dataclasses in it."""
    types_of = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        kind = types_of[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from listed(kind, f"{prefix}{field.name}.")
        else:
            if isinstance(kind, types.UnionType):  # float | None
                kind = typing.get_args(kind)[0]
            yield Option(prefix + field.name, kind, field.default, **field.metadata)
