"""List the images in folders, and the files that are not read, each with its reason."""

import collections
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError, printable

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp"}
SPLITS = ("train", "query", "gallery")
# Files and folders that operating systems and network drives create, and whose names do not begin with a dot.
SYSTEM_NAMES = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "#recycle", "$recycle.bin"}
Rows = list[tuple[Path, int, int]]  # path, identity, camera

HIDDEN = "hidden or of the system"
NO_FOLDER = "outside the identities' folders"
OTHER_FOLDER = "in folders other than train, query and gallery"
WITHOUT_IMAGES = "sub-folders without images"
NOBODY = "of unknown identity"
OTHER_CAMERA = "of test people from a camera outside the protocol"
ONE_CAMERA = "of test people without images from both cameras of the protocol"


@dataclasses.dataclass
class Listing:
    """The images and other files that a reader finds.

    Attributes:
        rows: {split: its images, each with identity and camera}.
        unnamed: images whose file names contain no identity and camera.
        nested: images in sub-folders, where the layout has no images.
        skipped: {reason: files that are not read}. Messages write a number in front of the reason, as in "3 hidden".
        notes: remarks for the user about how the names were interpreted.
        version: the version of the data set; "" if it has only one.
    """

    rows: dict[str, Rows] = dataclasses.field(default_factory=lambda: {split: [] for split in SPLITS})
    unnamed: list[Path] = dataclasses.field(default_factory=list)
    nested: list[Path] = dataclasses.field(default_factory=list)
    skipped: dict[str, list[Path]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    notes: list[str] = dataclasses.field(default_factory=list)
    version: str = ""

    def images(self, folder: Path, required: bool = True) -> list[Path]:
        """Return a folder's images, sorted. Record its other files, and the images in its sub-folders.

        Raises:
            InputError: images are `required`, and neither the folder nor its sub-folders contain any.
        """
        images, folders = self.entries(folder)
        nested = [path for inner in folders for path in self.images_below(inner)]
        self.nested += nested
        if not images and not nested and required:
            raise InputError(f"{folder} has no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
        return images

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return a folder's images and its sub-folders, sorted, and record its other files."""
        images, folders = [], []
        for path, is_folder in _scan(folder):
            if is_hidden(path.name):
                self.skipped[HIDDEN].append(path)
            elif is_folder:
                folders.append(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(path)
            else:
                self.skipped[f"with suffix {printable(path.suffix.lower(), 10) or 'none'}"].append(path)
        return images, folders

    def images_below(self, folder: Path) -> list[Path]:
        """Return the images in a folder at any depth; record the folder itself if it contains no images."""
        found = []
        for place, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            names = sorted(name for name in files if not is_hidden(name))
            found += [Path(place, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            self.skipped[WITHOUT_IMAGES].append(folder)
        return found


def is_hidden(name: str) -> bool:
    """Return whether a file or folder with this name is hidden or belongs to the system, so that it is not read."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def lies_hidden(entry: str) -> bool:
    """Return whether a listed path is hidden, or lies in a hidden folder below the list's folder."""
    parts = entry.replace("\\", "/").split("/")
    # An absolute path may lead through a hidden folder of the user, such as ~/.cache: look at its last part only.
    return any(is_hidden(part) for part in (parts if parts[0] else parts[-1:]) if part not in (".", ".."))


def sub_folders(folder: Path) -> list[Path]:
    """Return a folder's sub-folders that are not hidden, sorted."""
    return [path for path, is_folder in _scan(folder) if is_folder and not is_hidden(path.name)]


def found_below(root: Path, here: Callable[[Path], bool]) -> list[Path]:
    """Return the folders for which `here` is true: those one level below `root`, or else those two levels below."""
    level = [root]
    for _ in range(2):
        # Look into at most 1000 folders: enough for the folder that an archive was unpacked into, and quick in any
        # other.
        level = [inner for folder in level for inner in sub_folders(folder)][:1000]
        if found := [folder for folder in level if here(folder)]:
            return found
    return []


def _scan(folder: Path) -> list[tuple[Path, bool]]:
    """Return (path, whether it is a folder) of everything in a folder, sorted."""

    def is_folder(entry: os.DirEntry) -> bool:
        # For a link that leads to itself, DirEntry.is_dir raises an error, and Path.is_dir returns False.
        return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()

    with os.scandir(folder) as entries:
        return sorted((folder / entry.name, is_folder(entry)) for entry in entries)


def _raise(error: OSError) -> None:
    raise error
