"""The crops that a user wants to embed: files in folders or rows of a manifest, with what is known of each."""

import dataclasses
import datetime
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import InputError, counted, say
from ..files import absolute
from .listing import IMAGE_SUFFIXES, is_hidden
from .lists import path_in, quoted, read_table

CROPS = "crops"  # data.name of crops without labels, which is not one of readers.LAYOUTS
KNOWN = ("camera", "time", "person", "track")  # columns that commands understand; others are kept as text
# Columns that the gallery fills itself, and what search says of a match.
OWN = ("path", "vector", "brightness", "size", "modified", "vanished")
SAID = ("query", "rank", "similarity", "reranked_distance", "strangers", "meaning")
STAMP = re.compile(r"\d{10}(?:\d{3})?")  # seconds or milliseconds since 1970
COLUMN = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """One picture of a person.

    Attributes:
        path: of the file, absolute.
        values: the columns that are known of it, None where they are not. "time" is a datetime, others are text.
    """

    path: str
    values: dict[str, str | datetime.datetime | None]


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder, an image or a manifest, and how to read what its names say.

    Attributes:
        path: absolute.
        pattern: what is searched for in each path below a folder; its named groups are columns.
        time_format: of times, as in `strptime`; "" for ISO 8601, 20261127193000, or seconds since 1970.
        links: folders below that are symbolic links, which are not followed; known when all crops were read.
    """

    path: Path
    pattern: re.Pattern[str] | None = None
    time_format: str = ""
    links: list[str] = dataclasses.field(default_factory=list, compare=False)

    @property
    def is_manifest(self) -> bool:
        """Return whether the crops are listed in a CSV file."""
        return self.path.suffix.lower() in (".csv", ".tsv")

    def crops(self) -> Iterator[Crop]:
        """Yield the crops in the order of their names. InputError if the source is missing or a time cannot be read."""
        if self.is_manifest:
            yield from self._rows()
        elif self.path.is_dir():
            yield from self._files()
        elif self.path.is_file():
            yield Crop(str(self.path), self._named(self.path.name))
        else:
            raise InputError(f"{self.path} does not exist; give folders of crops, crops, or a manifest (.csv)")

    def _files(self) -> Iterator[Crop]:
        self.links.clear()
        for place, folders, files in os.walk(self.path, onerror=_refuse):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            self.links.extend(path for name in folders if os.path.islink(path := os.path.join(place, name)))
            for name in sorted(files):
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name):
                    path = os.path.join(place, name)
                    yield Crop(path, self._named(os.path.relpath(path, self.path)))

    def _rows(self) -> Iterator[Crop]:
        table = read_table(self.path, ("path",), None)
        lines: dict[str, tuple[int, dict[str, str]]] = {}
        for number, row in table:
            row.pop("", None)  # a separator too many at the end of the first line
            if "pid" in row and "person" not in row:
                row["person"] = row.pop("pid")
            if row is table[0][1]:
                check_columns(row, str(self.path))
            if not row["path"]:
                raise InputError(f"{self.path}, line {number} has no path")
            path = str(absolute(path_in(self.path.parent, row.pop("path"))))
            first, same = lines.setdefault(path, (number, row))
            if row != same:
                raise InputError(f"{self.path}, lines {first} and {number} say different things of {path}; correct one")
            yield Crop(path, self._read(row, f"{self.path}, line {number}"))

    def _named(self, name: str) -> dict[str, str | datetime.datetime | None]:
        if not self.pattern:
            return {}
        found = self.pattern.search(name.replace(os.sep, "/"))
        return self._read(found.groupdict() if found else dict.fromkeys(self.pattern.groupindex), name)

    def _read(self, texts: Mapping[str, str | None], where: str) -> dict[str, str | datetime.datetime | None]:
        values: dict[str, str | datetime.datetime | None] = {name: text or None for name, text in texts.items()}
        if texts.get("time"):
            try:
                values["time"] = parse_time(str(texts["time"]), self.time_format)
            except ValueError as error:
                raise InputError(f"{where}: {error}") from error
        return values


def crops_of(sources: Iterable[Source]) -> dict[str, Crop]:
    """Return the crops of all sources by path. If several sources have a crop, what each of them says is joined.

    Raises:
        InputError: a source has no crop, or as `Source.crops`.
    """
    found: dict[str, Crop] = {}
    for source in sources:
        crop = None
        for crop in source.crops():
            values = found.setdefault(crop.path, crop).values
            values.update((name, value) for name, value in crop.values.items() if value is not None)
        if crop is None:
            raise _no_crops(source)
    return found


def each_crop(sources: Sequence[Source]) -> Iterator[Crop]:
    """Yield the crops of all sources, as `crops_of`; those of a single source without holding them in memory."""
    if len(sources) > 1:
        yield from crops_of(sources).values()
        return
    crop = None
    for crop in sources[0].crops():
        yield crop
    if crop is None:
        raise _no_crops(sources[0])


def _no_crops(source: Source) -> InputError:
    return InputError(f"{source.path} has no crops (.jpg, .png, .webp or .bmp)")


def warn_links(sources: Sequence[Source]) -> None:
    """Print a warning if folders were not followed because they are symbolic links."""
    if links := [path for source in sources for path in source.links]:
        what = counted(len(links), "linked folder was", "linked folders were")
        say(f"warning: {what} not followed, such as {links[0]}; give what is to be embedded by name", error=True)


def make_source(path: Path, pattern: str, time_format: str) -> Source:
    """Return the Source that the user names. InputError if the pattern is not one, or names a column wrongly."""
    compiled = None
    if pattern:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise InputError(f"--pattern {quoted(pattern)} is not a regular expression: {error}") from error
        if not compiled.groupindex:
            raise InputError(f"--pattern {quoted(pattern)} has no named group, such as (?P<camera>c\\d+)")
        check_columns(compiled.groupindex, "--pattern")
    source = Source(absolute(path), compiled, time_format)
    if source.is_manifest and compiled:
        raise InputError(f"{path} is a manifest, whose columns say what --pattern would: leave --pattern out")
    return source


def check_columns(names: Iterable[str], where: str) -> None:
    """Raise InputError if a column's name is one of the gallery's own, or more than letters, digits and "_"."""
    for name in names:
        if name in (*OWN[1:], *SAID) or not COLUMN.fullmatch(name):
            reason = "is the gallery's own" if name in (*OWN, *SAID) else "is not made of small letters, digits and _"
            raise InputError(f"{where}: the column {quoted(name)} {reason}; name it differently")


def parse_time(text: str, time_format: str = "") -> datetime.datetime:
    """Return the time that a text says; without a time zone in it, it is taken as UTC.

    Args:
        text: ISO 8601 (2026-11-27T19:30:00+01:00), 14 digits (20261127193000), or seconds or milliseconds since 1970.
        time_format: as in `strptime`, instead of these.

    Raises:
        ValueError: the text is not such a time.

    Example:
        >>> from nrsrd_jax.data.crops import parse_time
        >>> parse_time("20261127193000").isoformat()
        '2026-11-27T19:30:00+00:00'
    """
    utc = datetime.UTC
    try:
        if time_format:
            time = datetime.datetime.strptime(text, time_format)
        elif STAMP.fullmatch(text):
            time = datetime.datetime.fromtimestamp(int(text) / (1000 if len(text) == 13 else 1), utc)
        elif re.fullmatch(r"\d{14}", text):
            time = datetime.datetime.strptime(text, "%Y%m%d%H%M%S")
        else:
            time = datetime.datetime.fromisoformat(text)
        return time.astimezone(utc) if time.tzinfo else time.replace(tzinfo=utc)
    # strptime turns its format into a regular expression.
    except (ValueError, OverflowError, OSError, re.error) as error:
        wanted = f"of the form {time_format}" if time_format else "like 2026-11-27T19:30:00 or 20261127193000"
        raise ValueError(f"{quoted(text)} is not a time {wanted}") from error


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error
