"""The names that a pickle of tensors may contain, and the objects that stand in for them.

A name is only looked up in the tables below; what it names in PyTorch or NumPy is never imported or called. Tensors
become `Tensor`, containers become plain dicts, and other plain data becomes `Inert`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import InputError

# PyTorch's classes of storages, and the types of their numbers.
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "DoubleStorage": np.dtype("<f8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
MAX_DIMENSIONS = 8  # of a tensor


class Refused(InputError):
    """The file is damaged, or asks for something that tensors do not need."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """`count` numbers somewhere in the file.

    `read(begin, end)` returns a range of their bytes. It raises Refused if they are damaged.
    """

    dtype: np.dtype
    count: int
    read: Callable[[int, int], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, which is not read yet. Offset and strides count elements, and lie inside the storage."""

    storage: Storage
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read the numbers from the file, for np.asarray. The array is read-only."""
        size = self.dtype.itemsize
        reach = sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        end = self.offset if 0 in self.shape else self.offset + reach + 1
        flat = np.frombuffer(self.storage.read(self.offset * size, end * size), self.dtype)
        strides = [stride * size for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return np.array(view, dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle asked for and that is allowed. It is never imported."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Inert:
    """Stand in for a piece of plain data beside the weights. Its content is not kept."""

    name: str


class Namespace(dict):
    """The attributes of an argparse.Namespace, or the content of another container of options."""


def natural(value: Any) -> int:
    """Return a size, offset or stride. Raise Refused if it is not a natural number below 2**48."""
    # `isinstance` would accept True as a size.
    if type(value) is not int or not 0 <= value < 2**48:
        raise Refused("its pickle has a size, offset or stride that is not a natural number")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise Refused("a tensor without storage, shape or strides")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Refused(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
    offset, shape, strides = natural(offset), tuple(map(natural, shape)), tuple(map(natural, strides))
    # NumPy limits the product of the sides even of an empty array, so zeros count as ones in `extent`.
    size, extent = math.prod(shape), math.prod(max(n, 1) for n in shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if size > storage.count or (size and last >= storage.count) or offset > storage.count or extent >= 2**48:
        raise Refused(f"a tensor of shape {shape}, strides {strides} and offset {offset} in {storage.count} numbers")
    return Tensor(storage, shape, offset, strides)


# It takes no arguments, because their keys would be neither checked nor counted.
def _ordered_dict() -> dict:
    return {}


def _default_dict(_factory: Any = None) -> dict:
    return {}


def _namespace() -> Namespace:
    return Namespace()


def _size(sides: Any) -> tuple[int, ...]:
    if not isinstance(sides, tuple) or len(sides) > MAX_DIMENSIONS:
        raise Refused("a torch.Size that is not a short tuple of numbers")
    return sides


def storage_identifier(identifier: Any, length: int) -> tuple[np.dtype, str, int]:
    """Return the type, key and size of ("storage", type, key, device, size, …)."""
    if not isinstance(identifier, tuple) or len(identifier) != length or identifier[0] != "storage":
        raise Refused("a reference to something that is not a storage")
    _, kind, key, _, count = identifier[:5]
    module, _, name = kind.name.rpartition(".") if isinstance(kind, Global) else ("", "", "")
    if module != "torch" or name not in STORAGES or not isinstance(key, str):
        raise Refused("a storage of unknown type")
    return STORAGES[name], key, natural(count)


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    **dict.fromkeys(
        (
            *("argparse.Namespace", "types.SimpleNamespace", "yacs.config.CfgNode", "easydict.EasyDict"),
            *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict"),
            *("lightning.pytorch.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict"),
        ),
        _namespace,
    ),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": _size,
}
# Pickles still use the names of Python 2 and NumPy 1, as well as today's.
_BUILTINS, _NUMPY = ("builtins", "__builtin__"), ("numpy.core", "numpy._core")
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
# {type of plain data beside the weights: the least number of its arguments}. A call becomes Inert.
INERT: dict[str, int] = {
    **{f"{module}.multiarray.scalar": 2 for module in _NUMPY},
    **{f"{module}.multiarray._reconstruct": 3 for module in _NUMPY},
    **{f"{module}.numeric._frombuffer": 4 for module in _NUMPY},
    "numpy.dtype": 1,
    **{f"{module}.{name}": 0 for module in ("pathlib", "pathlib._local") for name in _PATHS},
    "torch.device": 1,
    "torch.torch_version.TorchVersion": 1,
    "torch.serialization._get_layout": 1,
    "_codecs.encode": 1,
    **{f"{module}.{name}": 0 for module in _BUILTINS for name in ("set", "frozenset", "bytes", "bytearray")},
    **{f"{module}.{name}": 1 for module in _BUILTINS for name in ("complex", "slice", "range", "xrange")},
    **{f"collections.{name}": 0 for name in ("Counter", "deque")},
    **{f"datetime.{name}": 1 for name in ("datetime", "date", "time", "timedelta", "timezone")},
    "decimal.Decimal": 1,
    "uuid.UUID": 0,
}
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_FLOATS = ["float16", "float32", "float64", "complex64", "complex128"]
_TORCH_TYPES = ["bool", "bfloat16", "complex32", "qint8", "quint8", "qint32", "float8_e4m3fn", "float8_e5m2"]
_NUMPY_TYPES = ["ndarray", "bool", "bool_", "str_", "bytes_", "object_", "float128", "longdouble"]
# Names that may occur in a pickle, but may not be called.
NAMES = {
    *(f"torch.{name}" for name in STORAGES),
    *(f"torch.{name}" for name in (*_INTEGERS, *_FLOATS, *_TORCH_TYPES)),
    *(f"numpy.{name}" for name in (*_INTEGERS, *_FLOATS, *_NUMPY_TYPES)),
    *(f"{module}.{name}" for module in _BUILTINS for name in ("list", "dict", "tuple", "int", "float", "str", "bool")),
}
