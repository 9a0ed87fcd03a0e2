"""The images that a reader finds in folders, and the files that it leaves out, each with its reason."""

import collections
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError, printable

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp"}
SPLITS = ("train", "query", "gallery")
# Files and folders of systems and network drives that do not begin with a dot.
SYSTEM_NAMES = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "#recycle", "$recycle.bin"}
Rows = list[tuple[Path, int, int]]  # path, identity, camera

HIDDEN = "hidden or of the system"
NO_FOLDER = "beside the identities' folders"
OTHER_FOLDER = "in folders other than train, query and gallery"
WITHOUT_IMAGES = "sub-folders without images"
NOBODY = "of unknown identity"


@dataclasses.dataclass
class Listing:
    """What a reader finds.

    Attributes:
        rows: per split, the images with identity and camera.
        unnamed: images whose names tell no identity and camera.
        nested: images in sub-folders, where the layout has none.
        skipped: by reason, what is not read. The reason follows a count: "3 hidden".
        notes: what the user must know about how the names were read.
        version: of the data set, where it has several.
    """

    rows: dict[str, Rows] = dataclasses.field(default_factory=lambda: {split: [] for split in SPLITS})
    unnamed: list[Path] = dataclasses.field(default_factory=list)
    nested: list[Path] = dataclasses.field(default_factory=list)
    skipped: dict[str, list[Path]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    notes: list[str] = dataclasses.field(default_factory=list)
    version: str = ""

    def images(self, folder: Path, required: bool = True) -> list[Path]:
        """Return a folder's images, sorted, and note its other files and the images in its sub-folders.

        InputError if images are `required` and there are none, not even in sub-folders.
        """
        images, folders = self.entries(folder)
        nested = [path for inner in folders for path in self.images_below(inner)]
        self.nested += nested
        if not images and not nested and required:
            raise InputError(f"{folder} has no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
        return images

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return a folder's images and its sub-folders, sorted, and note its other files."""
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
        """Return the images in a folder at any depth; note the folder itself if it has no images."""
        found = []
        for place, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            names = sorted(name for name in files if not is_hidden(name))
            found += [Path(place, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            self.skipped[WITHOUT_IMAGES].append(folder)
        return found


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is never data."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def sub_folders(folder: Path) -> list[Path]:
    """Return a folder's sub-folders that are not hidden, sorted."""
    return [path for path, is_folder in _scan(folder) if is_folder and not is_hidden(path.name)]


def found_below(root: Path, here: Callable[[Path], bool]) -> list[Path]:
    """Return the folders that `here` takes for a data set: one level below `root`, or else two levels."""
    level = [root]
    for _ in range(2):
        # Looking into a thousand folders is enough to find an archive's own.
        level = [inner for folder in level for inner in sub_folders(folder)][:1000]
        if found := [folder for folder in level if here(folder)]:
            return found
    return []


def _scan(folder: Path) -> list[tuple[Path, bool]]:
    def is_folder(entry: os.DirEntry) -> bool:
        # A link that leads to itself is no folder; DirEntry.is_dir raises an error for it.
        return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()

    with os.scandir(folder) as entries:
        return sorted((folder / entry.name, is_folder(entry)) for entry in entries)


def _raise(error: OSError) -> None:
    raise error
