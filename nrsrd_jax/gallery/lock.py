"""Lock a gallery, so that one process writes to it at a time, or one process for each shard."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..files import locked_open
from ..locks import try_lock
from .address import address

# What to do on a file system that does not support locks.
ADVICE = "write to it from one process at a time, or from one for each shard"


@contextlib.contextmanager
def writing(uri: str | Path, shard: str = "") -> Iterator[None]:
    """Let one process write to a folder's gallery at a time, or one process for each shard.

    Object storage is not locked. LanceDB itself keeps the table whole there, and `Gallery.remove_copies` deletes crops
    that two processes embedded. A new folder is removed if the block writes no crop into it, unless shards share it.

    Args:
        uri: the gallery.
        shard: the shard that this process writes, such as "3-of-16"; "" without shards.

    Raises:
        InputError: another process is writing, or the folder cannot be written.
    """
    place = address(uri)
    if "://" in place:
        yield
        return
    folder = Path(place)
    new = not shard and not folder.exists()
    with contextlib.ExitStack() as open_files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _lock(folder, shard, open_files)
        except BlockingIOError as error:
            raise InputError(f"another process is writing to {folder}; wait until it has ended") from error
        except OSError as error:
            raise InputError(f"cannot write to the gallery {folder}: {error.strerror}") from error
        try:
            yield
        finally:
            # LanceDB keeps the rows of a table in the files of this folder.
            if new and not any(folder.glob("*.lance/data/*")):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path, shard: str, open_files: contextlib.ExitStack) -> None:
    """Lock the folder until `open_files` are closed. BlockingIOError if another process excludes this one."""
    # Shards share the common lock; a process without shards has it alone. A shard has its own lock alone.
    for name in (".lock", f".lock-{shard}") if shard else (".lock",):
        file = open_files.enter_context(locked_open(folder / name))
        if not try_lock(file, folder, ADVICE, shared=bool(shard) and name == ".lock"):
            return
    # A shard of another count may hold the same crops, which would then be written twice.
    count = shard.partition("-of-")[2]
    for path in folder.glob(".lock-*-of-*"):
        if shard and not path.name.endswith(f"-of-{count}"):
            with locked_open(path) as other:
                try_lock(other, folder, ADVICE)
