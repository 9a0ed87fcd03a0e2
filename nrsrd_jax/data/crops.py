"""A user's own crops: image files in folders or rows of a manifest, with the metadata of each crop."""

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

# The data.name of crops without labels. Crops have no entry in readers.LAYOUTS.
CROPS = "crops"
# Columns that commands use. Other columns are kept as text.
KNOWN = ("camera", "time", "person", "track")
# Columns that the gallery fills itself, and fields that search adds to each match. A user's columns may not have these
# names, except for "path".
OWN = ("path", "vector", "brightness", "size", "modified", "vanished")
SAID = ("query", "rank", "similarity", "reranked_distance", "strangers", "meaning")
# Seconds or milliseconds since 1970.
STAMP = re.compile(r"\d{10}(?:\d{3})?")
COLUMN = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclasses.dataclass(frozen=True, slots=True)
class Crop:
    """One picture of a person.

    Attributes:
        path: the absolute path of the file.
        values: {column: value}, None where the value is unknown. "time" is a datetime; other values are text.
    """

    path: str
    values: dict[str, str | datetime.datetime | None]


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder, an image or a manifest, and how to read metadata from the names of its files.

    Attributes:
        path: the absolute path of the folder, image or manifest.
        pattern: a regular expression that is searched for in each path below the folder. Its named groups become
            columns.
        time_format: the format of times, as in `strptime`; "" for the formats that `parse_time` knows.
        links: folders below that are symbolic links, which are not followed. The list is complete when all crops
            have been read.
    """

    path: Path
    pattern: re.Pattern[str] | None = None
    time_format: str = ""
    links: list[str] = dataclasses.field(default_factory=list, compare=False)

    @property
    def is_manifest(self) -> bool:
        """Return whether the source is a table that lists crops."""
        return self.path.suffix.lower() in (".csv", ".tsv")

    def crops(self) -> Iterator[Crop]:
        """Yield the crops, in the order of a manifest's rows, or of the names in each folder.

        Raises:
            InputError: the source does not exist or cannot be read, or a time cannot be parsed.
        """
        if self.is_manifest:
            yield from self._rows()
        elif self.path.is_dir():
            yield from self._files()
        elif self.path.is_file():
            yield Crop(str(self.path), self._named(self.path.name))
        else:
            raise InputError(f"{self.path} does not exist; give a folder of crops, an image, or a manifest (.csv)")

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
            # A separator at the end of the first line makes a column without a name.
            row.pop("", None)
            # Manifests of data sets call the column pid.
            if "pid" in row and "person" not in row:
                row["person"] = row.pop("pid")
            if row is table[0][1]:
                check_columns(row, str(self.path))
            if not row["path"]:
                raise InputError(f"{self.path}, line {number}: the path is empty; write the crop's file there")
            path = str(absolute(path_in(self.path.parent, row.pop("path"))))
            first, same = lines.setdefault(path, (number, row))
            if row != same:
                raise InputError(f"{self.path}, lines {first} and {number} differ about {path}; correct one of them")
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
    """Return the crops of all sources by path.

    If several sources list a crop, their columns are merged. A later source overrides an earlier one.

    Raises:
        InputError: a source has no crops, or cannot be read (`Source.crops`).
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
    """Yield the crops of all sources, merged as by `crops_of`. A single source is streamed, which saves memory."""
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
        say(f"warning: {what} not followed, such as {links[0]}; to include a linked folder, give its path", error=True)


def make_source(path: Path, pattern: str, time_format: str) -> Source:
    """Return the Source for a path that the user gave.

    Raises:
        InputError: the pattern is not a regular expression, has no named group, names a column that `check_columns`
            rejects, or is given for a manifest.
    """
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
        raise InputError(f"{path} is a manifest, whose columns replace --pattern: leave --pattern out")
    return source


def check_columns(names: Iterable[str], where: str) -> None:
    """Raise InputError if a column's name is reserved, or is not made of lower-case letters, digits and "_"."""
    for name in names:
        if name in (*OWN[1:], *SAID) or not COLUMN.fullmatch(name):
            reason = "is reserved by the gallery" if name in (*OWN, *SAID) else "is not made of a-z, digits and _"
            raise InputError(f"{where}: the column {quoted(name)} {reason}; name it differently")


def parse_time(text: str, time_format: str = "") -> datetime.datetime:
    """Parse a time. A text without a time zone is taken as UTC.

    Args:
        text: ISO 8601 (2026-11-27T19:30:00+01:00), 14 digits (20261127193000), or seconds or milliseconds since 1970.
        time_format: a format as in `strptime`, which is used instead of these.

    Returns:
        The time, with a time zone.

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
    # strptime turns its format into a regular expression, so a wrong format raises re.error.
    except (ValueError, OverflowError, OSError, re.error) as error:
        wanted = f"of the form {time_format}" if time_format else "like 2026-11-27T19:30:00 or 20261127193000"
        raise ValueError(f"{quoted(text)} is not a time {wanted}") from error


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error
