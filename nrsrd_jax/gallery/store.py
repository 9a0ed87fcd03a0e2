"""The gallery: a LanceDB table with the features of crops and what is known about each crop.

A gallery is a folder, or object storage that LanceDB knows, such as s3://bucket/gallery. One row is one crop:

  path        of the file, absolute
  vector      its feature, float32 [D], of any length
  camera, time, person, track   text (time: UTC), null where unknown; and the user's own columns, as text
  brightness  the mean luminance of the crop, in 0..1
  size, modified                of the file, in bytes and in nanoseconds since 1970
  vanished    when the file was found to be gone; null while it is there
"""

import contextlib
import dataclasses
import datetime
import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.crops import KNOWN, OWN
from ..errors import InputError, counted, printable
from ..retrieval.embedding import identity_difference
from .about import NOTE, About, read_about
from .address import address
from .conditions import one_of, timestamp

try:
    import lancedb
    import pyarrow as pa
except ImportError as missing:
    raise InputError("galleries need LanceDB: pip install 'nrsrd-jax[search]'") from missing

TABLE = "crops"
UTC = pa.timestamp("us", tz="UTC")
# The most paths in one condition.
AT_ONCE = 500
# If a smaller share of the crops fulfils a condition, their vectors are read one by one.
FEW = 0.1
# The place in LanceDB's Rust code that its error messages end with.
SOURCE = re.compile(r",? /\S+\.rs:\d+:\d+")
# How many rows are read at a time: 13 MB of features of 384 numbers.
BATCH = 8192


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What a gallery knows about a crop, to notice whether its file or its description has changed."""

    size: int
    modified: int
    vanished: bool
    # The crop's columns that are not null.
    values: dict[str, Any]


class Gallery:
    """An open gallery.

    `open` and `create` return it. `about` says which model made its features, and `columns` which columns it has.
    `table` is LanceDB's table, for its index and its own search.
    """

    def __init__(self, uri: str, table: Any, about: About):
        self.uri, self.about = uri, about
        self.table: Any = table

    @classmethod
    def open(cls, uri: str | Path) -> "Gallery":
        """Open the gallery in a folder or at an address of object storage.

        Raises:
            InputError: there is no gallery, a newer version made it, or it cannot be read.
        """
        place = address(uri)
        with storage_errors(place):
            if "://" not in place and not os.path.isdir(os.path.join(place, f"{TABLE}.lance")):
                raise InputError(f"{place} is not a gallery; nrsrd embed makes one")
            table = lancedb.connect(place).open_table(TABLE)
        return cls(place, table, read_about(place, table.schema))

    @classmethod
    def create(cls, uri: str | Path, about: About) -> "Gallery":
        """Open the gallery, or create it if it is missing.

        Args:
            uri: a folder, or an address of object storage.
            about: the model whose features the gallery has or will have.

        Raises:
            InputError: as `open`, or the gallery has features of another model.
        """
        place = address(uri)
        own = [pa.field(name, UTC if name == "time" else pa.string()) for name in KNOWN]
        schema = pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), about.width), nullable=False),
                *own,
                pa.field("brightness", pa.float32()),
                pa.field("size", pa.int64()),
                pa.field("modified", pa.int64()),
                pa.field("vanished", UTC),
            ],
            metadata={NOTE: json.dumps(dataclasses.asdict(about)).encode()},
        )
        with storage_errors(place):
            base = lancedb.connect(place)
            try:
                table = base.create_table(TABLE, schema=schema)
            except ValueError:
                # The table exists already.
                table = base.open_table(TABLE)
        gallery = cls(place, table, read_about(place, table.schema))
        gallery.check_model(about.identity)
        return gallery

    def check_model(self, identity: dict[str, Any]) -> None:
        """Raise InputError if `identity`, an `Embedder.identity()`, is not that of the gallery's model."""
        if difference := identity_difference(self.about.identity, identity):
            own, other = difference
            raise InputError(
                f"the gallery {self.uri} has features of another model ({own}) than this one ({other}): give "
                f"{self.about.choice(own)}, or make another gallery"
            )

    @property
    def columns(self) -> list[str]:
        """Return the names of all columns except the vector."""
        return [name for name in self.table.schema.names if name != "vector"]

    @property
    def own_columns(self) -> list[str]:
        """Return the columns that the user gave, the known ones first."""
        return [name for name in self.columns if name not in OWN]

    def count(self, where: str = "") -> int:
        """Count the crops that fulfil a condition in SQL. Raises InputError if the condition is invalid."""
        with storage_errors(self.uri, where):
            return self.table.count_rows(where or None)

    def known(self) -> dict[str, Known]:
        """Return what the gallery knows about each path. It takes about 600 bytes of memory for each crop."""
        names = self.own_columns
        found: dict[str, Known] = {}
        # Equal values share one object, which saves memory.
        shared: dict[Any, Any] = {}
        for batch in self.batches(columns=("path", "size", "modified", "vanished", *names), vectors=False):
            columns = [batch[name].to_pylist() for name in ("path", "size", "modified", "vanished", *names)]
            for path, size, modified, vanished, *values in zip(*columns, strict=True):
                own = {
                    name: shared.setdefault(value, value) for name, value in zip(names, values, strict=True) if value
                }
                found[path] = Known(size, modified, vanished is not None, own)
        return found

    def batches(
        self, where: str = "", columns: Sequence[str] = ("path",), vectors: bool = True, rowid: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yield the crops that fulfil a condition in SQL, BATCH rows at a time, in the order they were added.

        Args:
            where: a condition on columns, such as "camera = 'c1'"; "" for all crops.
            columns: the columns to read.
            vectors: whether to read the features too; `vectors_of` turns a batch's into an array.
            rowid: whether to add LanceDB's "_rowid".

        Raises:
            InputError: the condition is invalid, or the gallery cannot be read.
        """
        wanted = [*columns, *(["vector"] if vectors else [])]
        with storage_errors(self.uri, where):
            fitting, total = (self.count(where), self.count()) if where else (0, 0)
            where = where if fitting < total else ""
            if not (vectors and where) or fitting < FEW * total:
                query = self.table.search().select(wanted)
                query = query.where(where) if where else query
                yield from (query.with_row_id(True) if rowid else query).to_batches(batch_size=BATCH)
                return
            # With a condition, LanceDB reads vectors one by one. If many crops fulfil it, reading all is faster.
            fit = self.table.search().select(["path"]).where(where).with_row_id(True).to_arrow()["_rowid"].to_numpy()
            for batch in self.table.search().select(wanted).with_row_id(True).to_batches(batch_size=BATCH):
                kept = batch.filter(np.isin(batch["_rowid"], fit))
                if len(kept):
                    yield kept if rowid else kept.drop_columns(["_rowid"])

    def read(self, where: str = "", columns: Sequence[str] | None = None) -> tuple[pa.Table, np.ndarray]:
        """Return crops as a table without the vectors, and their features, float32 [N, D].

        Args:
            where: a condition in SQL, as in `batches`.
            columns: the columns to read; None for all.
        """
        names = self.columns if columns is None else list(columns)
        features = np.empty((self.count(where), self.about.width), np.float32)
        parts, start = [], 0
        for batch in self.batches(where, names):
            features[start : start + len(batch)] = vectors_of(batch)
            parts.append(batch.select(names))
            start += len(batch)
        schema = pa.schema([self.table.schema.field(name) for name in names])
        return pa.Table.from_batches(parts, schema), features

    def rows(self, ids: Sequence[int], columns: Sequence[str]) -> dict[int, dict[str, Any]]:
        """Return some columns of the crops with these "_rowid", by "_rowid"."""
        with storage_errors(self.uri):
            found = self.table.take_row_ids(list(ids)).select(list(columns)).with_row_id().to_arrow()
        return {row.pop("_rowid"): row for row in found.to_pylist()}

    def add(self, rows: Sequence[dict[str, Any]], vectors: np.ndarray, replace: bool = False) -> None:
        """Write crops and their features [N, D]. If an error occurs, nothing is written.

        Args:
            rows: the values of each crop's columns, "path" among them; missing ones are null.
            vectors: the features, finite.
            replace: whether to replace crops that have the same paths; otherwise the gallery must not have these paths.
        """
        with storage_errors(self.uri):
            # Another shard may have added a column.
            self.table.checkout_latest()
            for name in sorted({name for row in rows for name in row} - set(self.columns)):
                self._add_column(name)
        width = self.about.width
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        schema = self.table.schema
        arrays = [
            pa.FixedSizeListArray.from_arrays(flat, width)
            if field.name == "vector"
            else pa.array([row.get(field.name) for row in rows], field.type)
            for field in schema
        ]
        table = pa.Table.from_arrays(arrays, schema=schema)
        with storage_errors(self.uri):
            if replace:
                matched = self.table.merge_insert("path").when_matched_update_all()
                matched.when_not_matched_insert_all().execute(table)
            else:
                self.table.add(table)

    def _add_column(self, name: str) -> None:
        try:
            self.table.add_columns({name: "CAST(NULL AS string)"})
        except (ValueError, RuntimeError):
            # Another process may have added the same column in the meantime.
            self.table.checkout_latest()
            if name not in self.columns:
                raise

    def mark(self, paths: Sequence[str], vanished: bool) -> None:
        """Note that the files at these paths have vanished, or that they exist again."""
        now = timestamp(datetime.datetime.now(datetime.UTC).replace(microsecond=0)) if vanished else "NULL"
        for start in range(0, len(paths), AT_ONCE):
            with storage_errors(self.uri):
                self.table.update(one_of("path", paths[start : start + AT_ONCE]), values_sql={"vanished": now})

    def remove_copies(self) -> int:
        """Delete all but the first crop of each path, and return how many were deleted.

        Only a folder can be locked. In object storage, two processes that embed the same files write their crops twice.
        """
        parts = list(self.batches(vectors=False, rowid=True))
        if not parts:
            return 0
        table = pa.Table.from_batches(parts).combine_chunks()
        rows, paths = table["_rowid"].to_numpy(), table["path"].chunk(0).dictionary_encode().indices.to_numpy()
        copies = np.delete(rows, np.unique(paths, return_index=True)[1])
        for start in range(0, len(copies), AT_ONCE):
            with storage_errors(self.uri):
                self.table.delete(f"_rowid IN ({', '.join(map(str, copies[start : start + AT_ONCE]))})")
        return len(copies)

    def delete(self, where: str) -> int:
        """Delete the crops that fulfil a condition, also from older versions. Return how many there were.

        LanceDB keeps deleted rows in its files, its index and its log. So the table is written again, which needs as
        much free space as the table takes, and everything older is removed, also the index. If that fails, another
        call, with any condition, completes it.
        """
        count = self.count(where)
        with storage_errors(self.uri):
            self.table.delete(where)
            rows = pa.RecordBatchReader.from_batches(self.table.schema, self._in_order())
            self.table = lancedb.connect(self.uri).create_table(TABLE, rows, mode="overwrite")
        self.compact(forget=True)
        return count

    def _in_order(self) -> Iterator[pa.RecordBatch]:
        """Yield all crops, with the columns in the order of the table."""
        for batch in self.batches(columns=self.columns):
            yield batch.select(self.table.schema.names)

    def compact(self, forget: bool = False) -> None:
        """Join small files, and with `forget` remove all older versions of the table."""
        older = datetime.timedelta(0) if forget else datetime.timedelta(days=1)
        with storage_errors(self.uri), warnings.catch_warnings():
            # LanceDB warns that other processes may still read older versions.
            warnings.simplefilter("ignore")
            self.table.optimize(cleanup_older_than=older, delete_unverified=forget)


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    """Return a batch's features, float32 [N, D]."""
    column = batch["vector"]
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), column.type.list_size)


@contextlib.contextmanager
def storage_errors(place: str, where: str = "") -> Iterator[None]:
    """Turn an error of LanceDB into an InputError of one line.

    Args:
        place: the gallery.
        where: the user's condition, which may be the cause of the error.
    """
    try:
        yield
    except InputError:
        raise
    # LanceDB raises errors of all these types. Its messages end with a place in its Rust code.
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        text = printable(SOURCE.sub("", str(error).replace("\n", " ")), 300)
        if where and not text.startswith("lance error"):
            hint = "write it in SQL, with texts in single quotes"
            raise InputError(f"the condition {where} does not fit the gallery {place}: {text}; {hint}") from error
        if "No space left" in str(error):
            raise InputError(f"the gallery {place}: the disk is full; free some space: {text}") from error
        if f"Table '{TABLE}' was not found" in text:
            raise InputError(f"{place} is not a gallery; nrsrd embed makes one") from error
        if "://" in place:
            advice = (
                "look at the address, and at the endpoint, region and keys in the environment (AWS_ENDPOINT, "
                "AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY for s3://)"
            )
            raise InputError(f"cannot use the gallery {place}: {text}; {advice}") from error
        advice = "if its files are missing or damaged, restore them, or embed into another folder"
        raise InputError(f"cannot use the gallery {place}: {text}; {advice}") from error


def summary(gallery: Gallery) -> str:
    """Describe a gallery in one line: the number of crops, and the model of their features."""
    total, gone = gallery.count(), gallery.count("vanished IS NOT NULL")
    feature = gallery.about.identity.get("feature")
    vanished = f", {gone:,} of them vanished" if gone else ""
    return f"{counted(total, 'crop')}{vanished}, {feature} features of {gallery.about.backbone}"
