"""Checks of a checkpoint's folder before it is restored: a damaged one raises an error of one line."""

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
JSON_BYTES = 2**26  # A description of 100,000 identities has 2**20.
SMALL = 2**26  # bytes of arrays that may be compressed without a limit
COMPRESSION = 100  # Trained weights compress to nine tenths of their size, zeros to a ten-thousandth.
COPIES = 2  # While arrays are restored, the decoded ones and those of the device exist side by side.


def _unraisable(report: Any, before: Any = sys.unraisablehook) -> None:
    """Leave out the errors of Orbax's other reads, after the first has failed and closed their event loop."""
    if str(report.exc_value) != "Event loop is closed":
        before(report)


sys.unraisablehook = _unraisable


class Damaged(InputError):
    """A checkpoint cannot be read, or does not hold what was saved."""


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn whatever Orbax raises on the checkpoint `path` into an InputError of one line.

    Raises:
        Damaged: the checkpoint is at fault.
        InputError: the machine is at fault (rights, memory, a disk that fails); the checkpoint may be good.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"there is too little free memory to restore {path}") from error
    except Exception as error:
        reason = printable((str(error).splitlines() or [""])[0].partition(". See full")[0], 200) or type(error).__name__
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if "RESOURCE_EXHAUSTED" in reason and not isinstance(error, ValueError):
            raise  # The device has too little memory: the command says what to do.
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
    """Return whether Orbax can read its list of what is in the checkpoint `path`."""
    try:
        return isinstance(json.loads(read_bounded(path / ITEMS, JSON_BYTES)), dict)
    except (OSError, ValueError, RecursionError):
        return False


def check_stored(folder: Path, abstract: Any = None) -> None:
    """Compare the memory that an item of a checkpoint takes with its bytes on disk and with the free memory.

    Args:
        folder: the item, `CHECKPOINT/weights`.
        abstract: the arrays that it is restored into, if that is known; only their shapes and types are used.

    Raises:
        Damaged: the arrays are far larger than their compressed bytes, or the folder holds more than regular files.
        InputError: the arrays do not fit in the free memory.
    """
    with restoring(folder.parent):
        stored = _bytes_on_disk(folder)
        _check_memory(folder, stored)  # Orbax reads its own lists whole.
        _read_json(folder.parent, f"{folder.name}/_METADATA")  # Without it Orbax guesses.
        wanted = jax.tree.leaves(abstract)
        arrays, needed = _stored_arrays(folder)
        if arrays < max(len(wanted), 1):
            raise Damaged(f"{folder.parent} is damaged: {folder.name}/ holds {arrays} of {len(wanted)} arrays")
        needed = max(needed, sum(math.prod(array.shape) * array.dtype.itemsize for array in wanted))
    if needed > SMALL + COMPRESSION * stored:
        raise Damaged(
            f"{folder.parent} is damaged: {stored >> 10} KiB of its {folder.name} would take {needed >> 20} MiB of "
            "memory; trained ones compress far less"
        )
    _check_memory(folder, COPIES * needed)


def _bytes_on_disk(folder: Path) -> int:
    stored = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            about = os.stat(os.path.join(parent, name))
            if not stat.S_ISREG(about.st_mode):  # Reading a named pipe would wait forever.
                raise Damaged(f"{folder.parent} is damaged: {name} in {folder.name}/ is not a regular file")
            stored += about.st_size
    return stored


def _stored_arrays(folder: Path) -> tuple[int, int]:
    """Return the number of arrays of an item and their bytes; an array takes at least one of its stored blocks."""
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    decoded = arrays = 0
    for key in store.list().result():
        if key.endswith(b"zarr.json"):  # Orbax may read this instead of the arrays counted here.
            raise Damaged(f"{folder.parent} is damaged: {folder.name}/ is in a format that is not written")
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
            f"restoring {folder} takes {needed / 2**30:.1f} GiB of memory, of which {free / 2**30:.1f} are free: free "
            "some, or use a machine with more"
        )


def free_host_memory() -> int:
    """Return the bytes that this process can still allocate, by the system and by its container's limit."""
    free = psutil.virtual_memory().available
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, version 2 and 1
        with contextlib.suppress(OSError, ValueError):
            own = psutil.Process().memory_info().rss
            free = min(free, int((Path("/sys/fs/cgroup") / limit).read_text()) - own)
    return max(free, 0)
