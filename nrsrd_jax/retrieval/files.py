"""From image files to features, a chunk of them in memory at a time."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.images import in_parallel, mean_luminance, read_picture
from ..errors import InputError
from ..files import readable
from .embedding import Embedder

CHUNK = 1024  # images at a time


@dataclasses.dataclass
class Chunk:
    """Some of the files, n of them embedded.

    Attributes:
        indices: of the embedded files [n] in the list.
        files: the state of each, from before it was read [n]: a change while it is read shows later.
        digests: the SHA-256 of the bytes of each [n].
        features: float32 [n, D].
        brightness: the mean luminance of each [n], in 0..1.
        faults: what is wrong with files that cannot be read, by their index.
    """

    indices: list[int] = dataclasses.field(default_factory=list)
    files: list[os.stat_result] = dataclasses.field(default_factory=list)
    digests: list[bytes] = dataclasses.field(default_factory=list)
    features: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 0), np.float32))
    brightness: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    faults: dict[int, InputError] = dataclasses.field(default_factory=dict)


def embed_all(embedder: Embedder, paths: Sequence[Path]) -> Chunk:
    """Embed image files, and return one Chunk of all of them. InputError if any is unreadable, after all were read."""
    whole, chunks = Chunk(), list(embed_files(embedder, paths, strict=True))
    for chunk in chunks:
        whole.indices += chunk.indices
        whole.files += chunk.files
        whole.digests += chunk.digests
    filled = [chunk for chunk in chunks if chunk.indices]
    whole.features = np.concatenate([chunk.features for chunk in filled])
    whole.brightness = np.concatenate([chunk.brightness for chunk in filled])
    return whole


def embed_files(
    embedder: Embedder, paths: Sequence[str | Path], *, size: int = CHUNK, strict: bool = False
) -> Iterator[Chunk]:
    """Decode image files on all cores and embed them, with a progress bar.

    Args:
        embedder: the model.
        paths: the files.
        size: images of a chunk, at least 1.
        strict: whether an unreadable file is an error. It is raised after all files were read, so that it says how many
            are unreadable; nothing is embedded in the meantime.

    Yields:
        Chunks in the order of the files; together they tell of every file once.

    Raises:
        InputError: with `strict`, files are unreadable.
    """
    height, width = embedder.description.image_size
    images = np.empty((min(size, len(paths)), height, width, 3), np.uint8)
    # A short chunk is filled up with older pictures, so that no second shape is compiled.
    least = min(len(paths), embedder.batch_size)
    faults: list[InputError] = []
    chunk = Chunk()

    def finished() -> Chunk:
        count = len(chunk.indices)
        if count:
            chunk.features = embedder(images[: max(count, min(least, len(images)))])[:count]
            chunk.brightness = mean_luminance(images[:count]) / 255
        return chunk

    # A Path takes as much memory as all else that is known of a file, so there is one at a time.
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
