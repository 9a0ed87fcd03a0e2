"""Image files -> uint8 arrays, decoded once into a memory map on disk."""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grain
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from ..errors import InputError
from ..files import expanded, readable

Result = TypeVar("Result")
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CACHE_VERSION = 2  # to be raised when the same file would decode to other pixels
LUMINANCE = 0.299, 0.587, 0.114  # weights of red, green and blue (ITU-R BT.601)
THREADS = os.cpu_count() or 1
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # others may start programs: EPS starts Ghostscript
MAX_PIXELS = 2**24  # of one image: 50 MB decoded


def decode(path: Path, size: tuple[int, int], resampling: str) -> np.ndarray:
    """One image as RGB uint8 [height, width, 3], resized by Pillow. InputError names an unreadable file."""
    return np.asarray(read_rgb(path).resize((size[1], size[0]), RESAMPLING[resampling]))


def read_rgb(path: Path) -> Image.Image:
    """An image as RGB, upright as its EXIF says: 16-bit grey scaled to 8, what is transparent on black.

    InputError names a file that is unreadable, has more than MAX_PIXELS pixels, or has pixels that are no colours.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}×{height} pixels are more than the {MAX_PIXELS} that a crop may have")
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise InputError(f"cannot read the image {path}: {error}; mend or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, of unknown range")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def decode_many(paths: Sequence[Path], size: tuple[int, int], resampling: str, out: np.ndarray) -> None:
    """Decodes into `out` [N, height, width, 3] with all cores; one InputError tells of every unreadable file."""
    faults = []
    for index, image in in_parallel(lambda path: decode(path, size, resampling), paths, "decoding"):
        if isinstance(image, InputError):
            faults.append(image)
        else:
            out[index] = image
    _refuse(faults, len(paths))


def check_readable(paths: Sequence[Path]) -> None:
    """One InputError that tells of every unreadable file, as `decode_many`; nothing is kept."""
    results = in_parallel(lambda path: read_rgb(path).size, paths, "checking")
    _refuse([result for _, result in results if isinstance(result, InputError)], len(paths))


def _refuse(faults: list[InputError], count: int) -> None:
    if faults:
        more = f" (and {len(faults) - 1} more of {count} images)" if len(faults) > 1 else ""
        raise InputError(
            f"{faults[0]}{more}; `python -m nrsrd_jax.data.check` lists them, data.exclude leaves them out"
        )


def in_parallel(
    function: Callable[[Path], Result], paths: Sequence[Path], title: str
) -> Iterator[tuple[int, Result | InputError]]:
    """(index, function(path)) for all paths, on all cores, with a progress bar; an InputError comes as a result."""

    def call(index: int) -> tuple[int, Result | InputError]:
        try:
            return index, function(paths[index])
        except InputError as error:
            return index, error

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=64)
    results = grain.MapDataset.range(len(paths)).map(call).to_iter_dataset(options)
    return iter(tqdm(results, title, len(paths), unit="image", leave=False, disable=None))


def moments(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of pixels in 0..1 whose 256 levels have these shares, [..., 256] -> [...] each."""
    levels = np.arange(256) / 255
    mean = shares @ levels
    return mean, np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))


def cached_images(
    paths: Sequence[Path], size: tuple[int, int], resampling: str, cache_dir: str | Path = ""
) -> np.ndarray:
    """All images as a read-only uint8 memory map [N, height, width, 3], decoded on the first call.

    The file is named by a hash of the list (paths, sizes and times of change), the size and the filter. Its writer
    holds a lock and renames it into place when whole: a second process waits, and after a killed one the next
    begins anew. `cache_dir` defaults to $XDG_CACHE_HOME/nrsrd_jax, or ~/.cache/nrsrd_jax.
    """
    directory = cache_folder(cache_dir)
    target = directory / f"{decoding_key(paths, size, resampling)}.npy"
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
    try:
        out = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(paths), *size, 3))
        with open(partial, "r+b") as file:  # a full disk shows here, and not as a fault of memory while decoding
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        decode_many(paths, size, resampling, out)
        out.flush()
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder(cache_dir: str | Path) -> Path:
    """The folder that data.cache_dir names, or the default one if it is empty."""
    if str(cache_dir):
        return expanded(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrsrd_jax"


def _lock(file, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another process is decoding into {target}; waiting for it", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)


def mean_luminance(images: np.ndarray) -> np.ndarray:
    """Of uint8 images [N, H, W, 3], in 0..255; [N]."""
    return np.array([image.mean((0, 1)) @ LUMINANCE for image in images])


def decoding_key(paths: Sequence[Path], size: tuple[int, int], resampling: str) -> str:
    """A hash of what decoding gives: of the files' paths, sizes and times of change. InputError if one is lost."""
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, list(size), resampling]).encode())
    for path in paths:
        with readable(path):
            stat = path.stat()
        digest.update(os.fsencode(path.resolve()) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
