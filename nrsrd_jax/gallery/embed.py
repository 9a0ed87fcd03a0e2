"""Embedding crops into a gallery: what is to do, and doing it a chunk at a time."""

import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..data.images import in_parallel, mean_luminance, read_picture
from ..errors import InputError, say
from ..files import absolute
from ..retrieval.embedding import Embedder
from .crops import Crop, Source, crops_of
from .store import About, Gallery, Known, one_of

Result = TypeVar("Result")
CHUNK = 1024  # crops that are written at once; a kill loses no more


@dataclasses.dataclass
class Plan:
    """What there is to do.

    Attributes:
        embed: new crops, and those whose file has changed.
        describe: crops whose file is as it was, but whose columns are not.
        back: paths that had vanished and are there again.
        gone: paths in the gallery, below the given folders, without a file.
        unchanged: how many crops need nothing.
        unreadable: what is wrong with files that cannot be embedded.
    """

    embed: list[Crop] = dataclasses.field(default_factory=list)
    describe: list[Crop] = dataclasses.field(default_factory=list)
    back: list[str] = dataclasses.field(default_factory=list)
    gone: list[str] = dataclasses.field(default_factory=list)
    unchanged: int = 0
    unreadable: list[str] = dataclasses.field(default_factory=list)


def about(embedder: Embedder, model: str | Path) -> About:
    """Return what a gallery remembers of a model."""
    return About(
        model=str(absolute(model)),
        identity=embedder.identity(),
        width=embedder.width,
        backbone=embedder.description.backbone,
        software=importlib.metadata.version("nrsrd-jax"),
    )


def make_plan(sources: Sequence[Source], known: dict[str, Known], shard: tuple[int, int] | None = None) -> Plan:
    """Compare the crops with what a gallery has.

    Args:
        sources: where the crops are.
        known: `Gallery.known()`.
        shard: (number from 1, count): plan only the crops that are this shard's, by a hash of their paths.

    Raises:
        InputError: as `crops_of`.
    """
    plan, seen = Plan(), crops_of(sources)
    for path, crop in seen.items():
        if not shard or _shard_of(path, shard[1]) == shard[0]:
            _place(crop, known, plan)
    folders = [f"{source.path}{os.sep}" for source in sources if source.path.is_dir()]
    mine = (path for path in known if not shard or _shard_of(path, shard[1]) == shard[0])
    missing = (path for path in mine if path not in seen and path.startswith(tuple(folders)))
    plan.gone += [path for path in missing if not known[path].vanished and not os.path.exists(path)]
    return plan


def _place(crop: Crop, known: dict[str, Known], plan: Plan) -> None:
    """Add a crop to the list of the plan that it belongs to."""
    old = known.get(crop.path)
    try:
        crop.path.encode()
        about_file = os.stat(crop.path)
    except UnicodeEncodeError:
        plan.unreadable.append(f"{crop.path}: its name is not UTF-8; rename it")
        return
    except OSError as error:
        plan.unreadable.append(f"{crop.path}: {error.strerror}")
        if old and not old.vanished and isinstance(error, FileNotFoundError):
            plan.gone.append(crop.path)
        return
    if old is None or (old.size, old.modified) != (about_file.st_size, about_file.st_mtime_ns):
        plan.embed.append(crop)
        return
    if old.vanished:
        plan.back.append(crop.path)
    if any(old.values.get(name) != value for name, value in crop.values.items()):
        plan.describe.append(crop)
    elif not old.vanished:
        plan.unchanged += 1


def _shard_of(path: str, count: int) -> int:
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count + 1


def embed(crops: Sequence[Crop], gallery: Gallery, embedder: Embedder, known: dict[str, Known]) -> dict[str, str]:
    """Embed crops and write them, CHUNK at a time, with a progress bar.

    Columns of known crops stay, except those that `crops` name.

    Returns:
        What is wrong with unreadable crops, by path.
    """
    size = embedder.description.image_size
    images = np.empty((CHUNK, *size, 3), np.uint8)
    rows: list[dict[str, Any]] = []
    faults = {}

    def read(path: Path) -> tuple[np.ndarray, os.stat_result]:
        # The file's state from before it is read: a change while it is read shows at the next call.
        about_file = os.stat(path)
        return read_picture(path).resized(size, "bilinear"), about_file

    def write() -> None:
        if rows:
            # A short last chunk is filled up with older pictures, so that no second shape is compiled.
            whole = max(len(rows), min(len(crops), embedder.batch_size))
            features = embedder(images[:whole])[: len(rows)]
            for row, light in zip(rows, mean_luminance(images[: len(rows)]) / 255, strict=True):
                row["brightness"] = float(light)
            gallery.add(rows, features, replace=any(row["path"] in known for row in rows))
            rows.clear()

    paths = [Path(crop.path) for crop in crops]
    for index, result in in_parallel(_or_fault(read), paths, "embedding"):
        if isinstance(result, InputError):
            faults[crops[index].path] = str(result)
            continue
        images[len(rows)], about_file = result
        file = {"size": about_file.st_size, "modified": about_file.st_mtime_ns}
        crop = crops[index]
        before = known[crop.path].values if crop.path in known else {}
        rows.append({"path": crop.path, **before, **crop.values, **file})
        if len(rows) == CHUNK:
            write()
    write()
    return faults


def _or_fault(read: Callable[[Path], Result]) -> Callable[[Path], Result]:
    """Return `read` with an OSError turned into an InputError."""

    def call(path: Path) -> Result:
        try:
            return read(path)
        except OSError as error:
            raise InputError(f"cannot read the image {path}: {error.strerror}") from error

    return call


def describe(crops: Sequence[Crop], gallery: Gallery) -> None:
    """Change the columns that the crops name; features and other columns stay."""
    for start in range(0, len(crops), CHUNK):
        part = {crop.path: crop for crop in crops[start : start + CHUNK]}
        columns = [name for name in gallery.columns if name != "vanished"]
        table, features = gallery.read(one_of("path", list(part)), columns)
        rows = [row | part[row["path"]].values for row in table.to_pylist()]
        gallery.add(rows, features, replace=True)


def warn_unreadable(faults: Sequence[str], shown: int = 5) -> None:
    """Print a warning for each of the first faults, and how many more there are."""
    for text in faults[:shown]:
        say(f"warning: left out: {text}", error=True)
    if len(faults) > shown:
        say(f"warning: {len(faults) - shown:,} more crops were left out", error=True)
