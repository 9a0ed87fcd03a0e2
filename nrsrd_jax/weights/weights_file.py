"""Read files of weights: .pth (zip and legacy) and .safetensors, alone or in shards with an index."""

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize

from ..errors import InputError, printable
from ..files import read_bounded
from . import torch_file
from .pickle_types import MAX_DIMENSIONS

INDEX = ".index.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# The beginning of a JSON object. Editors on Windows put a mark before UTF-8, and PowerShell writes UTF-16.
JSON = re.compile(rb"(\xef\xbb\xbf)?\s*\{[^\0]*\Z|\xff\xfe(\s\0)*\{\0[^\0]|\xfe\xff(\0\s)*\0\{\0[^\0]")
# Hugging Face's names of shards.
SHARD = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})(\.safetensors|\.bin)")
MAX_BYTES = 2**32  # of safetensors, which are read as a whole; a ViT-B in float64 takes 0.7 GB
MAX_INDEX = 2**24  # bytes of an index
# Limits of a tensor's shape: of one side, and of the product of all. NumPy limits the shapes even of empty arrays.
MAX_SIDE, MAX_EXTENT = 2**31, 2**48
TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "BOOL": "?",
    "C64": "<c8",
    **{f"{sign}{bits}": f"<{kind}{bits // 8}" for sign, kind in (("I", "i"), ("U", "u")) for bits in (8, 16, 32, 64)},
}


def load(path: Path) -> tuple[Any, str, list[Path]]:
    """Load the weights at a path.

    Args:
        path: a file, an index of shards, or a folder with one of these.

    Returns:
        The content; the notes that to_torch.py wrote, or ""; and the files that were read.

    Raises:
        InputError: the path has no checkpoint, the checkpoint is damaged, or it is one shard of several.
    """
    path = _in_folder(path) if path.is_dir() else path
    with path.open("rb") as file:
        start = file.read(64)
    if JSON.match(start):
        return _load_shards(path)
    if (shard := SHARD.fullmatch(path.name)) and int(shard[3]) > 1:
        index = path.with_name(f"{shard[1]}{shard[4]}{INDEX}")
        rest = (
            f"give {index}" if index.is_file() else f"put all of them and {index.name} into one folder, and give that"
        )
        raise InputError(f"this is one of {int(shard[3])} shards: {rest}")
    return *_load_one(path, start, MAX_BYTES), [path]


def _in_folder(folder: Path) -> Path:
    """Return a folder's index of shards, or its only file of weights."""
    indexes = sorted(folder.glob(f"*{INDEX}"))
    found = indexes or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    names = ", ".join(printable(path.name, 100) for path in found[:6])
    raise InputError(f"this is a folder with {len(found)} files of weights{': ' if found else ''}{names}; name a file")


def _load_one(path: Path, start: bytes, limit: int) -> tuple[Any, str]:
    # A safetensors file begins with eight bytes of size, followed by JSON.
    if not start[8:].startswith(b"{") or start.startswith(b"PK"):
        return torch_file.load(path)
    try:
        data = read_bounded(path, limit)
        tensors = deserialize(data)
    except SafetensorError as error:
        raise InputError(f"the file is damaged or incomplete: {printable(error, 300)}") from error
    content = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in TYPES:
            raise InputError(f"type {tensor['dtype']} of {printable(name, 100)} is not supported; save it as float32")
        shape = tensor["shape"]
        if len(shape) > MAX_DIMENSIONS:
            raise InputError(
                f"{printable(name, 100)} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are supported"
            )
        if max(shape, default=0) >= MAX_SIDE or math.prod(max(side, 1) for side in shape) >= MAX_EXTENT:
            raise InputError(f"{printable(name, 100)} has shape {tuple(shape)}, which is too large for a tensor")
        content[name] = np.frombuffer(tensor["data"], TYPES[tensor["dtype"]]).reshape(shape)
    # deserialize has checked the header. Its metadata may be missing or null.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return content, (header.get("__metadata__") or {}).get(torch_file.NOTES, "")


def _load_shards(index: Path) -> tuple[dict[str, Any], str, list[Path]]:
    """Join the shards that an index names. They must be in its folder and contain the tensors that it lists."""
    try:
        places = json.loads(read_bounded(index, MAX_INDEX))["weight_map"]
        shards = sorted(set(places.values()))
        plain = all(re.fullmatch(r"\w[\w.-]{0,200}", shard) for shard in shards)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError("this is JSON, but not an index of shards: it has no weight_map of names") from error
    if not plain:
        raise InputError("the index names shards outside its own folder; no shard was read")
    # Compare the names in index and shard, which may be from different downloads.
    expected: defaultdict[str, set[str]] = defaultdict(set)
    for name, shard in places.items():
        expected[shard].add(name)
    content: dict[str, Any] = {}
    left = MAX_BYTES
    for shard in shards:
        path = index.with_name(shard)
        if not path.is_file():
            raise InputError(f"the index names {len(shards)} shards, but {shard} is missing beside it")
        with path.open("rb") as file:
            start = file.read(64)
        try:
            tensors, _ = _load_one(path, start, left)
        except InputError as error:
            raise InputError(f"shard {shard}: {error}") from error
        if not isinstance(tensors, dict):
            raise InputError(f"shard {shard} contains no dictionary of tensors")
        left -= sum(tensor.nbytes for tensor in tensors.values() if isinstance(tensor, np.ndarray))
        if tensors.keys() != expected[shard]:
            name = printable(min(tensors.keys() ^ expected[shard], key=str), 100)
            raise InputError(f"shard {shard} and the index differ about {name}: download all files again, together")
        content |= tensors
    return content, "", [index, *(index.with_name(shard) for shard in shards)]
