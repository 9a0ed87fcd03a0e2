"""Turn identities and cameras, as people write them in file names and lists, into numbers."""

import re
import unicodedata
from collections.abc import Sequence

from ..errors import InputError
from .lists import quoted

# Market-1501 gives this identity to detections that count neither as right nor as wrong.
JUNK = -1
# Names that stand for nobody.
UNKNOWN = {
    *("", "unknown", "nan", "none", "null", "n/a", "<na>", "#n/a"),
    *("undefined", "unidentified", "unlabeled", "unlabelled"),
}
# `camera_in` returns these if a name contains no camera, or several different ones.
NO_CAMERA, UNCLEAR = -1, -2
# In the official layouts, an underscore ends the camera. A letter, a digit, or a part such as "-2" or ".5" behind it
# means that the pattern has matched only half of a camera.
WHOLE = r"(?![^\W_]|[-.,+&]\d)"
# In other layouts, the camera is a separate field: no letter or digit touches it. "-" and "." also separate fields.
CAMERA_FIELD = re.compile(r"(?<![^\W_])c(?:am)?(\d{1,9})(?![^\W_])", re.IGNORECASE)
# UUIDs and MAC addresses contain such fields by chance, so they are removed first.
ADDRESS = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?<![^\W_])(?:[0-9a-f]{2}(?:[-:][0-9a-f]{2}){5}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2})(?![^\W_])",
    re.IGNORECASE,
)
# Spreadsheets write '001 or ="001" to keep leading zeros.
MARKED_AS_TEXT = re.compile(r"=\"(.*)\"|'([+-]?\d[^']*)'?")
# Numbers that a spreadsheet shows in scientific notation. 1e3, without a sign or a decimal point, may be a name.
ROUNDED = re.compile(r"[+-]?\d+(?:[.,]\d*E[+-]?|E\+)\d+", re.IGNORECASE)


def plain(name: str) -> str:
    """Return a name as it looks: no invisible characters, every space as " ", no mark that a spreadsheet adds."""
    kinds = ((c, unicodedata.category(c)) for c in name)
    shown = "".join(" " if kind == "Zs" else c for c, kind in kinds if kind != "Cf").strip()
    marked = MARKED_AS_TEXT.fullmatch(shown)
    return (marked[1] or marked[2] or "").strip() if marked else shown


def doubt(name: str, what: str = "name") -> str:
    """Return why a name may mean another number than it shows; "" if there is no doubt."""
    if ROUNDED.fullmatch(plain(name)):
        return f"a spreadsheet has rounded the {what} {quoted(name)}: save the column as text"
    if re.fullmatch(r"[+-]?\d+[.,]000", plain(name)):
        return f"the {what} {quoted(name)} may be in ones or in thousands: write it without a point or comma"
    return ""


def is_unknown(name: str) -> bool:
    """Return whether a name stands for nobody: empty, "?", "unknown", "NaN", "none", in any case, or "NA"."""
    # "NA" counts in capitals only, because Na is a name.
    return plain(name).strip(" ?._-").casefold() in UNKNOWN or plain(name) == "NA"


def manifest_label(where: str, pid: str, camera: str, with_cameras: bool) -> tuple[str, str]:
    """Return the identity and camera of a manifest's row as `plain` text.

    Args:
        where: the file and line, with which error messages begin.
        pid, camera: the cells of the row.
        with_cameras: whether the rows have cameras; otherwise the camera is "0".

    Raises:
        InputError: the row has no camera but others do, or a name is in `doubt`.
    """
    pid, camera = plain(pid), plain(camera)
    if with_cameras and (is_unknown(camera) or camera.startswith("-")):
        raise InputError(
            f"{where}: {quoted(camera)} is not a camera, but other rows have one: give one in every row, or leave "
            "the column out"
        )
    if reason := doubt(pid, "pid") or doubt(camera, "camera"):
        raise InputError(f"{where}: {reason}")
    return pid, camera if with_cameras else "0"


def as_numbers(names: Sequence[str]) -> list[int]:
    """Return names as numbers: their values if all are whole numbers, otherwise the rank of each sorted name.

    "1", "001" and "1.0" are the same number. Composed and decomposed accents are the same name. "-1" stays JUNK.

    Raises:
        InputError: a name is in `doubt`.
    """
    keys = [_key(name) for name in names]
    if all(isinstance(key, int) for key in keys):
        return [int(key) for key in keys]
    spelling: dict[int | str, str] = {}
    for key, name in zip(keys, names, strict=True):
        # Choose a spelling that does not depend on the order of the rows.
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
    # A larger number does not fit an int64 array. Rank it, like a name.
    return number if abs(number) < 10**18 else str(number)


def camera_in(stem: str) -> int:
    """Return the camera in a file name's stem, which is a separate field such as c3 or cam03.

    Returns NO_CAMERA without such a field, UNCLEAR if several fields differ.
    """
    cameras = {int(digits) for digits in CAMERA_FIELD.findall(ADDRESS.sub("", stem))}
    if not cameras:
        return NO_CAMERA
    return cameras.pop() if len(cameras) == 1 else UNCLEAR
