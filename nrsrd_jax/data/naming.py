"""Identities and cameras as people write them, in file names and lists -> numbers."""

import re
import unicodedata
from collections.abc import Sequence

from ..errors import InputError
from .lists import quoted

JUNK = -1  # Market-1501's identity of detections that count neither for nor against
UNKNOWN = {
    *("", "unknown", "nan", "none", "null", "n/a", "<na>", "#n/a"),
    *("undefined", "unidentified", "unlabeled", "unlabelled"),
}
NO_CAMERA, UNCLEAR = -1, -2
# In the official layouts an underscore ends a camera: with "-2" or ".5" behind it, it is half a camera.
WHOLE = r"(?![^\W_]|[-.,+&]\d)"
# Elsewhere a field of its own has no letter or digit beside it; "-" and "." separate fields too.
CAMERA_FIELD = re.compile(r"(?<![^\W_])c(?:am)?(\d{1,9})(?![^\W_])", re.IGNORECASE)
# UUIDs and MAC addresses hold such fields by chance.
ADDRESS = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?<![^\W_])(?:[0-9a-f]{2}(?:[-:][0-9a-f]{2}){5}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2})(?![^\W_])",
    re.IGNORECASE,
)
# Spreadsheets keep leading zeros of '001 and ="001".
MARKED_AS_TEXT = re.compile(r"=\"(.*)\"|'([+-]?\d[^']*)'?")
# Without the sign, 1e3 may be a name.
ROUNDED = re.compile(r"[+-]?\d+(?:[.,]\d*E[+-]?|E\+)\d+", re.IGNORECASE)


def plain(name: str) -> str:
    """Return a name as it shows: without invisible characters, any space as " ", without a spreadsheet's text mark."""
    kinds = ((c, unicodedata.category(c)) for c in name)
    shown = "".join(" " if kind == "Zs" else c for c, kind in kinds if kind != "Cf").strip()
    marked = MARKED_AS_TEXT.fullmatch(shown)
    return (marked[1] or marked[2] or "").strip() if marked else shown


def doubt(name: str, what: str = "name") -> str:
    """Return why a name may be another number than the one it shows, "" if there is no doubt."""
    if ROUNDED.fullmatch(plain(name)):
        return f"a spreadsheet has rounded the {what} {quoted(name)}: save the column as text"
    if re.fullmatch(r"[+-]?\d+[.,]000", plain(name)):
        return f"the {what} {quoted(name)} may be in ones or in thousands: write it without a point or comma"
    return ""


def is_unknown(name: str) -> bool:
    """Return whether a name stands for nobody: empty, "?", "unknown", "NaN", "none", in any case, or "NA"."""
    # Only in capitals: Na is a name.
    return plain(name).strip(" ?._-").casefold() in UNKNOWN or plain(name) == "NA"


def manifest_label(where: str, pid: str, camera: str, with_cameras: bool) -> tuple[str, str]:
    """Return the identity and camera of a manifest's row as they show; the camera is "0" if the rows have none.

    InputError, which begins with `where`, for a name in `doubt`, or for a row without a camera where others have one.
    """
    pid, camera = plain(pid), plain(camera)
    if with_cameras and (is_unknown(camera) or camera.startswith("-")):
        raise InputError(
            f"{where}: {quoted(camera)} is not a camera, other rows have one: give one in every row, or leave the "
            "column out"
        )
    if reason := doubt(pid, "pid") or doubt(camera, "camera"):
        raise InputError(f"{where}: {reason}")
    return pid, camera if with_cameras else "0"


def as_numbers(names: Sequence[str]) -> list[int]:
    """Return names as numbers: their values if all are whole numbers, otherwise the rank of each among them.

    "1", "001" and "1.0" are one number, and so are a name's composed and decomposed accents. -1 stays JUNK.
    InputError for a name in `doubt`.
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
    if reason := doubt(name):
        raise InputError(reason)
    whole = re.fullmatch(r"([+-]?\d{1,1000})(?:[.,]0*)?", plain(name))
    if not whole:
        return unicodedata.normalize("NFC", plain(name))
    number = int(whole[1])
    # Larger numbers do not fit the arrays: they are ranked, as names are.
    return number if abs(number) < 10**18 else str(number)


def camera_in(stem: str) -> int:
    """Return the camera in a file name's stem, a field of its own as c3 or cam03.

    NO_CAMERA if there is none, UNCLEAR if there are several different ones.
    """
    cameras = {int(digits) for digits in CAMERA_FIELD.findall(ADDRESS.sub("", stem))}
    if not cameras:
        return NO_CAMERA
    return cameras.pop() if len(cameras) == 1 else UNCLEAR
