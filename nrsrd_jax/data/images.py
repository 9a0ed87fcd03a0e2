"""Image files -> uint8 arrays, decoded once into a memory map on disk."""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CACHE_VERSION = 1  # to be raised when the same file would decode to other pixels
THREADS = os.cpu_count() or 1


def decode(path: Path, size: tuple[int, int], resampling: str) -> np.ndarray:
    """One image as RGB uint8 [height, width, 3], resized by Pillow. InputError names an unreadable file."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size[1], size[0]), RESAMPLING[resampling]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}; mend or remove it") from error


def decode_many(paths: Sequence[Path], size: tuple[int, int], resampling: str, out: np.ndarray) -> None:
    """Decodes into `out` [N, height, width, 3] with all cores; one InputError tells of every unreadable file."""

    def read(index: int) -> tuple[int, np.ndarray | str]:
        try:
            return index, decode(paths[index], size, resampling)
        except InputError as error:
            return index, str(error)

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=64)
    images = grain.MapDataset.range(len(paths)).map(read).to_iter_dataset(options)
    faults = []
    for index, image in tqdm(images, "decoding", len(paths), unit="image", leave=False, disable=None):
        if isinstance(image, str):
            faults.append(image)
        else:
            out[index] = image
    if faults:
        more = f" (and {len(faults) - 1} more of {len(paths)} images)" if len(faults) > 1 else ""
        raise InputError(faults[0] + more)


def cached_images(
    paths: Sequence[Path], size: tuple[int, int], resampling: str, cache_dir: str | Path = ""
) -> np.ndarray:
    """All images as a read-only uint8 memory map [N, height, width, 3], decoded on the first call.

    The file is named by a hash of the list (paths, sizes and times of change), the size and the filter. Its writer
    holds a lock and renames it into place when whole: a second process waits, and after a killed one the next
    begins anew. `cache_dir` defaults to $XDG_CACHE_HOME/nrsrd_jax, or ~/.cache/nrsrd_jax.
    """
    directory = Path(cache_dir).expanduser() if str(cache_dir) else default_cache_dir()
    target = directory / f"{_cache_key(paths, size, resampling)}.npy"
    try:
        images = _open(target, len(paths))
        if images is None:
            directory.mkdir(parents=True, exist_ok=True)
            with open(target.with_suffix(".lock"), "w") as lock:
                _lock(lock, target)
                if _open(target, len(paths)) is None:
                    _write(target, paths, size, resampling)
            images = np.load(target, mmap_mode="r", allow_pickle=False)
        return images
    except OSError as error:
        raise InputError(
            f"cannot keep decoded images in {directory}: {error.strerror or error}; set data.cache_dir, or "
            "data.cache=none"
        ) from error


def _open(target: Path, count: int) -> np.ndarray | None:
    """The whole cache, or None where there is none or a damaged one."""
    try:
        images = np.load(target, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return images if len(images) == count else None


def _write(target: Path, paths: Sequence[Path], size: tuple[int, int], resampling: str) -> None:
    partial = target.with_suffix(".partial")
    out = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(paths), *size, 3))
    with open(partial, "r+b") as file:  # a full disk shows here, and not as a fault of memory while decoding
        os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    decode_many(paths, size, resampling, out)
    out.flush()
    os.replace(partial, target)


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrsrd_jax"


def _lock(file, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process is decoding into {target}; waiting for it", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


def _cache_key(paths: Sequence[Path], size: tuple[int, int], resampling: str) -> str:
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, list(size), resampling]).encode())
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"cannot read the image {path}: {error.strerror}") from error
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
