"""Readers for each kind of data set. They know where its splits are, and where identity and camera are written.

A camera's number is the one in the file names, or the rank of its name. The program only compares cameras for equality.
A name is read completely or refused, because half a number would be another identity or camera.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError
from .listing import (
    HIDDEN,
    NO_FOLDER,
    NOBODY,
    ONE_CAMERA,
    OTHER_CAMERA,
    OTHER_FOLDER,
    SPLITS,
    Listing,
    Rows,
    lies_hidden,
    sub_folders,
)
from .lists import path_in, quoted, read_lines, read_table
from .naming import NO_CAMERA, WHOLE, as_numbers, camera_in, is_unknown, manifest_label


@dataclasses.dataclass(frozen=True)
class Layout:
    """A kind of data set.

    Attributes:
        read: read(root, protocol) returns the Listing of the data set.
        here: here(root) returns whether `root` looks like its folder.
        download: how to get the data, for error messages.
        published: {protocol: {split: number of images}} as published; {} if unknown.
        identities: {split: number of identities} as published; {} if unknown.
        cameras: the published number of cameras; None if unknown.
        protocols: its test protocols; the first is the default.
        distractor: the identity of gallery images that show nobody of the data set; None if there are no such images.
        same_numbers: whether a number means the same person in training and test.
    """

    read: Callable[[Path, str], Listing]
    here: Callable[[Path], bool]
    download: str
    published: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    identities: dict[str, int] = dataclasses.field(default_factory=dict)
    cameras: int | None = None
    protocols: tuple[str, ...] = ("",)
    distractor: int | None = 0
    same_numbers: bool = True

    def images(self, protocol: str) -> dict[str, int]:
        """Return {split: published number of images} of a protocol ("" for the default); {} if unknown."""
        return self.published.get(protocol or self.protocols[0], {})


def _holds(*names: str) -> Callable[[Path], bool]:
    return lambda root: any((root / name).exists() for name in names)


def _folders(
    train: str, query: str, gallery: str, pattern: str, cameras: tuple[str, ...] = ()
) -> Callable[[Path, str], Listing]:
    """Return a reader of data sets with one folder per split.

    Args:
        train, query, gallery: the folder of each split; "a|b" for the first that exists, "" for no folder.
        pattern: a regular expression for the beginning of file names. Its groups are identity and camera.
        cameras: the names of the cameras; () if they are numbers.
    """

    def read(root: Path, protocol: str) -> Listing:
        listing = Listing()
        for split, folders in zip(SPLITS, (train, query, gallery), strict=True):
            if not folders:
                continue
            for path in listing.images(_first_folder(root, folders.split("|"))):
                if match := re.match(pattern, path.name):
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


def _read_nightreid(root: Path, protocol: str) -> Listing:
    query, gallery, *_ = NIGHTREID[protocol]
    cameras = ("L1", "L2", "L3", "R1", "R2", "R3")
    return _folders("bounding_box_train", query, gallery, r"(\d{4,18})([LR][123])C", cameras)(root, protocol)


def _read_msmt17(root: Path, protocol: str) -> Listing:
    """Read V1 (train/, test/) or V2 (mask_*_v2/) by its lists of "path pid"; the camera is a name's third field."""
    train = _first_folder(root, ("train", "mask_train_v2"))
    test = _first_folder(root, ("test", "mask_test_v2"))
    versions = ["V2" if folder.name.startswith("mask_") else "V1" for folder in (train, test)]
    mixed = len(set(versions)) > 1
    listing = Listing(version="{} in training, {} in test".format(*versions) if mixed else versions[0])
    # The 32,621 published training images are those of both lists, train and val.
    lists = (("train", "train", train), ("train", "val", train), ("query", "query", test), ("gallery", "gallery", test))
    for split, name, folder in lists:
        file = root / f"list_{name}.txt"
        if not file.is_file():
            raise InputError(f"{file} is missing; copy it from the archive of MSMT17")
        for number, line in read_lines(file):
            if not (line := line.strip()):
                continue
            # The identity follows the last separator, because a path may contain spaces.
            identity = re.split(r"[\s,;]", line)[-1]
            entry = line.removesuffix(identity).rstrip(" \t,;")
            path = path_in(folder, entry)
            match = re.match(rf"[^_]+_[^_]+_(\d{{1,9}}){WHOLE}", path.name)
            if match is None or not re.fullmatch(r"-?\d{1,18}", identity):
                raise InputError(
                    f'{file}, line {number}: {quoted(line)} is not "path identity" with the camera as the name\'s '
                    "third field"
                )
            if lies_hidden(entry):
                listing.skipped[HIDDEN].append(path)
            else:
                listing.rows[split].append((path, int(identity), int(match[1])))
    return listing


def _read_knight(root: Path, protocol: str) -> Listing:
    """Read <id>/camX_NNN.jpg. Even identities are for training, odd ones for testing on the protocol's two cameras."""
    listing, cameras = Listing(), [int(camera) for camera in protocol.split("-")]
    people: dict[int, Rows] = {}
    for folder in _identity_folders(_first_folder(root, ("NightPerson/Person", "Person", ".")), listing):
        if not re.fullmatch(r"\d{1,18}", folder.name):
            raise InputError(f"{folder}: the names of Knight's folders must be identity numbers")
        rows = people.setdefault(int(folder.name), [])
        for path in listing.images(folder, required=False):
            if match := re.match(rf"cam(\d{{1,9}}){WHOLE}", path.name):
                rows.append((path, int(folder.name), int(match[1])))
            else:
                listing.unnamed.append(path)
    for pid, rows in people.items():
        if pid % 2 == 0:
            listing.rows["train"] += rows
        # Without images from both cameras, a person would be a query without a match, or match no query.
        elif set(cameras) <= {row[2] for row in rows}:
            listing.rows["query"] += [row for row in rows if row[2] == cameras[0]]
            listing.rows["gallery"] += [row for row in rows if row[2] == cameras[1]]
            listing.skipped[OTHER_CAMERA] += [row[0] for row in rows if row[2] not in cameras]
        else:
            listing.skipped[ONE_CAMERA] += [row[0] for row in rows]
    return listing


def _identity_folders(folder: Path, listing: Listing) -> list[Path]:
    images, found = listing.entries(folder)
    listing.skipped[NO_FOLDER] += images
    if not found:
        raise InputError(f"{folder} has no sub-folders; put the images of each identity into one")
    return found


def _split_folders(root: Path) -> dict[str, Path]:
    """Return {split: folder} for those of train, query and gallery that exist, in upper or lower case.

    Raises:
        InputError: two folders differ only in case.
    """
    homes: dict[str, Path] = {}
    for folder in sub_folders(root):
        split = folder.name.casefold()
        if split in homes:
            raise InputError(f"{homes[split]} and {folder} are folders of the same split: keep one")
        if split in SPLITS:
            homes[split] = folder
    return homes


def _read_identity_folders(root: Path, protocol: str) -> Listing:
    """Read train/, query/ and gallery/, each with a folder per identity; without these, `root` as the training folder.

    The camera is a separate field of a file's name, such as c3 or cam3. If no name has one, every image has camera 0.
    """
    listing = Listing()
    homes = _split_folders(root)
    if homes:
        images, folders = listing.entries(root)
        listing.skipped[NO_FOLDER] += images
        for folder in folders:
            if folder not in homes.values():
                listing.skipped[OTHER_FOLDER] += listing.images_below(folder)
    found = []
    for split, home in (homes or {"train": root}).items():
        for folder in _identity_folders(home, listing):
            images = listing.images(folder, required=False)
            if is_unknown(folder.name):
                listing.skipped[NOBODY] += images
            else:
                found += [(split, folder.name, path) for path in images]
    if not found and not listing.nested:
        raise InputError(f"{root} has no images in its folders")
    cameras = _cameras_in_names([path for *_, path in found], root)
    if found and cameras is None:
        listing.notes.append("no file name has a camera as a separate field (c3, cam3): every image has camera 0")
    numbers = as_numbers([name for _, name, _ in found])
    for (split, _, path), pid, camera in zip(found, numbers, cameras or [0] * len(found), strict=True):
        listing.rows[split].append((path, pid, camera))
    return listing


def _cameras_in_names(paths: Sequence[Path], root: Path) -> list[int] | None:
    """Return the camera in each file's name; None if no name has one.

    Raises:
        InputError: only some of the names have a camera.
    """
    cameras = [camera_in(path.stem) for path in paths]
    if all(camera == NO_CAMERA for camera in cameras):
        return None
    without = [path for path, camera in zip(paths, cameras, strict=True) if camera < 0]
    if without:
        others = next((f", others have ({p}, camera {c})" for p, c in zip(paths, cameras, strict=True) if c >= 0), "")
        raise InputError(
            f"{root}: {len(without)} of {len(paths)} file names do not have one camera as a separate field "
            f"({without[0]}){others}: rename them so that all or none have a camera (c3 or cam3 between "
            "underscores), or list the images in a manifest"
        )
    return cameras


def _read_manifest(file: Path, protocol: str) -> Listing:
    """Read a table with the columns path, pid, split (train, query or gallery), and optionally camera."""
    listing = Listing()
    if not file.is_file():
        inside = sorted(path.name for path in file.glob("*.[ct]sv"))
        raise InputError(f"{file} is not a file; a manifest is a CSV file ({', '.join(inside[:5]) or 'it has none'})")
    table = read_table(file, ("path", "pid", "split"), ("camera",))
    with_cameras = any(not is_unknown(row.get("camera", "")) for _, row in table)
    rows = []
    for number, row in table:
        split = row["split"].casefold()
        if not row["path"] or split not in SPLITS:
            raise InputError(
                f"{file}, line {number}: it needs a path and a split, which is train, query or gallery, not "
                f"{quoted(row['split'])}"
            )
        pid, camera = manifest_label(f"{file}, line {number}", row["pid"], row.get("camera", ""), with_cameras)
        path = path_in(file.parent, row["path"])
        if lies_hidden(row["path"]):
            listing.skipped[HIDDEN].append(path)
        elif is_unknown(pid):
            listing.skipped[NOBODY].append(path)
        else:
            rows.append((split, path, pid, camera))
    if rows and not with_cameras:
        listing.notes.append("no row has a camera: every image has camera 0")
    numbers = (as_numbers([row[i] for row in rows]) for i in (2, 3))
    for (split, path, *_), pid, camera in zip(rows, *numbers, strict=True):
        listing.rows[split].append((path, pid, camera))
    return listing


# The camera is all digits of its field. A sequence may follow, as in Market-1501's "c1s1".
MARKET_PATTERN = rf"(-?\d{{1,18}})_c(\d{{1,9}})(?:s\d{{1,9}})?{WHOLE}"
# {protocol: (query folder, gallery folder, number of queries, number of gallery images)}
NIGHTREID = {
    "528": ("query", "bounding_box_test", 1394, 26111),
    "528-no-distractors": ("query", "bounding_box_test-528-noDistractors", 1394, 14300),
    "1000": ("query-1000", "bounding_box_test_withDistractors", 2637, 37725),
    "1000-no-distractors": ("query-1000", "bounding_box_test-1000-noDistractors", 2637, 25914),
}
LAYOUTS = {
    "night600": Layout(
        _folders("bounding_box_train", "query_3|query", "bounding_box_test", MARKET_PATTERN),
        _holds("bounding_box_train"),
        "ask its authors for Night600 (Lu et al., IEEE Transactions on Multimedia 2023)",
        {"": {"train": 14462, "query": 2180, "gallery": 14351}},
        identities={"train": 300},
        cameras=8,
    ),
    "market1501": Layout(
        _folders("bounding_box_train", "query", "bounding_box_test", MARKET_PATTERN),
        _holds("bounding_box_train"),
        "get Market-1501 (Zheng et al., ICCV 2015) from its authors",
        {"": {"train": 12936, "query": 3368, "gallery": 15913}},
        identities={"train": 751, "query": 750},
        cameras=6,
    ),
    "msmt17": Layout(
        _read_msmt17,
        _holds("list_train.txt"),
        "get MSMT17 (Wei et al., CVPR 2018) from its authors",
        {"": {"train": 32621, "query": 11659, "gallery": 82161}},
        identities={"train": 1041, "query": 3060},
        cameras=15,
        # The numbers of the test identities begin at 0 again.
        same_numbers=False,
    ),
    "rgbnt201": Layout(
        _folders("train_171/RGB", "test/RGB", "test/RGB", rf"(\d{{1,18}})_cam(\d{{1,9}}){WHOLE}"),
        _holds("train_171"),
        "get RGBNT201 (Zheng et al., AAAI 2021) from its authors",
        {"": {"train": 3951, "query": 836, "gallery": 836}},
        identities={"train": 171, "query": 30},
        cameras=4,
    ),
    "nightreid": Layout(
        _read_nightreid,
        _holds("bounding_box_train"),
        "ask the authors of NightReID for it",
        {name: {"train": 15514, "query": q, "gallery": g} for name, (_, _, q, g) in NIGHTREID.items()},
        cameras=6,
        protocols=tuple(NIGHTREID),
    ),
    "knight": Layout(
        _read_knight,
        lambda root: _holds("NightPerson/Person", "Person")(root) or any(f.name.isdecimal() for f in sub_folders(root)),
        "ask the authors of Knight for it",
        cameras=3,
        protocols=("1-2", "1-3", "2-3"),
    ),
    "bright": Layout(
        _folders("bounding_box_train|.", "", "", MARKET_PATTERN),
        lambda root: (
            _holds("bounding_box_train")(root) or any(re.match(MARKET_PATTERN, f.name) for f in root.iterdir())
        ),
        "any well-lit Re-ID images named <pid>_c<camera>_*.jpg will do, for example the bright half of Syn_Dark",
    ),
    "folders": Layout(
        _read_identity_folders,
        lambda root: bool(_split_folders(root)),
        "make train/, query/ and gallery/, in each a folder per identity",
        distractor=None,
    ),
    "manifest": Layout(
        _read_manifest, Path.exists, "write a CSV file with the columns path,pid,camera,split", distractor=None
    ),
}
