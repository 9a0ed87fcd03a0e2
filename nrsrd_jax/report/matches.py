"""The page of `nrsrd search`: each query with its matches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import counted
from .crops import Card, Row, write_page


def write_matches(path: Path, how: dict[str, Any], lists: Sequence[dict[str, Any]]) -> None:
    """Write the page of a search.

    Args:
        path: the file, replaced if it exists.
        how: how the search was made, as in the JSON file of `nrsrd search`.
        lists: the queries with their matches, as in that file.

    Raises:
        InputError: the page cannot be written.
    """
    rows = [
        Row(
            Path(each["path"]).name,
            counted(len(each["matches"]), "match", "matches"),
            [Card(each["path"], ["query"], main=True), *(Card(m["path"], _lines(m)) for m in each["matches"])],
        )
        for each in lists
    ]
    normalised = "" if how["normalize"] == "none" else f", features relative to {how['normalize']}"
    notes = [
        f"{counted(len(lists), 'query', 'queries')} among {counted(how['crops'], 'crop')} of {how['gallery']}, "
        f"{'exact' if how['exact'] else 'approximate'} search{normalised}{', re-ranked' if how['rerank'] else ''}.",
        "Similarity is a cosine in −1..1, not a probability.",
    ]
    if how["threshold"] is not None:
        notes.append(f"Matches below a similarity of {how['threshold']:.4f} are left out.")
    if how["calibration"]:
        notes.append(
            f"The numbers of strangers were measured on other crops ({how['calibration']}). They hold for one "
            "comparison, but a search compares every crop of the gallery."
        )
    if how["transductive"]:
        notes.append("The order depends on all crops that were searched (transductive).")
    title = f"Search in {Path(how['gallery']).name}"
    write_page(path, title=title, kind="search", notes=notes, rows=rows, command="nrsrd search")


def _lines(match: dict[str, Any]) -> list[str]:
    """Return the lines of text below a match."""
    known = [f"{name} {match[name]}" for name in ("camera", "time", "track") if match.get(name)]
    return [f"similarity {match['similarity']:.3f}", *filter(None, [match.get("meaning")]), *known]
