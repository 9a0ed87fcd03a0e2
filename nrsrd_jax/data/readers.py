"""How each kind of data set lies on disk: where its splits are, and where identity and camera are written.

Camera numbers are as in the file names, or the rank of a camera's name; only their equality matters.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
SPLITS = ("train", "query", "gallery")
Rows = list[tuple[Path, int, int]]  # path, identity, camera


@dataclasses.dataclass
class Listing:
    """What a reader finds: rows per split; images without identity and camera; files that are no images."""

    rows: dict[str, Rows] = dataclasses.field(default_factory=lambda: {split: [] for split in SPLITS})
    unnamed: list[Path] = dataclasses.field(default_factory=list)
    ignored: list[Path] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of data set: `read(root, protocol)` lists it; `protocols` are its ways of testing, the first the default.

    As published, where known: `published` images by protocol and split, `identities` by split, `cameras` in all.
    `download` says how to get the data.
    """

    read: Callable[[Path, str], Listing]
    download: str
    published: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    identities: dict[str, int] = dataclasses.field(default_factory=dict)
    cameras: int | None = None
    protocols: tuple[str, ...] = ("",)
    distractor: int | None = 0  # the identity of gallery images of nobody in particular
    same_numbers: bool = True  # whether an identity's number is of the same person in training and test

    def images(self, protocol: str) -> dict[str, int]:
        """The published numbers of images of a protocol ("": the default), as far as known."""
        return self.published.get(protocol or self.protocols[0], {})


def _folders(
    train: str, query: str, gallery: str, pattern: str, cameras: tuple[str, ...] = ()
) -> Callable[[Path, str], Listing]:
    """A reader of one folder per split, `a|b` the first that exists. `pattern` finds identity and camera in a name."""

    def read(root: Path, protocol: str) -> Listing:
        listing = Listing()
        for split, folders in zip(SPLITS, (train, query, gallery), strict=True):
            if not folders:
                continue
            folder = _first_folder(root, folders.split("|"))
            for path in _images(folder, listing):
                if match := re.search(pattern, path.name):
                    camera = cameras.index(match[2]) if cameras else int(match[2])
                    listing.rows[split].append((path, int(match[1]), camera))
                else:
                    listing.unnamed.append(path)
        return listing

    return read


def _first_folder(root: Path, folders: Sequence[str]) -> Path:
    for folder in folders:
        if (root / folder).is_dir():
            return root / folder
    raise InputError(f"{root} has no folder {' or '.join(folders)}")


def _images(folder: Path, listing: Listing, required: bool = True) -> list[Path]:
    """The images in a folder, sorted; other files are noted. InputError if there are none and some are `required`."""
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    listing.ignored += [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    if not images and required:
        raise InputError(f"{folder} has no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def _read_nightreid(root: Path, protocol: str) -> Listing:
    query, gallery, *_ = NIGHTREID[protocol]
    cameras = ("L1", "L2", "L3", "R1", "R2", "R3")
    return _folders("bounding_box_train", query, gallery, r"(\d{4})([LR][123])C", cameras)(root, protocol)


def _read_msmt17(root: Path, protocol: str) -> Listing:
    """V1 (train/, test/) or V2 (mask_*_v2/): lists of "path pid"; the camera is the name's third field."""
    train = _first_folder(root, ("train", "mask_train_v2"))
    test = _first_folder(root, ("test", "mask_test_v2"))
    listing = Listing()
    lists = (("train", "train", train), ("train", "val", train), ("query", "query", test), ("gallery", "gallery", test))
    for split, name, folder in lists:
        path = root / f"list_{name}.txt"
        if not path.is_file():
            raise InputError(f"{path} is missing; MSMT17 comes with it")
        for line in filter(str.strip, os.fsdecode(path.read_bytes()).splitlines()):
            match = re.fullmatch(r"(\S*?[^/\s_]+_[^/\s_]+_(\d{1,9})\S*)\s+(-?\d{1,18})\s*", line)
            if match is None:
                raise InputError(f'{path}: {line!r} is not "path identity" with the camera as the name\'s third field')
            listing.rows[split].append((folder / match[1], int(match[3]), int(match[2])))
    return listing


def _read_knight(root: Path, protocol: str) -> Listing:
    """<id>/camX_NNN.jpg: even identities train, odd ones test; query and gallery are the protocol's two cameras."""
    listing, cameras = Listing(), [int(camera) for camera in protocol.split("-")]
    for folder in _identity_folders(_first_folder(root, ("NightPerson/Person", "Person", "."))):
        if not re.fullmatch(r"\d{1,18}", folder.name):
            raise InputError(f"{folder}: Knight's folders are called by identity numbers")
        pid = int(folder.name)
        rows = []
        for path in _images(folder, listing, required=False):
            if match := re.match(r"cam(\d)_", path.name):
                rows.append((path, pid, int(match[1])))
            else:
                listing.unnamed.append(path)
        if pid % 2 == 0:
            listing.rows["train"] += rows
        elif set(cameras) <= {row[2] for row in rows}:
            listing.rows["query"] += [row for row in rows if row[2] == cameras[0]]
            listing.rows["gallery"] += [row for row in rows if row[2] == cameras[1]]
    return listing


def _identity_folders(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if not found:
        raise InputError(f"{folder} has no folders, one per identity")
    return found


def _read_identity_folders(root: Path, protocol: str) -> Listing:
    """train/, query/ and gallery/ (or none of them: all for training), in each a folder per identity.

    The camera is in a file's name, as c3 or cam3; if it is in none, every image has camera 0.
    """
    listing = Listing()
    homes = {split: root / split for split in SPLITS if (root / split).is_dir()} or {"train": root}
    found = [
        (split, folder.name, path, re.search(r"(?:^|[^a-zA-Z])c(?:am)?(\d{1,9})", path.name))
        for split, home in homes.items()
        for folder in _identity_folders(home)
        for path in _images(folder, listing, required=False)
    ]
    if not found:
        raise InputError(f"{root} has no images in its folders")
    with_cameras = any(match for *_, match in found)
    numbers = _numbers([identity for _, identity, _, _ in found])
    for (split, _, path, match), pid in zip(found, numbers, strict=True):
        if match or not with_cameras:
            listing.rows[split].append((path, pid, int(match[1]) if match else 0))
        else:
            listing.unnamed.append(path)
    return listing


def _read_manifest(file: Path, protocol: str) -> Listing:
    """A CSV file with the columns path, pid, split (train, query or gallery), perhaps camera; paths relative to it."""
    listing = Listing()
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns = set(reader.fieldnames or ())
            if missing := {"path", "pid", "split"} - columns:
                raise InputError(f"{file} has no column {', '.join(sorted(missing))}; it takes path,pid,camera,split")
            without_cameras = {} if "camera" in columns else {"camera": "0"}
            rows = [(reader.line_num, without_cameras | {k: (v or "").strip() for k, v in row.items()
                                                         if isinstance(v, str | None)})
                    for row in reader]  # fmt: skip
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the manifest {file}: {error}") from error
    for number, row in rows:
        if row["split"] not in SPLITS or not all(row[n] for n in ("path", "pid", "camera")) or "\0" in row["path"]:
            raise InputError(f"{file}, line {number}: it takes a path, a pid, a camera and train, query or gallery")
    numbers = (_numbers([row[name] for _, row in rows]) for name in ("pid", "camera"))
    for (_, row), pid, camera in zip(rows, *numbers, strict=True):
        listing.rows[row["split"]].append((file.parent / row["path"], pid, camera))
    return listing


def _numbers(names: Sequence[str]) -> list[int]:
    """Names as numbers: what they say if all are whole numbers, else the rank of each among them."""
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return [int(name) for name in names]
    ranks = {name: rank for rank, name in enumerate(sorted(set(names)))}
    return [ranks[name] for name in names]


# The official pattern takes one digit; two are taken where no further digit follows, for sets of ten cameras and more.
MARKET_PATTERN = r"(?<![-\w])(-?\d{1,18})_c(\d\d(?!\d)|\d)"
NIGHTREID = {  # by protocol: query and gallery folder, and how many images they hold
    "528": ("query", "bounding_box_test", 1394, 26111),
    "528-no-distractors": ("query", "bounding_box_test-528-noDistractors", 1394, 14300),
    "1000": ("query-1000", "bounding_box_test_withDistractors", 2637, 37725),
    "1000-no-distractors": ("query-1000", "bounding_box_test-1000-noDistractors", 2637, 25914),
}
SOURCES = {
    "night600": Source(
        _folders("bounding_box_train", "query_3|query", "bounding_box_test", MARKET_PATTERN),
        "ask its authors for Night600 (Lu et al., IEEE Transactions on Multimedia 2023)",
        {"": {"train": 14462, "query": 2180, "gallery": 14351}},
        identities={"train": 300},
        cameras=8,
    ),
    "market1501": Source(
        _folders("bounding_box_train", "query", "bounding_box_test", MARKET_PATTERN),
        "get Market-1501 (Zheng et al., ICCV 2015) from its authors",
        {"": {"train": 12936, "query": 3368, "gallery": 15913}},
        identities={"train": 751, "query": 750},
        cameras=6,
    ),
    "msmt17": Source(
        _read_msmt17,
        "get MSMT17 (Wei et al., CVPR 2018) from its authors",
        {"": {"train": 32621, "query": 11659, "gallery": 82161}},
        identities={"train": 1041, "query": 3060},
        cameras=15,
        same_numbers=False,  # the test identities begin at 0 again
    ),
    "rgbnt201": Source(
        _folders("train_171/RGB", "test/RGB", "test/RGB", r"(?<!\d)(\d{1,18})_cam(\d)"),
        "get RGBNT201 (Zheng et al., AAAI 2021) from its authors",
        {"": {"train": 3951, "query": 836, "gallery": 836}},
        identities={"train": 171, "query": 30},
        cameras=4,
    ),
    "nightreid": Source(
        _read_nightreid,
        "ask the authors of NightReID for it",
        {name: {"train": 15514, "query": q, "gallery": g} for name, (_, _, q, g) in NIGHTREID.items()},
        cameras=6,
        protocols=tuple(NIGHTREID),
    ),
    "knight": Source(_read_knight, "ask the authors of Knight for it", cameras=3, protocols=("1-2", "1-3", "2-3")),
    "bright": Source(
        _folders("bounding_box_train|.", "", "", r"(?<![-\w])(-?\d{1,18})_c(\d{1,9})"),
        "any well-lit Re-ID images named <pid>_c<camera>_*.jpg will do, for example the bright half of Syn_Dark",
    ),
    "folders": Source(
        _read_identity_folders, "make train/, query/ and gallery/, in each a folder per identity", distractor=None
    ),
    "manifest": Source(_read_manifest, "write a CSV file with the columns path,pid,camera,split", distractor=None),
}
