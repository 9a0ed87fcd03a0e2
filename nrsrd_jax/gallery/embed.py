"""Embed crops into a gallery: plan what to do, then do it one chunk at a time."""

import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from ..data.crops import Crop, Source, each_crop
from ..errors import say
from ..files import absolute
from ..retrieval.embedding import Embedder
from ..retrieval.files import cameras_for, embed_files
from .about import About
from .conditions import one_of
from .store import Gallery, Known

# How many crops are written at once. If the process is killed, at most this many are lost.
CHUNK = 1024


@dataclasses.dataclass
class Plan:
    """What has to be done to bring a gallery up to date.

    Attributes:
        embed: new crops, and crops whose file has changed.
        describe: crops whose file is unchanged, but whose columns have changed.
        back: paths that had vanished and exist again.
        gone: paths in the gallery, below the given folders, whose file is missing.
        unchanged: how many crops are up to date.
        unreadable: what is wrong with files that cannot be embedded.
    """

    embed: list[Crop] = dataclasses.field(default_factory=list)
    describe: list[Crop] = dataclasses.field(default_factory=list)
    back: list[str] = dataclasses.field(default_factory=list)
    gone: list[str] = dataclasses.field(default_factory=list)
    unchanged: int = 0
    unreadable: list[str] = dataclasses.field(default_factory=list)


def about(embedder: Embedder, model: str | Path) -> About:
    """Return the record that a gallery keeps of its model."""
    return About(
        model=str(absolute(model)),
        identity=embedder.identity(),
        width=embedder.width,
        backbone=embedder.description.backbone,
        software=importlib.metadata.version("nrsrd-jax"),
    )


def check_cameras(sources: Sequence[Source], embedder: Embedder) -> None:
    """Raise InputError if the model needs cameras, and the camera of a crop is unknown to it."""
    if embedder.description.spec.needs_cameras:
        for crop in each_crop(sources):
            cameras_for(embedder.description, [crop.path], [crop.values.get("camera")])


def make_plan(
    sources: Sequence[Source], known: dict[str, Known], shard: tuple[int, int] | None = None, by_camera: bool = False
) -> Plan:
    """Compare the crops in `sources` with the crops that a gallery has.

    Args:
        sources: where the crops are.
        known: the gallery's crops, as `Gallery.known()`.
        shard: (number from 1, count): plan only the crops of this shard, chosen by a hash of their paths.
        by_camera: whether features depend on the camera, so that a crop with another camera is embedded again.

    Returns:
        The Plan.

    Raises:
        InputError: as `each_crop`.
    """
    plan = Plan()
    # A manifest or a single image says nothing about crops that it does not list, so only folders can miss some.
    folders = tuple(f"{source.path}{os.sep}" for source in sources if source.path.is_dir())
    unseen = {path for path in known if path.startswith(folders) and _is_of(path, shard)}
    for crop in each_crop(sources):
        if _is_of(crop.path, shard):
            unseen.discard(crop.path)
            _place(crop, known, plan, by_camera)
    plan.gone += [path for path in sorted(unseen) if not known[path].vanished and not os.path.exists(path)]
    return plan


def _place(crop: Crop, known: dict[str, Known], plan: Plan, by_camera: bool) -> None:
    """Add a crop to the list of the plan that it belongs to."""
    old = known.get(crop.path)
    try:
        # LanceDB stores texts as UTF-8, so it cannot hold a path that does not encode.
        crop.path.encode()
        about_file = os.stat(crop.path)
    except UnicodeEncodeError:
        plan.unreadable.append(f"{crop.path}: its name is not UTF-8; rename it")
        return
    except OSError as error:
        plan.unreadable.append(f"{crop.path}: {error.strerror}")
        # A file that cannot be reached for another reason, such as a missing permission, is not gone.
        if old and not old.vanished and isinstance(error, FileNotFoundError):
            plan.gone.append(crop.path)
        return
    moved = by_camera and old and old.values.get("camera") != crop.values.get("camera")
    if old is None or moved or (old.size, old.modified) != (about_file.st_size, about_file.st_mtime_ns):
        plan.embed.append(crop)
        return
    if old.vanished:
        plan.back.append(crop.path)
    if any(old.values.get(name) != value for name, value in crop.values.items()):
        plan.describe.append(crop)
    elif not old.vanished:
        plan.unchanged += 1


def _is_of(path: str, shard: tuple[int, int] | None) -> bool:
    """Return whether a path belongs to `shard`; without shards, every path does."""
    if not shard:
        return True
    # Python's hash() of a text differs between processes, so shards would overlap.
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shard[1] + 1 == shard[0]


def embed(crops: Sequence[Crop], gallery: Gallery, embedder: Embedder, known: dict[str, Known]) -> dict[str, str]:
    """Embed crops and write them, CHUNK at a time, with a progress bar.

    Crops that are already `known` keep their columns, except those for which `crops` has values.

    Returns:
        What is wrong with unreadable crops, by path.
    """
    faults = {}
    paths = [crop.path for crop in crops]
    cameras = cameras_for(embedder.description, paths, [crop.values.get("camera") for crop in crops])
    for chunk in embed_files(embedder, paths, size=CHUNK, cameras=cameras):
        faults |= {crops[index].path: str(fault) for index, fault in chunk.faults.items()}
        rows = []
        for index, file, light in zip(chunk.indices, chunk.files, chunk.brightness.tolist(), strict=True):
            crop = crops[index]
            before = known[crop.path].values if crop.path in known else {}
            about_file = {"size": file.st_size, "modified": file.st_mtime_ns, "brightness": light}
            # The last value of a column counts.
            rows.append({"path": crop.path, **before, **crop.values, **about_file})
        if rows:
            gallery.add(rows, chunk.features, replace=any(row["path"] in known for row in rows))
    return faults


def describe(crops: Sequence[Crop], gallery: Gallery) -> None:
    """Write the columns for which the crops have values; features and other columns are kept."""
    for start in range(0, len(crops), CHUNK):
        part = {crop.path: crop for crop in crops[start : start + CHUNK]}
        # Without a value, `vanished` becomes null: these files exist.
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
