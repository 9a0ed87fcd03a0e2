"""Read text lists as any editor or spreadsheet saves them: manifests, MSMT17's lists and data.exclude."""

import csv
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, printable
from ..files import read_bounded

MAX_BYTES = 2**28  # of a list; two million long paths fit
MAX_LINE = 10_000  # characters; a path has at most 4,096 bytes
SHOWN = 80  # characters of the user's text in a message
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def read_lines(file: Path, any_bytes: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of a text file in UTF-8 or UTF-16, with or without a byte order mark.

    Lines end in LF, CR LF or CR, which is removed. Unicode's other line breaks stay, because file names may contain
    them.

    Args:
        file: the list.
        any_bytes: whether to accept bytes that are not UTF-8, which file names may contain. They are decoded as
            os.fsdecode does.

    Raises:
        InputError: the file cannot be read, is not a regular file or not text, is larger than MAX_BYTES, or has a
            line longer than MAX_LINE.
    """
    try:
        content = read_bounded(file, MAX_BYTES)
    except OSError as error:
        raise InputError(f"cannot read the list {file}: {error.strerror}") from error
    encoding = _encoding(content)
    try:
        text = content.decode(encoding, "surrogateescape" if any_bytes and encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            number = content.count(b"\n", 0, error.start) + 1
            raise InputError(
                f"{file}, line {number} is not UTF-8; the file is probably saved as Latin-1 (or in another code page): "
                "save it as UTF-8"
            ) from error
        raise InputError(f"{file} is damaged {encoding.upper()} text: save it as UTF-8") from error
    # Unlike str.splitlines, newline=None splits at LF, CR LF and CR only.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        line = line.removesuffix("\n")
        if len(line) > MAX_LINE:
            raise InputError(f"{file}, line {number} has more than {MAX_LINE} characters ({quoted(line)})")
        if "\0" in line:
            raise InputError(f"{file}, line {number} holds a NUL character ({quoted(line)}): save the list as UTF-8")
        yield number, line


def _encoding(content: bytes) -> str:
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return encoding
    # Detect UTF-16 without a byte order mark: every second byte of Latin text is zero.
    head = content[:1000]
    if head.count(0) > len(head) / 4:
        return "utf-16-be" if head[::2].count(0) > head[1::2].count(0) else "utf-16-le"
    return "utf-8"


def read_table(file: Path, required: Sequence[str], optional: Sequence[str] | None) -> list[tuple[int, dict[str, str]]]:
    """Read a table whose cells are separated by commas, semicolons or tabs.

    The first line that is not blank names the columns, in upper or lower case. Excel's line "sep=;" may precede it.
    Blank rows are left out. Spaces around a cell are removed. A cell that is missing at the end of a row is "".

    Args:
        file: the table.
        required: columns that must exist.
        optional: columns that may exist. Other columns are left out. None keeps all columns.

    Returns:
        (line number, {column: cell}) of each row.

    Raises:
        InputError: `read_lines` cannot read the file, a required column is missing, a column occurs twice, or a row
            has more cells than the first line.
    """
    lines = read_lines(file)
    takes = f"it takes the columns {','.join((*required, *(optional or ())))}"
    filled = ((n, line) for n, line in lines if line.strip(" ,;\t"))
    start, header = next(filled, (0, ""))
    # Excel writes such a line to name the separator. Editors that do not know it add quotes or separators to it.
    said = re.fullmatch(r'"?sep=([,;|:\t])"?[ ,;\t]*', header, re.IGNORECASE)
    if said:
        start, header = next(filled, (0, ""))
    separator = said[1] if said else max(",;\t", key=header.count)
    text = itertools.chain([header], (line for _, line in lines))
    rows = csv.reader((f"{line}\n" for line in text), delimiter=separator, strict=True)
    try:
        names = [cell.strip().casefold() for cell in next(rows)]
        if missing := [name for name in required if name not in names]:
            raise InputError(f"{file} has no column {', '.join(missing)} in its first line {quoted(header)}; {takes}")
        columns = (*required, *optional) if optional is not None else names
        if twice := [name for name in columns if name and names.count(name) > 1]:
            raise InputError(f"{file} has the column {twice[0]} twice; {takes}")
        places = {name: names.index(name) for name in columns if name in names}
        table = []
        for row in rows:
            number = start + rows.line_num - 1
            cells = [cell.strip() for cell in row]
            if any(cells[len(names) :]):
                raise InputError(
                    f"{file}, line {number} has {len(cells)} cells, but its first line has {len(names)}: put a path "
                    f"that contains {separator!r} in double quotes"
                )
            if any(cells):
                table.append((number, {k: cells[i] if i < len(cells) else "" for k, i in places.items()}))
    except csv.Error as error:
        raise InputError(f"cannot read the manifest {file}, line {start + rows.line_num - 1}: {error}") from error
    return table


def path_in(folder: Path, text: str) -> Path:
    """Return the path of a list's entry, which is relative to `folder`.

    A backslash separates folders, as on Windows, unless a file with exactly that name exists.

    Raises:
        InputError: the entry is a path on a Windows drive.
    """
    path = folder / text
    if "\\" not in text or os.path.lexists(path):
        return path
    if re.match(r"[A-Za-z]:\\|\\\\", text):
        raise InputError(f"{quoted(text)} is a path on a Windows drive: write paths relative to the list's folder")
    return folder / text.replace("\\", "/")


def quoted(text: str) -> str:
    """Return the user's text for a message: in quotes, escaped, and cut after SHOWN characters."""
    return f'"{printable(text, SHOWN)}"'
