"""Weights files for the tests, written without PyTorch; their pickles may be wrong on purpose."""

import json
import pickle
import struct
import zipfile

import jax
import numpy as np
from people import small_model

from nrsrd_jax.checkpoint import weights_hash
from nrsrd_jax.weights import torch_file, torch_names
from nrsrd_jax.weights.pickle_types import Refused, Tensor

# The golden files in the two formats of torch.save.
FORMATS = ["plain_zip", "plain_legacy"]


def reid_tensors():
    """Return the tensors of a small Re-ID model of five people under the official names, and its hash."""
    description, variables = small_model(1, classes=5)
    table, tensors = torch_names.slots(description), {}
    for name, slot in table.items():
        value = variables
        for key in slot.path:
            value = value[key]
        tensors[name] = np.ascontiguousarray(slot.to_torch(np.asarray(value)))
    return tensors, weights_hash(jax.tree.map(np.asarray, variables))


def backbone_tensors(tensors):
    """Return the tensors of the backbone alone, under timm's names."""
    return {name.removeprefix("base."): value for name, value in tensors.items() if name.startswith("base.")}


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def save(path, content):
    """Write a file as torch.save does: arrays in dictionaries are tensors, anything else is pickled as it is."""
    arrays = []

    def build(value):
        if isinstance(value, np.ndarray):
            arrays.append(value)
            kind = {dtype: name for name, dtype in torch_file.STORAGES.items()}[value.dtype]
            strides = tuple(int(np.prod(value.shape[i + 1 :])) for i in range(value.ndim))
            plain = torch_file._plain
            storage = b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(str(len(arrays) - 1))
            storage += plain("cpu") + plain(value.size) + b"tQ" + plain(0) + plain(value.shape) + plain(strides)
            return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + plain(False) + b"ccollections\nOrderedDict\n)RtR"
        if type(value) is dict:
            return b"}(" + b"".join(build(key) + build(item) for key, item in value.items()) + b"u"
        if type(value) is list:
            return b"](" + b"".join(map(build, value)) + b"e"
        # Bytes are a pickle that a test wrote.
        if type(value) is bytes:
            return value
        # Without the protocol in front and the stop at the end, a pickle can stand inside another.
        return pickle.dumps(value, 2)[2:-1]

    program = build(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        for i, array in enumerate(arrays):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(array).tobytes())
    return path


def backbone_hash(variables):
    return weights_hash({"params": {"base": variables["params"]["base"]}, "batch_stats": {}})


def rows(report):
    return {name: (verdict, note) for name, _, verdict, note in report.rows}


def zeros(tensors):
    return {name: np.zeros_like(value) for name, value in tensors.items()}


def plain(value):
    """Replace the tensors of loaded content by arrays."""
    if isinstance(value, Tensor):
        return np.asarray(value)
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def archive(path, content, records=(), compression=zipfile.ZIP_STORED):
    """Write a zip checkpoint with a given pickle and other records."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in records:
            file.writestr(name, data)
    return path


def tensor(kind="FloatStorage", key="0", count=4, offset=0, shape=(4,), strides=(1,), legacy=False):
    """Return the pickle instructions for {"w": a tensor}. Its numbers may be wrong."""
    parts = [torch_file._plain(part) for part in ("w", "storage", key, "cpu", count, offset, shape, strides)]
    name, storage, key, cpu, count, offset, shape, strides = parts
    end = b"N" if legacy else b""
    storage = b"(" + storage + f"ctorch\n{kind}\n".encode() + key + cpu + count + end + b"tQ"
    view = offset + shape + strides + b"\x89N"
    return b"\x80\x02}" + name + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."


FOUR = [("archive/data/0", np.arange(4, dtype=np.float32).tobytes())]


def refusal(path):
    """Return why a file is refused, or "" if it is read."""
    try:
        plain(torch_file.load(path)[0])
    except Refused as error:
        return str(error)
    return ""


def safetensors(path, header, data=b""):
    """Write a safetensors file. Its header may be wrong."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def described(shape, begin=0, size=0, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, begin + size]}
