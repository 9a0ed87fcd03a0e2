"""Read a data set from disk: the images of each split, with identity and camera."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, Missing, say
from ..files import expanded
from .crops import CROPS
from .listing import SPLITS, Rows, found_below
from .lists import path_in, read_lines
from .naming import JUNK
from .readers import LAYOUTS, Layout

QUOTES = ' \t"'  # characters that may surround a path in a list
OF_JUNK = f"of identity {JUNK} (junk)"


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split: their paths, and the identity and camera of each, int64 [N]."""

    paths: tuple[Path, ...]
    pids: np.ndarray
    cameras: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def identities(self) -> np.ndarray:
        return np.unique(self.pids)

    @property
    def labels(self) -> np.ndarray:
        """Return the class of each image: the rank of its identity among the sorted identities."""
        return np.unique(self.pids, return_inverse=True)[1].astype(np.int32)

    @property
    def camera_ranks(self) -> np.ndarray:
        """Return the rank of each image's camera among the sorted cameras, int32 [N]."""
        return np.unique(self.cameras, return_inverse=True)[1].astype(np.int32)

    def subset(self, rows: np.ndarray) -> "Split":
        """Return the images with these indices."""
        return Split(tuple(self.paths[row] for row in rows), self.pids[rows], self.cameras[rows])

    def hash(self) -> str:
        """Return the SHA-256 of names, identities and cameras; it does not depend on the folder."""
        # A name need not be UTF-8, so hash its bytes.
        rows = zip((os.fsencode(path.name) for path in self.paths), self.pids, self.cameras, strict=True)
        return hashlib.sha256(b"\n".join(b"%s\t%d\t%d" % row for row in rows)).hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a data set, and the files that were not read.

    Attributes:
        train, query, gallery: the splits.
        unnamed: images whose file names contain no identity and camera.
        skipped: {reason: files that are left out}. Messages write a number in front of the reason, as in "3 hidden".
        notes: remarks for the user about how the names were interpreted.
        source: the kind of data set: a key of LAYOUTS, or CROPS.
        protocol: the layout's test protocol; "" if it has only one.
        version: the version of the data set; "" if it has only one.
    """

    train: Split
    query: Split
    gallery: Split
    unnamed: tuple[Path, ...] = ()
    skipped: dict[str, tuple[Path, ...]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    protocol: str = ""
    version: str = ""

    def remarks(self) -> list[str]:
        """Return the notes, and a line that says which files were not read and why, if any."""
        counts = ", ".join(f"{len(paths)} {reason}" for reason, paths in self.skipped.items())
        return [*self.notes, *([f"not read: {counts}"] if counts else [])]


def read_dataset(name: str, root: str | Path, *, protocol: str = "", exclude: Collection[Path] = ()) -> Dataset:
    """Read a data set, and print which files were not read.

    Args:
        name: the kind of data set, a key of LAYOUTS.
        root: its folder, or the manifest's file.
        protocol: one of the layout's protocols; "" for the first.
        exclude: images to leave out.

    Returns:
        The data set. Junk images (identity −1) are left out; distractors (identity 0) stay.

    Raises:
        InputError: the data set cannot be read, or an image's name contains no identity and camera.
    """
    data = survey(name, root, protocol=protocol, exclude=exclude)
    if data.unnamed:
        raise InputError(
            f"{data.unnamed[0]}: no identity and camera in its name, as {name} writes them "
            f"({len(data.unnamed)} such images); rename or remove them, or list them with "
            f"`nrsrd check {name} {root} --fix-list bad.txt` and set data.exclude=bad.txt"
        )
    say(*(f"{name} in {root}: {remark}" for remark in data.remarks()))
    return data


def survey(name: str, root: str | Path, *, protocol: str = "", exclude: Collection[Path] = ()) -> Dataset:
    """Read a data set as `read_dataset` does, but print nothing and put images without an identity into `unnamed`."""
    if name not in LAYOUTS:
        raise InputError(f"data.name is {name!r}; choose one of {', '.join(LAYOUTS)}, or {CROPS} for a pretraining")
    source = LAYOUTS[name]
    if not str(root):
        raise Missing(f"the root of data set {name} is empty: give its folder as data.root or eval.data.root")
    root = expanded(root)
    if not root.exists():
        raise Missing(
            f"no folder {root} for data set {name}: {source.download}, then give its folder as data.root, or correct "
            "the path"
        )
    protocol = protocol or source.protocols[0]
    if protocol not in source.protocols:
        choices = ", ".join(filter(None, source.protocols)) or "none, so leave it empty"
        raise InputError(f"data.protocol is {protocol!r}; the protocols of {name} are: {choices}")
    _refuse_another_place(name, source, root)
    listing = source.read(root, protocol)
    # Compare real paths, so that links and relative paths in the list match too.
    left_out = {os.path.realpath(path) for path in exclude}

    def wanted(path: Path) -> bool:
        # realpath asks the file system about each folder on the way, so skip it if nothing is excluded.
        return not left_out or os.path.realpath(path) not in left_out

    # Two splits may share a folder (rgbnt201), whose files are then listed twice.
    nested = list(filter(wanted, dict.fromkeys(listing.nested)))
    if nested:
        raise InputError(
            f"{len(nested)} images lie in sub-folders, where {name} has no images, so they would not be read "
            f"({nested[0]}, …): move them into the folder above, or give the data set's own folder"
        )

    def split(rows: Rows) -> Split:
        rows = [row for row in rows if row[1] != JUNK and wanted(row[0])]
        pids, cameras = (np.array([row[i] for row in rows], np.int64) for i in (1, 2))
        return Split(tuple(row[0] for row in rows), pids, cameras)

    unnamed = tuple(filter(wanted, dict.fromkeys(listing.unnamed)))
    train, query, gallery = (split(listing.rows[name]) for name in SPLITS)
    junk = [path for rows in listing.rows.values() for path, pid, _ in rows if pid == JUNK]
    skipped = {reason: tuple(dict.fromkeys(paths)) for reason, paths in {**listing.skipped, OF_JUNK: junk}.items()}
    skipped = {reason: paths for reason, paths in skipped.items() if paths}
    return Dataset(train, query, gallery, unnamed, skipped, tuple(listing.notes), name, protocol, listing.version)


def _refuse_another_place(name: str, source: Layout, root: Path) -> None:
    """Raise InputError if the data set is not in `root` itself, but in a sub-folder of it or in a packed archive."""
    if root.is_file() and name != "manifest":
        raise InputError(f"{root} is a file: unpack it, and give the folder of data set {name}")
    if source.here(root):
        return
    # Users often give the folder that an archive was unpacked into, one or two levels above the data set.
    found = found_below(root, source.here)
    if len(found) == 1:
        raise InputError(f"{root} is not the folder of data set {name}: it is in {found[0]}; give that folder")
    if found:
        some = ", ".join(map(str, found[:5])) + (", …" if len(found) > 5 else "")
        raise InputError(
            f"{root} is not the folder of data set {name}; {len(found)} folders in it look like one: {some}; give one "
            "of them"
        )


def read_bright(root: str | Path, option: str = "aux.bright_root", exclude: Collection[Path] = ()) -> Split:
    """Read the images of a bright auxiliary folder, from `root/bounding_box_train` or else from `root` itself.

    Raises:
        InputError: `root`, the value of `option`, is not such a folder.
    """
    if not str(root) or not expanded(root).is_dir():
        raise Missing(f"{option} is {str(root)!r}, not a folder: {LAYOUTS['bright'].download}")
    return read_dataset("bright", root, exclude=exclude).train


def join(splits: Sequence[Split]) -> Split:
    """Join splits of several data sets. Renumber identities and cameras, so that no two data sets share a number."""
    # A single data set keeps its own numbers, because the description of the model names its classes by them.
    if len(splits) == 1:
        return splits[0]
    numbers: list[list[np.ndarray]] = [[], []]
    for name, column in zip(("pids", "cameras"), numbers, strict=True):
        start = 0
        for split in splits:
            values, ranks = np.unique(getattr(split, name), return_inverse=True)
            column.append(start + ranks)
            start += len(values)
    pids, cameras = (np.concatenate(column).astype(np.int64) for column in numbers)
    return Split(tuple(path for split in splits for path in split.paths), pids, cameras)


def find_dark_twins(bright: Split, dark_root: str | Path, exclude: Collection[Path] = ()) -> tuple[Split, Split]:
    """Return the bright images that have a dark image of the same file name, and these dark images.

    Raises:
        InputError: no bright image has one, or `dark_root` cannot be read.
    """
    if not len(bright):
        raise InputError("there are no bright images: data.exclude leaves out all of them")
    dark = {path.name: path for path in read_bright(dark_root, "aux.dark_root", exclude).paths}
    kept = [i for i, path in enumerate(bright.paths) if path.name in dark]
    if not kept:
        raise InputError(f"no image in {dark_root} has the file name of a bright image ({bright.paths[0].name}, …)")
    pids, cameras = bright.pids[kept], bright.cameras[kept]
    paths = [bright.paths[i] for i in kept]
    return Split(tuple(paths), pids, cameras), Split(tuple(dark[p.name] for p in paths), pids, cameras)


def read_exclude(file: str | Path) -> frozenset[Path]:
    """Read the paths in a file, one per line, as `check --fix-list` writes them; return no paths if `file` is "".

    Raises:
        InputError: the file cannot be read, is not UTF-8, or none of its paths exists.
    """
    if not str(file):
        return frozenset()
    try:
        lines = [line for _, line in read_lines(expanded(file), any_bytes=True) if line.strip(QUOTES)]
    except InputError as error:
        raise InputError(f"data.exclude: {error}") from error
    paths = frozenset(_excluded(line) for line in lines)
    lost = sorted(path for path in paths if not os.path.lexists(path))
    # The list may name files whose names are not UTF-8. Their bytes were decoded to these characters.
    if unencoded := [path for path in lost if any("\udc80" <= c <= "\udcff" for c in str(path))]:
        raise InputError(
            f"{unencoded[0]} in data.exclude {file} does not exist, and is not UTF-8; the list is probably saved as "
            "Latin-1: save it as UTF-8"
        )
    if lost and len(lost) == len(paths):
        raise InputError(
            f"none of the {len(paths)} files in data.exclude {file} exists ({lost[0]}, …); paths are absolute or "
            "relative to the current folder"
        )
    if lost:
        say(f"warning: {len(lost)} of the {len(paths)} files in {file} do not exist ({lost[0]}, …)", error=True)
    return paths


def _excluded(line: str) -> Path:
    """Return the path in a line. Remove spaces and quotes around it, unless a file with exactly that name exists."""
    exact = path_in(Path(), line)
    return exact if os.path.lexists(exact) else path_in(Path(), line.strip(QUOTES))
