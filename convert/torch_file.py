"""PyTorch's .pth files, read and written without PyTorch, and without running anything that a file asks for.

A .pth is a pickle beside raw storages: in a zip archive (torch >= 1.6), or one after the other (the legacy format).
Tensors stay on disk until `np.asarray` reads them. Formats: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import math
import mmap
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tensor_pickle import STORAGES, Cursor, Refused, Storage, run, storage_identifier

NOTES = "nrsrd_jax.json"  # a record of ours that PyTorch passes over: the model's description
NEITHER = "this is not a PyTorch checkpoint: it begins like neither the zip nor the legacy format"
DAMAGE = (  # what zipfile, struct and pickletools raise on nonsense, beside InputError's own ValueError
    *(ValueError, TypeError, LookupError, OverflowError),
    *(OSError, EOFError, struct.error, zipfile.BadZipFile, NotImplementedError),
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def load(path: str | Path) -> tuple[Any, str]:
    """What `torch.save` put into the file, with a Tensor for each tensor, and our notes ("" if there are none).

    Containers come back as plain dicts, lists and tuples, an argparse.Namespace as the dict of its attributes.
    Refused, an InputError, for anything that is damaged or is more than plain data.
    """
    try:
        with open(path, "rb") as file:
            pages = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise Refused("the file is empty") from error
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from error
    start = bytes(pages[:64])
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


def _load_zip(path: str | Path, pages: memoryview) -> tuple[Any, str]:
    with zipfile.ZipFile(path) as archive:
        records = _records(archive.infolist(), pages)
    roots = [name.removesuffix("data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused(f"the archive has {len(roots)} records */data.pkl; a checkpoint has one")
    root = roots[0]
    if root + "byteorder" in records and bytes(records[root + "byteorder"][0]) != b"little":
        raise Refused("its numbers are not little-endian")

    intact: set[str] = set()

    def checked(name: str) -> memoryview:
        data, checksum = records[name]
        if name not in intact and zlib.crc32(data) != checksum:
            raise Refused(f"the bytes of {name!r} do not match their checksum: the file is damaged")
        intact.add(name)
        return data

    def storage(identifier: Any) -> Storage:
        dtype, key, count = storage_identifier(identifier, 5)
        name = f"{root}data/{key}"
        if name not in records:
            raise Refused(f"storage {key!r} is not in the archive")
        size = len(records[name][0])
        if size != count * dtype.itemsize:
            raise Refused(f"storage {key!r} has {size} bytes; {count} × {dtype} take {count * dtype.itemsize}")
        return Storage(dtype, count, lambda: checked(name))

    content = run(Cursor(checked(root + "data.pkl")), storage)
    return content, bytes(checked(root + NOTES)).decode() if root + NOTES in records else ""


def _records(entries: list[zipfile.ZipInfo], pages: memoryview) -> dict[str, tuple[memoryview, int]]:
    """{name: (bytes, checksum)} of an archive that hides nothing: stored plainly, side by side, inside the file."""
    records, end = {}, 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        name, begin = entry.filename, entry.header_offset
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise Refused(f"record {name!r} is compressed or encrypted; torch.save stores plainly")
        if name in records:
            raise Refused(f"the archive has two records {name!r}")
        signature, name_length, extra_length = struct.unpack("<4s22xHH", pages[begin : begin + 30])
        data = begin + 30 + name_length + extra_length
        if signature != b"PK\x03\x04" or begin < end or data + entry.file_size > len(pages):
            raise Refused(f"record {name!r} overlaps another, or lies outside the file")
        end = data + entry.file_size
        records[name] = pages[data:end], entry.CRC
    return records


def _load_legacy(pages: memoryview) -> Any:
    file = Cursor(pages)
    declared: dict[str, tuple[np.dtype, int]] = {}
    found: dict[str, memoryview] = {}

    def storage(identifier: Any) -> Storage:
        dtype, key, count = storage_identifier(identifier, 6)
        if identifier[5] is not None:
            raise Refused(f"storage {key!r} is a view of another; save the file again with a newer PyTorch")
        if declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise Refused(f"storage {key!r} is declared twice, and differently")
        return Storage(dtype, count, lambda: found[key])

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
        begin, size = position + 8, count * dtype.itemsize
        if struct.unpack("<q", pages[position:begin])[0] != count or begin + size > len(pages):
            raise Refused(f"storage {key!r} is cut off, or not of the size that its tensors expect")
        found[key] = pages[begin : begin + size]
        position = begin + size
    return content


def save(path: Path, tensors: dict[str, np.ndarray], *, wrapper: str = "", notes: str = "") -> None:
    """Writes a state dict that `torch.load(path, weights_only=True)` reads; with `wrapper`, {wrapper: state dict}.

    A tensor is written as it is: its type must be one of STORAGES. `notes` go where `load` finds them.
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
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # no time: same weights, same file
        for key, array in enumerate(tensors.values()):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), np.ascontiguousarray(array).tobytes())


def _plain(value: str | int | bool | tuple[int, ...]) -> bytes:
    """The instructions that build a plain value, without start and stop."""
    return pickle.dumps(value, protocol=2)[2:-1]
