"""Read and write PyTorch's .pth files without PyTorch, and without running any code that a file asks for.

A .pth file has a pickle and raw storages: in a zip archive (torch >= 1.6), or one after the other (the legacy format).
Tensors stay on disk until `np.asarray` reads them. The file is not memory-mapped: if another program truncated a mapped
file, the process would be killed. Formats: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import math
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import printable
from .pickle_types import STORAGES, Refused, Storage, storage_identifier
from .tensor_pickle import MAX_TEXT, Cursor, run

# The record of the archive with the model's description. PyTorch ignores it.
NOTES = "nrsrd_jax.json"
NEITHER = "this is not a PyTorch checkpoint: it begins like neither the zip nor the legacy format"
CHANGED = "the file changed while it was read; wait until it is complete"
# The exceptions that zipfile, struct and pickletools raise on damaged data.
DAMAGE = (
    *(ValueError, TypeError, LookupError, OverflowError),
    *(OSError, EOFError, struct.error, zipfile.BadZipFile, NotImplementedError),
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
PIECE = 2**22  # bytes read at a time for a checksum


class Pages:
    """The bytes of a file, read by slices. Reading raises Refused if the file has changed since this was created."""

    def __init__(self, path: str | Path):
        self._path = path
        with open(path, "rb") as file:
            self._version = _version(file)

    def __len__(self) -> int:
        return self._version[0]

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(len(self))
        with open(self._path, "rb") as file:
            if _version(file) != self._version:
                raise Refused(CHANGED)
            file.seek(begin)
            piece = file.read(max(end - begin, 0))
        if len(piece) < end - begin:
            raise Refused(CHANGED)
        return piece


def _version(file: IO[bytes]) -> tuple[int, ...]:
    """Return the size of an open file, and values that change when it is written or replaced."""
    about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns, about.st_dev, about.st_ino


def load(path: str | Path) -> tuple[Any, str]:
    """Load the object that `torch.save` wrote, and the notes that `save` wrote ("" if there are no notes).

    A tensor becomes a Tensor. Containers become plain dicts, lists and tuples; an argparse.Namespace becomes the dict
    of its attributes; other known plain data becomes a placeholder.

    Raises:
        Refused: the file is damaged, or contains more than plain data. Refused is an InputError.
    """
    try:
        pages = Pages(path)
        start = pages[:64]
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    if not start:
        raise Refused("the file is empty")
    try:
        if start.startswith(b"PK\x03\x04"):
            return _load_zip(path, pages)
        if start.startswith(b"\x80"):
            return _load_legacy(pages), ""
    except Refused:
        raise
    except DAMAGE as error:
        raise Refused(f"the file is damaged: {error}") from error
    if start.lstrip().startswith(b"<"):
        raise Refused("this is a web page, not a checkpoint: the download went wrong")
    if start.startswith(b"version https://git-lfs"):
        raise Refused("this is a Git LFS pointer, not the checkpoint itself: run git lfs pull")
    raise Refused(NEITHER)


def _load_zip(path: str | Path, pages: Pages) -> tuple[Any, str]:
    with zipfile.ZipFile(path) as archive:
        records = _records(archive.infolist(), pages)
    roots = [name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused(f"the archive has {len(roots)} records */data.pkl; a checkpoint has one")
    root = roots[0]
    intact: set[str] = set()

    # Check a record's checksum before any of its bytes are used.
    def checked(name: str, begin: int, end: int) -> bytes:
        first, last, checksum = records[name]
        if name not in intact:
            found = 0
            for piece in range(first, last, PIECE):
                found = zlib.crc32(pages[piece : min(piece + PIECE, last)], found)
            if found != checksum:
                raise Refused(f"the bytes of {shown(name)} do not match their checksum: the file is damaged")
            intact.add(name)
        return pages[first + begin : min(first + end, last)]

    if root + "byteorder" in records and checked(root + "byteorder", 0, 9) != b"little":
        raise Refused("its numbers are not little-endian")

    def storage(identifier: Any) -> Storage:
        dtype, key, count = storage_identifier(identifier, 5)
        name = f"{root}data/{key}"
        if name not in records:
            raise Refused(f"storage {shown(key)} is not in the archive")
        size = records[name][1] - records[name][0]
        if size != count * dtype.itemsize:
            raise Refused(f"storage {shown(key)} has {size} bytes; {count} × {dtype} take {count * dtype.itemsize}")
        return Storage(dtype, count, lambda begin, end: checked(name, begin, end))

    checked(root + "data.pkl", 0, 0)
    content = run(Cursor(pages, *records[root + "data.pkl"][:2]), storage)
    return content, checked(root + NOTES, 0, MAX_TEXT).decode() if root + NOTES in records else ""


def shown(name: str) -> str:
    return f"'{printable(name, 100)}'"


def _records(entries: list[zipfile.ZipInfo], pages: Pages) -> dict[str, tuple[int, int, int]]:
    """Return {name: (begin, end, checksum)} of an archive's records.

    Raises:
        Refused: a record is compressed, encrypted or repeated, overlaps another, or lies outside the file.
    """
    records, end = {}, 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        name, begin = entry.filename, entry.header_offset
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise Refused(f"record {shown(name)} is compressed or encrypted, which torch.save never does")
        if name in records:
            raise Refused(f"the archive has two records {shown(name)}")
        # The central directory may give another length of the extra field, so read that of the record itself.
        signature, name_length, extra_length = struct.unpack("<4s22xHH", pages[begin : begin + 30])
        data = begin + 30 + name_length + extra_length
        if signature != b"PK\x03\x04" or begin < end or data + entry.file_size > len(pages):
            raise Refused(f"record {shown(name)} overlaps another, or lies outside the file")
        end = data + entry.file_size
        records[name] = data, end, entry.CRC
    return records


def _load_legacy(pages: Pages) -> Any:
    """Load a file that has five pickles (magic number, version, system, content, keys) and then the storages' bytes."""
    file = Cursor(pages)
    declared: dict[str, tuple[np.dtype, int]] = {}
    found: dict[str, int] = {}

    def storage(identifier: Any) -> Storage:
        dtype, key, count = storage_identifier(identifier, 6)
        if identifier[5] is not None:
            raise Refused(f"storage {shown(key)} is a view of another; save the file again with a newer PyTorch")
        if declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise Refused(f"storage {shown(key)} is declared twice, in different ways")
        return Storage(dtype, count, lambda begin, end: pages[found[key] + begin : found[key] + end])

    # 1001 is the protocol of all legacy files.
    if run(file) != LEGACY_MAGIC or run(file) != 1001:
        raise Refused(NEITHER)
    system = run(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its numbers are not little-endian")
    content, keys = run(file, storage), run(file)
    if not isinstance(keys, list) or any(type(key) is not str for key in keys) or sorted(keys) != sorted(declared):
        raise Refused("the list of storages is not the one that its tensors use")
    position = file.position
    for key in keys:
        dtype, count = declared[key]
        # Eight bytes before each storage hold its number of elements.
        begin, size = position + 8, count * dtype.itemsize
        if struct.unpack("<q", pages[position:begin])[0] != count or begin + size > len(pages):
            raise Refused(f"storage {shown(key)} is truncated, or does not have the size that its tensors expect")
        found[key] = begin
        position = begin + size
    return content


def save(path: Path, tensors: dict[str, np.ndarray], *, wrapper: str = "", notes: str = "") -> None:
    """Write a state dict that `torch.load(path, weights_only=True)` reads.

    Args:
        path: the file.
        tensors: {name: array}. An array keeps its type, which must be one of STORAGES.
        wrapper: if given, the file contains {wrapper: state dict}.
        notes: text that `load` returns.
    """
    kinds = {dtype: name for name, dtype in STORAGES.items()}
    empty = b"ccollections\nOrderedDict\n)R"  # OrderedDict()
    items = []
    for key, (name, array) in enumerate(tensors.items()):
        strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
        storage = b"(" + _plain("storage") + f"ctorch\n{kinds[array.dtype]}\n".encode()
        storage += _plain(str(key)) + _plain("cpu") + _plain(array.size) + b"tQ"
        view = _plain(0) + _plain(array.shape) + _plain(strides) + _plain(False) + empty
        items.append(_plain(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR")
    state = empty + b"(" + b"".join(items) + b"u"
    if wrapper:
        state = b"}" + _plain(wrapper) + state + b"s"
    with zipfile.ZipFile(path, "w") as archive:
        records = {"data.pkl": b"\x80\x02" + state + b".", "byteorder": b"little", "version": b"3\n"}
        for name, data in (records | ({NOTES: notes.encode()} if notes else {})).items():
            # A bare ZipInfo has a fixed date, so that the same weights give the same file.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
        for key, array in enumerate(tensors.values()):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), np.ascontiguousarray(array).tobytes())


def _plain(value: str | int | bool | tuple[int, ...]) -> bytes:
    """Return the pickle instructions that build a plain value, without those that start and end a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]
