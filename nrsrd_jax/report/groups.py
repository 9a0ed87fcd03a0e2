"""The page of groups: crops that are taken for one person, the doubtful groups first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import counted
from ..retrieval.clustering import Groups
from .crops import MOST, Card, Row, write_page

CROPS = 12  # of a group, at most


def write_groups(path: Path, table: pa.Table, groups: Groups, notes: Sequence[str], others: str) -> None:
    """Write the page of the most doubtful groups: as many as it has pictures for, and at most CROPS crops of each.

    The two crops of a group's weakest link come first, then others spread over its cameras and times.

    Args:
        path: the file to write.
        table: the crops: path, camera, time, person.
        groups: their groups.
        notes: sentences about what was done.
        others: where the groups are that the page has no room for.

    Raises:
        InputError: the page cannot be written.
    """
    sizes = np.bincount(groups.labels[groups.labels >= 0], minlength=len(groups.doubt))
    doubtful = np.argsort(-groups.doubt, kind="stable")
    shown = doubtful[np.minimum(sizes[doubtful], CROPS).cumsum() <= MOST]
    order = _by_camera_and_time(groups.labels, table)
    starts = np.searchsorted(groups.labels[order], shown)
    rows = [
        _row(int(group), order[start : start + sizes[group]], groups, table)
        for group, start in zip(shown, starts, strict=True)
    ]
    about = [
        *notes,
        "The doubtful groups come first. The doubt, in 0..1, is the distance of a group's weakest link: without it the "
        "group would fall into two. The two crops of this link come first. If they show two people, the group is "
        "wrong, and a smaller --eps splits it.",
    ]
    if len(shown) < len(doubtful):
        left = counted(len(doubtful) - len(shown), "group", "groups")
        about.append(f"Not shown: {left} with smaller doubts; {others}.")
    write_page(
        path,
        title=f"{counted(len(sizes), 'group')} of {counted(len(groups.labels), 'crop')}",
        kind="groups without labels",
        notes=about,
        rows=rows,
        command="nrsrd cluster",
    )


def _by_camera_and_time(labels: np.ndarray, table: pa.Table) -> np.ndarray:
    """Return the indices of crops in the order of groups, in a group of cameras, and of a camera of times."""
    cameras = np.array(table["camera"].fill_null("").to_pylist())
    return np.lexsort((table["time"].to_numpy(), cameras, labels))


def _row(group: int, crops: np.ndarray, groups: Groups, table: pa.Table) -> Row:
    """Return a group's row: the crops of its weakest link, then at most CROPS − 2 others at even distances."""
    weakest = groups.weakest[group]
    others = crops[~np.isin(crops, weakest)]
    places = np.linspace(0, len(others) - 1, min(CROPS - 2, len(others))).round().astype(int)
    chosen = [*weakest.tolist(), *others[places].tolist()]
    cards = [_card(row, place < 2) for place, row in enumerate(table.take(chosen).to_pylist())]
    hidden = f", {len(crops) - len(chosen):,} of them not shown" if len(crops) > len(chosen) else ""
    note = f"doubt {groups.doubt[group]:.2f}; {counted(len(crops), 'crop')}{hidden}"
    people = len(set(table["person"].take(crops).to_pylist()) - {None})
    return Row(f"Group {group}", note + (f"; {people} people, as far as they are known" if people > 1 else ""), cards)


def _card(row: Mapping[str, Any], weakest: bool) -> Card:
    time = f"{row['time']:%Y-%m-%d %H:%M:%S} UTC" if row["time"] is not None else ""
    lines = ["weakest link" if weakest else "", time]
    lines[1:1] = [f"{name} {row[name]}" if row[name] else "" for name in ("camera", "person")]
    return Card(row["path"], [line for line in lines if line], weakest)
