"""Write a page of crops: rows of pictures with facts about each, as one HTML file that needs no other file.

matches.py makes the rows for `nrsrd search`, groups.py for `nrsrd cluster`.
"""

import dataclasses
import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ..data.images import in_parallel, read_rgb
from ..errors import InputError, counted
from ..files import written_whole
from .page import HERE, templates
from .pictures import LEVELS, Picture, make_pictures

# The most bytes of all pictures of a page together.
PICTURE_BYTES = 12_000_000
# The most pictures that are read for a page.
MOST = 2_000


@dataclasses.dataclass(frozen=True)
class Card:
    """A crop in a row: the path of its picture, the lines of text below it, and whether to highlight it."""

    path: str
    lines: Sequence[str]
    main: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A heading, a line of text, and crops."""

    title: str
    note: str
    cards: Sequence[Card]


def write_page(path: Path, *, title: str, kind: str, notes: Sequence[str], rows: Sequence[Row], command: str) -> None:
    """Write a page.

    Args:
        path: the file, replaced if it exists.
        title: the heading.
        kind: the kind of page, in a few words.
        notes: sentences above the rows.
        rows: the rows to show. The last pictures are left out if there are more than 2,000 or if they exceed 12 MB; the
            page says so.
        command: the command that writes the page, such as "nrsrd search".

    Raises:
        InputError: the page cannot be written.
    """
    wanted = list(dict.fromkeys(card.path for row in rows for card in row.cards))
    # The page names the folder of all pictures once, so that the names below the pictures are short.
    folder = os.path.commonpath([os.path.dirname(each) for each in wanted]) if wanted else ""
    pictures = read_pictures(wanted[:MOST])
    page = templates().get_template("crops.html").render(
        title=title, kind=kind, notes=notes, rows=rows, pictures=pictures, folder=folder, command=command,
        names={each: os.path.relpath(each, folder) for each in wanted},
        missing=counted(len(wanted) - len(pictures), "picture") if len(wanted) > len(pictures) else "",
        version=importlib.metadata.version("nrsrd-jax"),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "crops.js").read_text(encoding="utf-8")),
    )  # fmt: skip
    with written_whole(path, follow=True) as partial:
        partial.write_bytes(page.encode())


def read_pictures(paths: Sequence[str]) -> dict[str, Picture]:
    """Return small, brightened pictures by path. Files that are unreadable or do not fit are missing."""

    def read(path: Path) -> np.ndarray:
        image = read_rgb(path)
        image.thumbnail((4 * LEVELS[0][0], 2 * LEVELS[0][0]))
        return np.asarray(image)[None]

    read_paths, images = [], []
    for index, result in in_parallel(read, [Path(path) for path in paths], "reading pictures"):
        if not isinstance(result, InputError):
            read_paths.append(paths[index])
            images.append((result, 0))
    made = make_pictures(images, PICTURE_BYTES).items if images else []
    return {path: picture for path, picture in zip(read_paths, made, strict=True) if picture}
