"""Identities and cameras as people write them, in file names and lists -> numbers."""

import re
import unicodedata
from collections.abc import Sequence

JUNK = -1  # Market-1501's identity of detections that count neither for nor against
UNKNOWN = {
    *("", "unknown", "nan", "none", "null", "n/a", "<na>", "#n/a"),
    *("undefined", "unidentified", "unlabeled", "unlabelled"),
}
# A field of its own: no letter or digit stands beside it. A UUID holds such fields by chance.
CAMERA_FIELD = re.compile(r"(?<![^\W_])c(?:am)?(\d{1,9})(?![^\W_])", re.IGNORECASE)
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def is_unknown(name: str) -> bool:
    """Return whether a name stands for nobody: empty, "?", "unknown", "NaN", "none", in any case, or "NA"."""
    # Only in capitals: Na is a name.
    return name.strip(" ?._-").casefold() in UNKNOWN or name.strip() == "NA"


def as_numbers(names: Sequence[str]) -> list[int]:
    """Return names as numbers: their values if all are whole numbers, otherwise the rank of each among them.

    "1", "001" and "1.0" are one number, and so are a name's composed and decomposed accents. -1 stays JUNK.
    """
    keys = [_key(name) for name in names]
    if all(isinstance(key, int) for key in keys):
        return [int(key) for key in keys]
    spelling: dict[int | str, str] = {}
    for key, name in zip(keys, names, strict=True):
        spelling[key] = min(name, spelling.get(key, name))
    people = sorted((key for key in spelling if key != JUNK), key=lambda key: spelling[key])
    ranks = {key: rank for rank, key in enumerate(people)} | {JUNK: JUNK}
    return [ranks[key] for key in keys]


def _key(name: str) -> int | str:
    whole = re.fullmatch(r"([+-]?\d{1,18})(?:[.,]0*)?", name.strip())
    return int(whole[1]) if whole else unicodedata.normalize("NFC", name.strip())


def camera_fields(stem: str) -> set[int]:
    """Return the cameras that stand in a file name's stem as a field of its own, c3 or cam03."""
    return {int(digits) for digits in CAMERA_FIELD.findall(UUID.sub("", stem))}
