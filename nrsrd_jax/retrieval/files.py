"""Embed image files, one chunk of images in memory at a time."""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import in_parallel, mean_luminance, read_picture
from ..data.lists import quoted
from ..description import Description
from ..errors import InputError
from ..files import readable
from .embedding import Embedder

# How many images are in memory at a time.
CHUNK = 1024


@dataclasses.dataclass
class Chunk:
    """Some of the files: n embedded files, and the unreadable ones.

    Attributes:
        indices: the place of each embedded file [n] in the list.
        files: the state of each embedded file [n], taken before it was read, so that a change during reading is noticed
            later.
        digests: the SHA-256 of the bytes of each embedded file [n].
        features: float32 [n, D].
        brightness: the mean luminance of each embedded file [n], in 0..1.
        faults: what is wrong with each unreadable file, by its place in the list.
    """

    indices: list[int] = dataclasses.field(default_factory=list)
    files: list[os.stat_result] = dataclasses.field(default_factory=list)
    digests: list[bytes] = dataclasses.field(default_factory=list)
    features: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 0), np.float32))
    brightness: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    faults: dict[int, InputError] = dataclasses.field(default_factory=dict)


def cameras_for(description: Description, paths: Sequence[str], cameras: Sequence[Any]) -> np.ndarray | None:
    """Return the cameras of crops as numbers, for a model that needs them (model.sie).

    Args:
        description: the model.
        paths: the crops.
        cameras: the camera of each crop: its number in the training data, also as text; None if it is unknown.

    Returns:
        int64 [N], or None for a model that does not need cameras.

    Raises:
        InputError: the model needs cameras, and a crop has no camera, or one that was not in training.

    Example:
        >>> from nrsrd_jax.description import Description
        >>> from nrsrd_jax.retrieval.files import cameras_for
        >>> description = Description("vit_tiny", 1, (32, 16), (0.5,) * 3, (0.5,) * 3, cameras=(1, 2), sie=True)
        >>> cameras_for(description, ["a.jpg", "b.jpg"], ["2", "01"])
        array([2, 1])
    """
    if not description.spec.needs_cameras:
        return None
    texts = ["" if camera is None else str(camera) for camera in cameras]
    # Eighteen digits fit int64.
    numbers = [int(text) if re.fullmatch(r"\d{1,18}", text) else -1 for text in texts]
    for path, text, number in zip(paths, texts, numbers, strict=True):
        if number not in description.cameras:
            raise InputError(
                f"the camera of {path} is {quoted(text) if text else 'unknown'}, but this model (model.sie) needs the "
                f"camera of each crop, one of {', '.join(map(str, description.cameras))}: give it by --pattern or in a "
                "manifest"
            )
    return np.array(numbers, np.int64)


def embed_all(embedder: Embedder, paths: Sequence[Path], cameras: np.ndarray | None = None) -> Chunk:
    """Embed image files, and return all of them as one Chunk. `cameras` is as in `embed_files`.

    Raises:
        InputError: a file is unreadable. All files are read first, so that the message counts the unreadable ones.
    """
    whole, chunks = Chunk(), list(embed_files(embedder, paths, strict=True, cameras=cameras))
    for chunk in chunks:
        whole.indices += chunk.indices
        whole.files += chunk.files
        whole.digests += chunk.digests
    filled = [chunk for chunk in chunks if chunk.indices]
    whole.features = np.concatenate([chunk.features for chunk in filled])
    whole.brightness = np.concatenate([chunk.brightness for chunk in filled])
    return whole


def embed_files(
    embedder: Embedder,
    paths: Sequence[str | Path],
    *,
    size: int = CHUNK,
    strict: bool = False,
    cameras: np.ndarray | None = None,
) -> Iterator[Chunk]:
    """Decode image files on all cores and embed them, with a progress bar.

    Args:
        embedder: the model.
        paths: the files.
        size: how many images a chunk has, at least 1.
        strict: whether an unreadable file is an error. The error is raised after all files are read, so that it counts
            the unreadable ones; no more files are embedded after the first of them.
        cameras: the camera of each file [N], from `cameras_for`; None for a model that does not need cameras.

    Yields:
        Chunks in the order of the files. Each file is in one chunk, embedded or as a fault.

    Raises:
        InputError: with `strict`, files are unreadable.
    """
    height, width = embedder.description.image_size
    images = np.empty((min(size, len(paths)), height, width, 3), np.uint8)
    # A short chunk is padded with what `images` still holds, so that no second shape is compiled.
    least = min(len(paths), embedder.batch_size)
    faults: list[InputError] = []
    chunk = Chunk()

    def finished() -> Chunk:
        count = len(chunk.indices)
        if count:
            filled = max(count, min(least, len(images)))
            # The padding has the camera of the last image.
            own = None if cameras is None else np.pad(cameras[chunk.indices], (0, filled - count), mode="edge")
            chunk.features = embedder(images[:filled], cameras=own)[:count]
            chunk.brightness = mean_luminance(images[:count]) / 255
        return chunk

    # A Path takes as much memory as everything else about a file, so make it only while the file is read.
    def read(name: str | Path) -> tuple[np.ndarray, os.stat_result, bytes]:
        path = Path(name)
        with readable(path):
            file = os.stat(path)
        picture = read_picture(path)
        return picture.resized((height, width), "bilinear"), file, picture.digest

    for index, result in in_parallel(read, paths, "embedding"):
        if isinstance(result, InputError):
            faults.append(result)
            chunk.faults[index] = result
            continue
        if strict and faults:
            continue
        images[len(chunk.indices)], file, digest = result
        chunk.indices.append(index)
        chunk.files.append(file)
        chunk.digests.append(digest)
        if len(chunk.indices) == len(images):
            yield finished()
            chunk = Chunk()
    if strict and faults:
        more = f" (and {len(faults) - 1} more of {len(paths)} crops)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}")
    yield finished()
