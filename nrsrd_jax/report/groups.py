"""The page of `nrsrd cluster`: groups of crops that seem to show one person, the most doubtful group first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import counted
from ..retrieval.clustering import Groups
from .crops import MOST, Card, Row, write_page

# The most crops that are shown of a group.
CROPS = 12


def write_groups(path: Path, table: pa.Table, groups: Groups, notes: Sequence[str], others: str) -> None:
    """Write the page of the most doubtful groups: at most CROPS crops of each, and at most `crops.MOST` in all.

    The two crops of a group's weakest link come first, then others that are spread over its cameras and times.

    Args:
        path: the file to write.
        table: the crops: path, camera, time, person.
        groups: the groups of these crops.
        notes: sentences about how the groups were made.
        others: a phrase that says where to find the groups that do not fit on the page.

    Raises:
        InputError: the page cannot be written.
    """
    sizes = np.bincount(groups.labels[groups.labels >= 0], minlength=len(groups.doubt))
    doubtful = np.argsort(-groups.doubt, kind="stable")
    # Count only the crops that are shown, so that a large group does not displace others.
    shown = doubtful[np.minimum(sizes[doubtful], CROPS).cumsum() <= MOST]
    order = _by_camera_and_time(groups.labels, table)
    starts = np.searchsorted(groups.labels[order], shown)
    rows = [
        _row(int(group), order[start : start + sizes[group]], groups, table)
        for group, start in zip(shown, starts, strict=True)
    ]
    about = [
        *notes,
        "The most doubtful groups come first. The doubt, in 0..1, is the distance of a group's weakest link: without "
        "this link, the group would be two groups. The two crops of this link come first. If they show two people, the "
        "group is wrong, and a smaller --eps splits it.",
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
    """Return the indices of crops, sorted by group, then by camera, then by time."""
    cameras = np.array(table["camera"].fill_null("").to_pylist())
    # `lexsort` sorts by its last key first.
    return np.lexsort((table["time"].to_numpy(), cameras, labels))


def _row(group: int, crops: np.ndarray, groups: Groups, table: pa.Table) -> Row:
    """Return a group's row: the two crops of its weakest link, then at most CROPS − 2 evenly spaced others."""
    weakest = groups.weakest[group]
    others = crops[~np.isin(crops, weakest)]
    places = np.linspace(0, len(others) - 1, min(CROPS - 2, len(others))).round().astype(int)
    chosen = [*weakest.tolist(), *others[places].tolist()]
    cards = [_card(row, place < 2) for place, row in enumerate(table.take(chosen).to_pylist())]
    hidden = f", {len(crops) - len(chosen):,} of them not shown" if len(crops) > len(chosen) else ""
    note = f"doubt {groups.doubt[group]:.2f}; {counted(len(crops), 'crop')}{hidden}"
    people = len(set(table["person"].take(crops).to_pylist()) - {None})
    return Row(f"Group {group}", note + (f"; {people} known people" if people > 1 else ""), cards)


def _card(row: Mapping[str, Any], weakest: bool) -> Card:
    time = f"{row['time']:%Y-%m-%d %H:%M:%S} UTC" if row["time"] is not None else ""
    lines = ["weakest link" if weakest else "", time]
    lines[1:1] = [f"{name} {row[name]}" if row[name] else "" for name in ("camera", "person")]
    return Card(row["path"], [line for line in lines if line], weakest)
