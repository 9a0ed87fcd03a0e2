"""Labelled crops that are not split into training and test, as `nrsrd calibrate` takes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, counted
from ..files import expanded
from .datasets import Split, read_dataset
from .lists import path_in, quoted, read_table
from .naming import JUNK, as_numbers, is_unknown, manifest_label
from .readers import LAYOUTS

PERSON = ("person", "pid")


def read_labelled(data: Sequence[str]) -> tuple[Split, bool, list[str]]:
    r"""Read labelled crops from a manifest or a data set.

    Args:
        data: a manifest, as `read_labels` reads it; or the name of a data set and its folder. From a data set the
            query and gallery are taken, or the training images if it has no gallery.

    Returns:
        The crops, each path once and without distractors; whether they have cameras; and remarks for the user.

    Raises:
        InputError: the data cannot be read, or no crop shows a known person.

    Example:
        >>> from pathlib import Path
        >>> from nrsrd_jax.data.labels import read_labelled
        >>> _ = Path("crops.csv").write_text("path,person\na.jpg,Ada\nb.jpg,unknown\n")
        >>> crops, with_cameras, remarks = read_labelled(["crops.csv"])
        >>> len(crops), with_cameras, remarks
        (1, False, ['1 crop of unknown people left out'])
    """
    where, *more = data
    if len(more) > 1:
        raise InputError(f"--data {' '.join(data)}: give a manifest (.csv), or the name of a data set and its folder")
    if more:
        crops, remarks = _of_data_set(where, more[0])
        with_cameras = True
    else:
        file = expanded(where)
        if where in LAYOUTS or file.is_dir():
            hint = f"{where} DIR" if where in LAYOUTS else f"NAME {where}"
            raise InputError(
                f"--data {where} is not a manifest; for a data set give its name and folder: --data {hint}"
            )
        if not file.exists():
            raise InputError(f"--data: there is no file {where}; give a CSV file with the columns path,person,camera")
        crops, with_cameras, unknown = read_labels(file)
        remarks = [f"{counted(unknown, 'crop')} of unknown people left out"] if unknown else []
    if not len(crops):
        raise InputError(f"--data {' '.join(data)} has no crops of known people")
    return crops, with_cameras, remarks


def _of_data_set(name: str, root: str) -> tuple[Split, list[str]]:
    found = read_dataset(name, root)
    splits = [found.query, found.gallery] if len(found.gallery) else [found.train]
    first: dict[Path, tuple[int, int]] = {}
    for split in splits:
        for path, *label in zip(split.paths, split.pids.tolist(), split.cameras.tolist(), strict=True):
            # A file may be in both splits (rgbnt201), and counts once.
            first.setdefault(path, (label[0], label[1]))
    known = {path: label for path, label in first.items() if label[0] != LAYOUTS[name].distractor}
    pids, cameras = (np.array([label[i] for label in known.values()], np.int64) for i in (0, 1))
    remarks = [f"{name} has no query and gallery: its training images are used"] if len(splits) == 1 else []
    if left_out := len(first) - len(known):
        remarks.append(f"{counted(left_out, 'distractor')} left out: they show no known person")
    return Split(tuple(known), pids, cameras), remarks


def read_labels(file: Path) -> tuple[Split, bool, int]:
    r"""Read a table with the columns path, person or pid, and optionally camera.

    Args:
        file: a CSV file as any editor or spreadsheet saves it. Paths are relative to its folder. Other columns, such
            as split, are not read.

    Returns:
        The crops; whether they have cameras (otherwise every camera is 0); and the number of crops that are left out
        because they show an unknown person.

    Raises:
        InputError: the file is not such a table, has no labels, or lists one path with two labels.

    Example:
        >>> from pathlib import Path
        >>> from nrsrd_jax.data.labels import read_labels
        >>> _ = Path("crops.csv").write_text("path,person,camera\na.jpg,Ada,1\nb.jpg,Ada,2\nc.jpg,Bo,1\n")
        >>> crops, with_cameras, _ = read_labels(Path("crops.csv"))
        >>> crops.pids.tolist(), crops.cameras.tolist(), with_cameras
        ([0, 0, 1], [1, 2, 1], True)
    """
    table = read_table(file, ("path",), (*PERSON, "camera"))
    if not table:
        raise InputError(f"{file} lists no crops; give a row for each, in the columns path,person,camera")
    # `read_table` gives all rows the same columns, so the first row shows which there are.
    named = [name for name in PERSON if name in table[0][1]]
    if len(named) != 1:
        reason = "has both columns, person and pid: remove one" if named else "has no column person or pid with labels"
        raise InputError(f"{file} {reason}; it must say who each crop shows, in the columns path,person,camera")
    with_cameras = any(not is_unknown(row.get("camera", "")) for _, row in table)
    rows: dict[Path, tuple[str, str]] = {}
    for number, row in table:
        if not row["path"]:
            raise InputError(f"{file}, line {number}: the path is empty; write the crop's file there")
        label = manifest_label(f"{file}, line {number}", row[named[0]], row.get("camera", ""), with_cameras)
        path = path_in(file.parent, row["path"])
        if rows.setdefault(path, label) != label:
            raise InputError(f"{file}, line {number}: {quoted(row['path'])} is listed before, with another label")
    known = {path: label for path, label in rows.items() if not is_unknown(label[0])}
    people, cameras = (as_numbers([label[i] for label in known.values()]) for i in (0, 1))
    kept = [i for i, person in enumerate(people) if person != JUNK]
    crops = Split(tuple(known), np.array(people, np.int64), np.array(cameras, np.int64)).subset(np.array(kept, int))
    return crops, with_cameras, len(rows) - len(kept)
