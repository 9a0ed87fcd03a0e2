"""Decode image files into uint8 arrays, and cache them in a memory map on disk."""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grain
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import InputError, printable, say
from ..files import expanded, locked_open, read_bounded, readable
from . import sealed
from .picture import MAX_BYTES, take_apart

Result = TypeVar("Result")
Name = TypeVar("Name")
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Increase this when the same file would decode to other pixels, so that old caches are not read.
CACHE_VERSION = 2
# The advice that follows an error about unreadable images of a data set.
DATA_SET = "; `nrsrd check` lists them, data.exclude leaves them out"
# The weights of red, green and blue in luminance (ITU-R BT.601).
LUMINANCE = 0.299, 0.587, 0.114
# The operation that turns a picture of each EXIF orientation upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True)
class Read:
    """An image that was read from a file.

    Attributes:
        image: the image in RGB, upright.
        mode: Pillow's name for the type of pixels in the file, such as "L".
        digest: the SHA-256 of the file's bytes.
    """

    image: Image.Image
    mode: str
    digest: bytes

    def resized(self, size: tuple[int, int], resampling: str) -> np.ndarray:
        """Return the pixels at (height, width), uint8 [height, width, 3], as Pillow resizes them."""
        return np.asarray(self.image.resize((size[1], size[0]), RESAMPLING[resampling]))


def decode(path: Path, size: tuple[int, int], resampling: str) -> np.ndarray:
    """Decode an image file and resize it with Pillow.

    Args:
        path: a JPEG, PNG, WebP or BMP file.
        size: (height, width) in pixels.
        resampling: "bicubic" or "bilinear", with Pillow's antialiasing.

    Returns:
        uint8 [height, width, 3], RGB in 0..255, upright.

    Raises:
        InputError: `read_picture` rejects the file.
        KeyError: `resampling` is unknown.

    Source:
        The official code of TransReID-SSL, which resizes with Pillow: bicubic for training, bilinear for testing.

    Example:
        >>> from pathlib import Path
        >>> from nrsrd_jax.data.images import decode
        >>> pixels = decode(Path("crop.png"), (32, 16), "bicubic")
        >>> pixels.shape, pixels.dtype, pixels[0, 0].tolist()
        ((32, 16, 3), dtype('uint8'), [200, 100, 50])
    """
    return read_picture(path).resized(size, resampling)


def read_rgb(path: Path) -> Image.Image:
    """Read an image file as `read_picture` does, and return only the image."""
    return read_picture(path).image


def read_picture(path: Path) -> Read:
    """Read an image file as RGB, turned upright by its EXIF orientation.

    16-bit grey values are reduced to 8 bits. Transparent pixels are blended over black.

    Raises:
        InputError: the file is unreadable, is not JPEG, PNG, WebP or BMP, has more than MAX_PIXELS pixels, or would
            take its decoder more memory or time than such a picture does.
    """
    try:
        content = _content(path)
        picture = take_apart(content)
        # Otherwise Pillow would choose a decoder itself, perhaps one whose limits `take_apart` has not checked.
        with Image.open(io.BytesIO(picture.content), formats=[picture.format]) as image:
            rgb = _to_rgb(image)
        turned = rgb.transpose(UPRIGHT[picture.orientation]) if picture.orientation in UPRIGHT else rgb
        return Read(turned, image.mode, hashlib.sha256(content).digest())
    # Pillow's decoders raise many kinds of errors on damaged files.
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot read the image {path}: {printable(error, 200)}; fix or remove it")


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    return read_bounded(path, MAX_BYTES)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def decode_many(
    paths: Sequence[Path], size: tuple[int, int], resampling: str, out: np.ndarray, advice: str = DATA_SET
) -> bytes:
    """Decode images on all cores.

    Args:
        paths: N image files.
        size: (height, width) in pixels.
        resampling: "bicubic" or "bilinear".
        out: the pixels are written here, uint8 [N, height, width, 3].
        advice: the end of the error message: what to do about unreadable files.

    Returns:
        The `joint_digest` of the files.

    Raises:
        InputError: files are unreadable. One error reports all of them.
    """

    def read(path: Path) -> tuple[np.ndarray, bytes]:
        picture = read_picture(path)
        return picture.resized(size, resampling), picture.digest

    digests = [b""] * len(paths)
    for index, (pixels, digest) in _all(read, paths, "decoding", advice):
        out[index], digests[index] = pixels, digest
    return joint_digest(digests)


def check_readable(paths: Sequence[Path]) -> None:
    """Decode images and discard them; raise one InputError for all unreadable files."""
    for _ in _all(lambda path: read_rgb(path).size, paths, "checking"):
        pass


def pixels_sha256(paths: Sequence[Path]) -> str:
    """Return a hash of the files' bytes, in this order; it does not depend on their names or folders.

    It tells versions of a data set apart: MSMT17 V2 has the file names of V1, but blurred faces.

    Raises:
        InputError: a file is unreadable.
    """
    digests = [b""] * len(paths)
    for index, digest in _all(_digest, paths, "hashing"):
        digests[index] = digest
    return joint_digest(digests).hex()


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(_content(path)).digest()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def joint_digest(digests: Sequence[bytes]) -> bytes:
    """Return one SHA-256 of the digests of many files, in this order."""
    return hashlib.sha256(b"".join(digests)).digest()


def _all(
    function: Callable[[Path], Result], paths: Sequence[Path], title: str, advice: str = DATA_SET
) -> Iterator[tuple[int, Result]]:
    """Yield the results of `in_parallel` that are not errors; at the end, raise one InputError for all errors."""
    faults = []
    for index, result in in_parallel(function, paths, title):
        if isinstance(result, InputError):
            faults.append(result)
        else:
            yield index, result
    if faults:
        more = f" (and {len(faults) - 1} more of {len(paths)} images)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}{advice}")


def in_parallel(
    function: Callable[[Name], Result], paths: Sequence[Name], title: str
) -> Iterator[tuple[int, Result | InputError]]:
    """Yield (index, function(path)) for all paths in order, on all cores, with a progress bar.

    An InputError of the function is yielded as its result, not raised.
    """

    def call(index: int) -> tuple[int, Result | InputError]:
        try:
            # An error would end grain's iterator, and the files after the first bad one would not be looked at.
            return index, function(paths[index])
        except InputError as error:
            return index, error

    options = grain.ReadOptions(num_threads=sealed.THREADS, prefetch_buffer_size=64)
    results = grain.MapDataset.range(len(paths)).map(call).to_iter_dataset(options)
    return iter(tqdm(results, title, len(paths), unit="image", leave=False, disable=None))


def moments(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of pixels, in 0..1, given each level's share: [..., 256] -> [...] each."""
    levels = np.arange(256) / 255
    mean = shares @ levels
    # By rounding, the variance of a single level may be slightly negative.
    return mean, np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))


def cached_images(paths: Sequence[Path], size: tuple[int, int], resampling: str, cache_dir: str | Path) -> np.ndarray:
    """Return all images as a read-only uint8 memory map [N, height, width, 3], decoded on the first call.

    The cache file is sealed (`sealed.py`). Its name is a hash of the files (paths, sizes and modification times), the
    image size and the filter. If the cache file is damaged, a warning is printed and the images are decoded again.

    The process that decodes holds a lock and renames the complete file into place. Other processes wait for it. If it
    is killed, the next process starts again.

    Args:
        paths: N image files.
        size: (height, width) in pixels.
        resampling: "bicubic" or "bilinear".
        cache_dir: the folder of the cache file; "" for $XDG_CACHE_HOME/nrsrd_jax, or ~/.cache/nrsrd_jax.

    Raises:
        InputError: images are unreadable, or the cache file cannot be written.
    """
    return _cached(paths, size, resampling, cache_dir)[0]


def cached_pixels_sha256(paths: Sequence[Path], size: tuple[int, int], resampling: str, cache_dir: str | Path) -> str:
    """Return the `pixels_sha256` that the files had when `cached_images` decoded them."""
    return _cached(paths, size, resampling, cache_dir)[1].hex()


def _cached(
    paths: Sequence[Path], size: tuple[int, int], resampling: str, cache_dir: str | Path
) -> tuple[np.ndarray, bytes]:
    directory = cache_folder(cache_dir)
    target = directory / f"{decoding_key(paths, size, resampling)}.npy"
    shape = len(paths), *size, 3
    try:
        # A complete file needs no lock.
        with contextlib.suppress(ValueError):
            if kept := sealed.read(target, np.uint8, shape):
                return kept
        directory.mkdir(parents=True, exist_ok=True)
        # Lock a file of its own, because writing replaces the target. It is never removed: a process that waits for a
        # removed lock and one that makes a new lock would both decode.
        with locked_open(target.with_suffix(".lock")) as lock:
            _lock(lock, target)
            # Look again, because another process may have written the file while this one waited.
            try:
                kept = sealed.read(target, np.uint8, shape)
            except ValueError as error:
                say(f"warning: the decoded images in {target} are not used: {error}; decoding again", error=True)
                kept = None
            return kept or sealed.write(target, np.uint8, shape, lambda out: decode_many(paths, size, resampling, out))
    except (OSError, InputError) as error:
        # An InputError that an OSError caused is about the cache file. Any other is about an image.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise InputError(
            f"cannot write decoded images to {directory}: {cause.strerror or cause}; set data.cache_dir to another "
            "folder, or set data.cache=none"
        ) from error


def cache_folder(cache_dir: str | Path) -> Path:
    """Return the folder that data.cache_dir names, or the default one if it is empty."""
    if str(cache_dir):
        return expanded(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nrsrd_jax"


def _lock(file, target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another process is decoding into {target}; waiting for it", error=True)
        fcntl.flock(file, fcntl.LOCK_EX)


def mean_luminance(images: np.ndarray) -> np.ndarray:
    """Return the mean luminance of each image, in 0..255: uint8 [N, H, W, 3] -> [N]."""
    # One image at a time: a product with all of them would make a float64 copy, eight times as large.
    return np.array([image.mean((0, 1)) @ LUMINANCE for image in images])


def decoding_key(paths: Sequence[Path], size: tuple[int, int], resampling: str) -> str:
    """Return a hash of the files' paths, sizes and modification times, the image size and the filter.

    Raises:
        InputError: a file is missing.
    """
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, list(size), resampling]).encode())
    for path in paths:
        with readable(path):
            stat = path.stat()
        digest.update(os.fsencode(path.resolve()) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
