"""Which images a data set holds, of whom and from which camera: folders on disk -> records.

Camera numbers are as in the file names; only their equality matters.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
JUNK = -1  # Market-1501's identity for detections that count neither for nor against


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split: paths, and per image the identity and the camera, int64 [N]."""

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
        """Class of each image: the rank of its identity among the sorted identities."""
        return np.unique(self.pids, return_inverse=True)[1].astype(np.int32)

    def hash(self) -> str:
        """SHA-256 over names, identities and cameras: the same files give the same hash wherever they lie."""
        rows = zip((path.name for path in self.paths), self.pids, self.cameras, strict=True)
        return hashlib.sha256("\n".join(f"{n}\t{p}\t{c}" for n, p, c in rows).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
    train: Split
    query: Split
    gallery: Split


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a data set keeps its splits. Of several folders the first that exists is taken.

    `pattern` finds the identity and the camera in a file's name. `download` says how to get the data.
    """

    train: tuple[str, ...]
    query: tuple[str, ...]
    gallery: tuple[str, ...]
    pattern: str
    download: str


# The official pattern takes one digit; two are taken where no further digit follows, for sets of ten cameras and more.
MARKET_PATTERN = r"([-\d]+)_c(\d\d(?!\d)|\d)"
LAYOUTS = {
    "night600": Layout(
        ("bounding_box_train",),
        ("query_3", "query"),
        ("bounding_box_test",),
        MARKET_PATTERN,
        "ask its authors for Night600 (Lu et al., IEEE Transactions on Multimedia 2023)",
    ),
    "market1501": Layout(
        ("bounding_box_train",),
        ("query",),
        ("bounding_box_test",),
        MARKET_PATTERN,
        "get Market-1501 (Zheng et al., ICCV 2015) from its authors",
    ),
    "rgbnt201": Layout(
        ("train_171/RGB",),
        ("test/RGB",),
        ("test/RGB",),
        r"(\d+)_cam(\d)",
        "get RGBNT201 (Zheng et al., AAAI 2021) from its authors",
    ),
    "bright": Layout(
        ("bounding_box_train", "."),
        (),
        (),
        r"([-\d]+)_c(\d+)",
        "any well-lit Re-ID images named <pid>_c<camera>_*.jpg will do, for example the bright half of Syn_Dark",
    ),
}
NAMES = (*LAYOUTS, "msmt17")


def load(name: str, root: str | Path) -> Dataset:
    """Reads a data set's splits from `root`. InputError if it, a folder of it, or every image of one is missing.

    Images named for junk (identity −1) are dropped; distractors (identity 0) stay.
    """
    if name not in NAMES:
        raise InputError(f"data.name is {name!r}; choose one of {', '.join(NAMES)}")
    if not str(root):
        raise InputError("data.root is empty: give the folder of the data set")
    root = Path(root).expanduser()
    if not root.is_dir():
        download = LAYOUTS[name].download if name in LAYOUTS else "get MSMT17 (Wei et al., CVPR 2018) from its authors"
        raise InputError(f"no folder {root} for data set {name}: {download}, then give its folder as data.root")
    if name == "msmt17":
        return _load_msmt17(root)
    layout = LAYOUTS[name]
    empty = _split([])
    return Dataset(
        *(
            _read_folder(_first_folder(root, folders), layout.pattern) if folders else empty
            for folders in (layout.train, layout.query, layout.gallery)
        )
    )


def load_bright(root: str | Path, option: str = "aux.bright_root") -> Split:
    """The images of a bright auxiliary folder, in `root/bounding_box_train` or in `root` itself."""
    if not str(root) or not Path(root).expanduser().is_dir():
        raise InputError(f"{option} is {str(root)!r}, not a folder: {LAYOUTS['bright'].download}")
    return load("bright", root).train


def find_dark_twins(bright: Split, dark_root: str | Path) -> tuple[Split, Split]:
    """The bright images that have a dark image of the same file name, and those dark images."""
    dark = {path.name: path for path in load_bright(dark_root, "aux.dark_root").paths}
    kept = [i for i, path in enumerate(bright.paths) if path.name in dark]
    if not kept:
        raise InputError(f"no image in {dark_root} has the file name of a bright one ({bright.paths[0].name}, …)")
    pids, cameras = bright.pids[kept], bright.cameras[kept]
    paths = [bright.paths[i] for i in kept]
    return Split(tuple(paths), pids, cameras), Split(tuple(dark[p.name] for p in paths), pids, cameras)


def _first_folder(root: Path, folders: Sequence[str]) -> Path:
    for folder in folders:
        if (root / folder).is_dir():
            return root / folder
    raise InputError(f"{root} has no folder {' or '.join(folders)}")


def _split(rows: Sequence[tuple[Path, int, int]]) -> Split:
    rows = [row for row in rows if row[1] != JUNK]
    paths = tuple(row[0] for row in rows)
    pids, cameras = (np.array([row[i] for row in rows], np.int64) for i in (1, 2))
    return Split(paths, pids, cameras)


def _read_folder(folder: Path, pattern: str) -> Split:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder} has no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    found = [re.search(pattern, path.name) for path in files]
    unnamed = [path for path, match in zip(files, found, strict=True) if match is None]
    if unnamed:
        raise InputError(
            f"{unnamed[0]}: no identity and camera in its name, which should look like 0001_c1_000000.jpg "
            f"({len(unnamed)} such of {len(files)} images); rename or remove them"
        )
    return _split(
        [(path, int(match[1]), int(match[2])) for path, match in zip(files, found, strict=True) if match is not None]
    )


def _load_msmt17(root: Path) -> Dataset:
    """MSMT17 V1 (train/, test/) or V2 (mask_*_v2/): lists of "path pid"; the camera is the name's third field."""
    train = _first_folder(root, ("train", "mask_train_v2"))
    test = _first_folder(root, ("test", "mask_test_v2"))

    def read(folder: Path, *lists: str) -> Split:
        rows = []
        for name in lists:
            path = root / f"list_{name}.txt"
            if not path.is_file():
                raise InputError(f"{path} is missing; MSMT17 comes with it")
            for line in filter(str.strip, path.read_text().splitlines()):
                match = re.fullmatch(r"(\S*?[^/\s_]+_[^/\s_]+_(\d+)\S*)\s+(-?\d+)\s*", line)
                if match is None:
                    raise InputError(
                        f'{path}: {line!r} is not "path identity" with the camera as the name\'s third field'
                    )
                rows.append((folder / match[1], int(match[3]), int(match[2])))
        return _split(rows)

    return Dataset(read(train, "train", "val"), read(test, "query"), read(test, "gallery"))
