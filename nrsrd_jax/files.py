"""Text files that are written whole or not at all."""

import os
from pathlib import Path

from .errors import InputError


def write_whole(path: Path, text: str) -> None:
    """Writes beside `path` and renames, so that a kill leaves the old file or the new one. InputError if it cannot."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
