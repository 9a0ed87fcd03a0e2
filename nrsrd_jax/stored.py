"""Check the folder of a checkpoint before it is restored, so that a damaged one gives an error of one line."""

import contextlib
import json
import math
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import psutil
import tensorstore

from .description import Description
from .errors import InputError, printable
from .files import read_bounded

ITEMS = "_CHECKPOINT_METADATA"
# The largest JSON file to read, in bytes. A description of 100,000 identities has about 2**20.
JSON_BYTES = 2**26
# Arrays of up to SMALL bytes may be compressed by any factor, larger ones by COMPRESSION. Trained weights compress to
# nine tenths of their size, zeros to a ten-thousandth: a small file could otherwise fill the memory.
SMALL = 2**26
COMPRESSION = 100
# While arrays are restored, the decoded copy and the copy on the device are in memory at the same time.
COPIES = 2


def _unraisable(report: Any, before: Any = sys.unraisablehook) -> None:
    """Hide the errors of Orbax's other reads, which fail because the first failure has closed their event loop."""
    if str(report.exc_value) != "Event loop is closed":
        before(report)


sys.unraisablehook = _unraisable


class Damaged(InputError):
    """Report a checkpoint that cannot be read, or does not have the content that was saved."""


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn any error that Orbax raises on the checkpoint `path` into an InputError of one line.

    Raises:
        Damaged: the checkpoint is at fault.
        InputError: the machine is at fault (permissions, memory, a failing disk); the checkpoint may be good.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"there is too little free memory to restore {path}; free some, or use a machine with more"
        ) from error
    except Exception as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        reason = printable((text.splitlines() or [""])[0].partition(". See full")[0], 200) or type(error).__name__
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if "RESOURCE_EXHAUSTED" in reason and not isinstance(error, ValueError):
            # The device has too little memory; `command.one_line` says what to do.
            raise
        if "PERMISSION_DENIED" in reason or (isinstance(error, OSError) and not missing):
            raise InputError(f"cannot read {path}: {reason}") from error
        raise Damaged(f"{path} is damaged: it cannot be read: {reason}") from error


def read_description(path: Path) -> Description:
    """Return the description of the model in the checkpoint `path`. Raises as `restoring` does."""
    with restoring(path):
        return Description.from_json(_read_json(path, "model/metadata"))


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(read_bounded(path / name, JSON_BYTES))
    except InputError as error:
        raise Damaged(f"{path} is damaged: {error}") from error


def has_items(path: Path) -> bool:
    """Return whether Orbax can read its list of the items in the checkpoint `path`."""
    try:
        return isinstance(json.loads(read_bounded(path / ITEMS, JSON_BYTES)), dict)
    except (OSError, ValueError, RecursionError):
        return False


def check_stored(folder: Path, abstract: Any = None) -> None:
    """Compare the memory that an item of a checkpoint needs with its bytes on disk and with the free memory.

    Args:
        folder: the folder of the item, such as `CHECKPOINT/weights`.
        abstract: the arrays that it is restored into, if known; only their shapes and types are used.

    Raises:
        Damaged: arrays are missing or far larger than their compressed bytes, or a file is not a regular file.
        InputError: the arrays do not fit in the free memory.
    """
    with restoring(folder.parent):
        stored = _bytes_on_disk(folder)
        # Orbax reads its lists completely, and they may be as large as the item.
        _check_memory(folder, stored)
        # Without this list, Orbax would guess which arrays there are.
        _read_json(folder.parent, f"{folder.name}/_METADATA")
        wanted = jax.tree.leaves(abstract)
        arrays, needed = _stored_arrays(folder)
        if arrays < max(len(wanted), 1):
            raise Damaged(f"{folder.parent} is damaged: {folder.name}/ holds {arrays} of {len(wanted)} arrays")
        needed = max(needed, sum(math.prod(array.shape) * array.dtype.itemsize for array in wanted))
    if needed > SMALL + COMPRESSION * stored:
        raise Damaged(
            f"{folder.parent} is damaged: {stored >> 10} KiB of its {folder.name} would take {needed >> 20} MiB of "
            "memory; trained weights compress far less"
        )
    _check_memory(folder, COPIES * needed)


def _bytes_on_disk(folder: Path) -> int:
    stored = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            about = os.stat(os.path.join(parent, name))
            # Reading a named pipe would wait forever.
            if not stat.S_ISREG(about.st_mode):
                raise Damaged(f"{folder.parent} is damaged: {name} in {folder.name}/ is not a regular file")
            stored += about.st_size
    return stored


def _stored_arrays(folder: Path) -> tuple[int, int]:
    """Return the number of arrays of an item, and their bytes. An array takes at least one stored block."""
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    decoded = arrays = 0
    for key in store.list().result():
        # Orbax may read arrays of this newer format instead of those that are counted here.
        if key.endswith(b"zarr.json"):
            raise Damaged(f"{folder.parent} is damaged: {folder.name}/ is in a format that this package does not write")
        if key.endswith(b".zarray"):
            array = json.loads(store.read(key).result().value)
            values = max(math.prod(map(int, sides)) for sides in (array["shape"], array["chunks"]))
            arrays += 1
            decoded += values * jnp.dtype(array["dtype"]).itemsize
    return arrays, decoded


def _check_memory(folder: Path, needed: int) -> None:
    free = free_host_memory()
    if needed > free:
        raise InputError(
            f"restoring {folder} needs {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free: free "
            "some, or use a machine with more"
        )


def free_host_memory() -> int:
    """Return the bytes that this process can still allocate, within the system's and its container's limits."""
    free = psutil.virtual_memory().available
    # The container's limit is in one of these files, of control groups version 2 or 1.
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            own = psutil.Process().memory_info().rss
            free = min(free, int((Path("/sys/fs/cgroup") / limit).read_text()) - own)
    return max(free, 0)
