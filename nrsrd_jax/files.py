"""Write files completely or not at all, and never through a symbolic link that the user did not name."""

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
    """Return the path with ~ replaced by the home folder. InputError if the user in ~user is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: the home folder of this user is unknown; give the path without ~") from error


def absolute(path: str | Path) -> Path:
    """Return the absolute path without "..", which TensorStore refuses. Raises as `expanded` does."""
    path = expanded(path).absolute()
    return path.resolve() if ".." in path.parts else path


def writable_folder(folder: str | Path, option: str) -> Path:
    """Return the folder, and create it if missing. InputError names the option if the folder is not writable."""
    folder = expanded(folder)
    if folder.is_file():
        raise InputError(f"{option} {folder} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Make a file to be sure: os.access may be wrong, for example on network file systems.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{option}: cannot write in {folder}: {error.strerror}; name another folder") from error
    return folder


def refuse_same_files(files: Collection[Path]) -> None:
    """Raise InputError if two of the files to read or write are the same file, also through links."""
    if len(set(map(os.path.realpath, files))) < len(files):
        raise InputError(f"two files to read or write are the same: {', '.join(map(str, files))}; name others")


def writable_file(path: str | Path, option: str) -> Path:
    """Return a file's path, and create its folder. InputError names the option if the file cannot be written."""
    path = expanded(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path} is {'a folder' if path.is_dir() else 'not a regular file'}; name a file")
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
    """Yield a new file beside `path` to write to, which replaces `path` at the end of the block.

    After a kill or a power cut, `path` has either all of the old content or all of the new content.

    Args:
        path: the file to write.
        follow: whether `path` may be a symbolic link, whose target is then replaced. Set it only for a file that the
            user named with an option: a link that lies in a folder could point to any of the user's files.

    Yields:
        The path of the new file.

    Raises:
        InputError: `path` is a symbolic link (without `follow`), a folder or a device, or cannot be written.
    """
    try:
        path = path.resolve() if follow else _no_link(path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write {path}: it is a link that leads to itself") from error
    if os.path.lexists(path) and not path.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file; name another")
    # A random name, so that two processes that write the same file do not share it.
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        yield partial
        _flush(partial)
        os.replace(partial, path)
        # Some network file systems cannot flush a folder.
        with contextlib.suppress(OSError):
            _flush(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_whole(path: Path, text: str, follow: bool = False) -> None:
    """Write a text file in UTF-8 as `written_whole` does. Characters that UTF-8 cannot encode are escaped."""
    with written_whole(path, follow) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(
    path: Path, rows: Sequence[Mapping[str, object]], follow: bool = False, columns: Sequence[str] = ()
) -> None:
    """Write rows as a CSV file with a header, as `write_whole` does.

    A text that a spreadsheet would run as a formula (`=…`, `+…`, `-…`, `@…`) gets a `'` in front. Numbers do not.

    Args:
        path: the file to write.
        rows: the rows; all have the same keys, which are the columns.
        follow: as in `written_whole`.
        columns: the keys, needed only if there may be no rows.
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
        # Formatted numbers such as "-0.5" stay numbers.
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def locked_open(path: Path) -> TextIO:
    """Open a lock file for reading and writing without changing it; create it if it is missing.

    Raises:
        InputError: the file is a symbolic link, has a second name (a hard link), or is not a regular file.
        OSError: the file cannot be opened.
    """
    return _open_own(path, "r+")


def append_open(path: Path) -> TextIO:
    """Open a UTF-8 text file for appending; create it if it is missing. Raises as `locked_open` does."""
    return _open_own(path, "a")


def read_bounded(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes.

    Raises:
        InputError: the file is not a regular file, or has more than `limit` bytes.
        OSError: the file cannot be read.
    """
    with open(path, "rb", opener=at_once) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path} is not a regular file")
        # Read only as many bytes as the file has: `read(limit)` would allocate `limit` bytes even for a small file.
        size = min(about.st_size, limit)
        content = file.read(size + 1)
        if len(content) > size:
            content += file.read(limit - size)
    if len(content) > limit:
        raise InputError(f"{path} has more than {limit} bytes, so it cannot be the file that belongs there; replace it")
    return content


def _no_link(path: Path) -> Path:
    if path.is_symlink():
        raise InputError(f"cannot write {path}: it is a symbolic link; remove it, or name its target yourself")
    return path


def at_once(path: str, flags: int) -> int:
    """Open a file without waiting, for `open(…, opener=at_once)`. A plain `open` of a named pipe waits for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open_own(path: Path, mode: Literal["r+", "a"]) -> TextIO:
    _no_link(path)
    own = os.O_CREAT | os.O_NOFOLLOW
    file = open(path, mode, encoding="utf-8", opener=lambda name, flags: at_once(name, flags | own))  # noqa: SIM115
    # Check the opened file, not its path, which could be replaced in between. A hard link may be any file of the user.
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
