"""Sealed arrays on disk: .npy files that end in a digest of their content, shape and name.

The seal detects a file that is damaged, truncated or of another array, before any of its numbers is used. It protects
against accidents. It is not a signature: anyone who may write in the folder can make a valid seal.
"""

import contextlib
import errno
import hashlib
import io
import math
import os
import stat
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..files import at_once, written_whole

BLOCK = 2**20  # bytes that are checked at a time
NOTE = 32  # bytes that the writer may add, such as a hash of the files that the array was made from
SEAL = 32  # bytes
# If nothing was written to a partial file for this many seconds, its writer was killed.
ABANDONED = 24 * 3600
# The number of cores that this process may use, which a scheduler may limit. macOS tells only that of the machine.
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Shape = tuple[int, ...]
# The files that this process has checked.
_seen: set[tuple] = set()


def read(path: Path, dtype: npt.DTypeLike, shape: Shape) -> tuple[np.ndarray, bytes] | None:
    """Return the array in a file, as a read-only memory map, and its note; None if the file does not exist.

    A process checks the content of a file once.

    Raises:
        ValueError: the file does not hold what `write` wrote for this name, type and shape.
    """
    try:
        file = open(path, "rb", opener=at_once)  # noqa: SIM115
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error
    with file:
        header, about = _header(dtype, shape), os.fstat(file.fileno())
        end = len(header) + _size(dtype, shape)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is not a regular file")
        if about.st_size != end + NOTE + SEAL:
            raise ValueError(f"it has {about.st_size} bytes, not {end + NOTE + SEAL}: truncated, or of an old version")
        seen = (path.name, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        try:
            note, seal = (os.pread(file.fileno(), size, at) for size, at in ((NOTE, end), (SEAL, end + NOTE)))
            if os.pread(file.fileno(), len(header), 0) != header:
                raise ValueError("it holds an array of another type or shape")
            if seen not in _seen and _digest(file.fileno(), path.name, header, end, note) != seal:
                raise ValueError("its content is not what was written")
        except OSError as error:
            raise ValueError(f"it cannot be read ({error.strerror})") from error
        _seen.add(seen)
        return np.memmap(file, dtype, "r", len(header), shape), note


def write(
    path: Path, dtype: npt.DTypeLike, shape: Shape, fill: Callable[[np.ndarray], bytes]
) -> tuple[np.ndarray, bytes]:
    """Write an array, and return what `read` would return.

    Args:
        path: the file.
        dtype, shape: the type and shape of the array.
        fill: a function that writes the values into the array that it gets, and returns the note.

    Raises:
        InputError: the file cannot be written, or is a symbolic link.
    """
    _sweep(path.parent)
    header = _header(dtype, shape)
    end = len(header) + _size(dtype, shape)
    with written_whole(path) as partial, open(partial, "r+b") as file:
        file.write(header)
        file.flush()
        _reserve(file.fileno(), end + NOTE + SEAL)
        array = np.memmap(file, dtype, "r+", len(header), shape)
        note = fill(array).ljust(NOTE, b"\0")
        array.flush()
        file.seek(end)
        file.write(note + _digest(file.fileno(), path.name, header, end, note))
        return np.memmap(file, dtype, "r", len(header), shape), note


def _reserve(file: int, size: int) -> None:
    """Give a file its full size. OSError if the disk is full.

    Otherwise a full disk would kill the process by a bus error while the array is filled.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    # macOS can only be asked for the free space, which other processes may use up later.
    disk = os.fstatvfs(file)
    if disk.f_bavail * disk.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(file, size)


def _header(dtype: npt.DTypeLike, shape: Shape) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _size(dtype: npt.DTypeLike, shape: Shape) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _digest(file: int, name: str, header: bytes, end: int, note: bytes) -> bytes:
    """Return the SHA-256 of the name, the header, the note and the CRC-32 of each block of the array."""

    # Read the file instead of mapping it: a disk error then raises OSError, and does not kill the process.
    def check(start: int) -> bytes:
        return zlib.crc32(os.pread(file, min(BLOCK, end - start), start)).to_bytes(4, "big")

    with ThreadPoolExecutor(THREADS) as threads:
        blocks = b"".join(threads.map(check, range(len(header), end, BLOCK)))
    return hashlib.sha256(b"\0".join((os.fsencode(name), header, note, blocks))).digest()


def _sweep(folder: Path) -> None:
    """Remove partial files that killed writers have left behind."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.lstat().st_mtime > ABANDONED:
                partial.unlink()
