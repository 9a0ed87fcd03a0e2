"""Files that are written completely or not at all, and never through a link that the user did not name."""

import contextlib
import csv
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO

from .errors import InputError


def expanded(path: str | Path) -> Path:
    """Return the path with ~ replaced by the home folder. InputError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such user's home folder") from error


def absolute(path: str | Path) -> Path:
    """Return the absolute path without "..", which TensorStore refuses. InputError as `expanded`."""
    path = expanded(path).absolute()
    return path.resolve() if ".." in path.parts else path


def writable_folder(folder: str | Path, option: str) -> Path:
    """Return the folder, created if missing. InputError names the option if it is a file or cannot be written in."""
    folder = expanded(folder)
    if folder.is_file():
        raise InputError(f"{option} {folder} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{option}: cannot write in {folder}: {error.strerror}; name another folder") from error
    return folder


def refuse_same_files(files: Collection[Path]) -> None:
    """Raise InputError if two of the files to read or write are the same, perhaps by a link."""
    if len(set(map(os.path.realpath, files))) < len(files):
        raise InputError(f"two files to read or write are the same: {', '.join(map(str, files))}; name others")


def writable_file(path: str | Path, option: str) -> Path:
    """Return a file's path and create its folder. InputError names the option if it is a folder or not writable."""
    path = expanded(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path} is {'a folder' if path.is_dir() else 'no regular file'}; name a file")
    return writable_folder(path.parent, option) / path.name


@contextlib.contextmanager
def readable(image: Path) -> Iterator[None]:
    """Turn an OSError about an image into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read the image {image}: {error.strerror}") from error


@contextlib.contextmanager
def written_whole(path: Path, follow: bool = False) -> Iterator[Path]:
    """Yield a new file beside `path` to write to, which then replaces `path`.

    After a kill or a power cut, `path` holds either the old content or all of the new one.

    Args:
        path: the file to write.
        follow: whether `path` may be a symbolic link, whose target is then replaced. Only for a file that the user
            named with an option: a link found in a folder could replace any of the user's files.

    Raises:
        InputError: `path` is a symbolic link (without `follow`), a folder or a device, or cannot be written.
    """
    try:
        path = path.resolve() if follow else _no_link(path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write {path}: it is a link that leads to itself") from error
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file; name another")
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        yield partial
        _flush(partial)
        os.replace(partial, path)
        with contextlib.suppress(OSError):  # Some network file systems cannot flush a folder.
            _flush(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_whole(path: Path, text: str, follow: bool = False) -> None:
    """Write a text file in UTF-8 as `written_whole` does; characters that UTF-8 lacks are escaped."""
    with written_whole(path, follow) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(
    path: Path, rows: Sequence[Mapping[str, object]], follow: bool = False, columns: Sequence[str] = ()
) -> None:
    """Write rows with the same keys as a CSV file, with a header, as `write_whole` does.

    `columns` are these keys, needed where there may be no rows.

    A text that a spreadsheet would run as a formula (`=…`, `+…`, `-…`, `@…`) gets a `'` in front; numbers stay.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in columns or rows[0]])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    write_whole(path, text.getvalue(), follow)


def _cell(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def locked_open(path: Path) -> TextIO:
    """Open a lock file for reading and writing without changing it; create it if it is missing.

    Raises:
        InputError: it is a symbolic link, has a second name (a hard link), or is not a regular file.
        OSError: it cannot be opened.
    """
    return _open_own(path, "r+")


def append_open(path: Path) -> TextIO:
    """Open a text file in UTF-8 for appending; create it if it is missing. Raises as `locked_open` does."""
    return _open_own(path, "a")


def read_bounded(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes.

    Raises:
        InputError: it is not a regular file, or holds more than `limit` bytes.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path} is not a regular file")
        # Reading with `limit` would allocate that many bytes, also for a small file.
        size = min(about.st_size, limit)
        content = file.read(size + 1)
        if len(content) > size:
            content += file.read(limit - size)
    if len(content) > limit:
        raise InputError(f"{path} has more than {limit} bytes; that is not what belongs there")
    return content


def _no_link(path: Path) -> Path:
    if path.is_symlink():
        raise InputError(f"cannot write {path}: it is a symbolic link; remove it, or name its target yourself")
    return path


def at_once(path: str, flags: int) -> int:
    """Open a file, for `open(…, opener=at_once)`. A plain `open` of a named pipe waits for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open_own(path: Path, mode: Literal["r+", "a"]) -> TextIO:
    _no_link(path)
    own = os.O_CREAT | os.O_NOFOLLOW
    file = open(path, mode, encoding="utf-8", opener=lambda name, flags: at_once(name, flags | own))  # noqa: SIM115
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        file.close()
        raise InputError(f"cannot write {path}: it is not a regular file with one name; remove it")
    return file


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
