"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError


def expanded(path: str | Path) -> Path:
    """The path with its ~ as a home folder; InputError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such user's home folder") from error


def writable_folder(folder: str | Path, option: str) -> Path:
    """The folder, made if need be. InputError, naming the option, if it is a file or nothing can be written in it."""
    folder = expanded(folder)
    if folder.is_file():
        raise InputError(f"{option} {folder} is a file; name a folder")
    trial = folder / f".trial.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise InputError(f"{option}: cannot write in {folder}: {error.strerror}; name another folder") from error
    return folder


def writable_file(path: str | Path, option: str) -> Path:
    """A file's path with its folder made. InputError, naming the option, if it is no file or cannot be written."""
    path = expanded(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path} is {'a folder' if path.is_dir() else 'no regular file'}; name a file")
    return writable_folder(path.parent, option) / path.name


@contextlib.contextmanager
def readable(image: Path) -> Iterator[None]:
    """Turns what the file system says of an image into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read the image {image}: {error.strerror}") from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which then becomes `path`: a kill leaves the old file or the new one.

    A symbolic link stays one, to the new file. InputError if it cannot be written, or is a device or folder.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is no regular file; name another")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_whole(path: Path, text: str) -> None:
    """A text file in UTF-8, whole; what cannot be encoded is escaped. InputError if it cannot be written."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
