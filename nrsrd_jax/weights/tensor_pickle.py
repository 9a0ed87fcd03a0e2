"""Read pickles of tensors without PyTorch, and without running any code that a file asks for.

A pickle is a program. This interpreter knows about thirty instructions, which build containers, numbers, text and
tensors. Known plain data beside the weights (NumPy scalars, paths, devices, …) becomes an Inert placeholder: its type
is looked up in a table, and is never imported or called. The interpreter refuses anything else, and the error names it.
It cannot recurse. Its memory and time are limited: by the number of instructions, the length of texts, and because no
tensor can be larger than its storage.
Instructions: https://docs.python.org/3/library/pickletools.html, https://peps.python.org/pep-0307/.
"""

import dataclasses
import math
import pickletools
import sys
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

import ml_dtypes
import numpy as np

from ..errors import InputError, printable

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
MAX_INSTRUCTIONS = 2_000_000  # a ViT-B with its optimiser takes about 50,000
MAX_TEXT = 2**24  # bytes of a text; a NumPy array beside the weights is stored as one
MAX_LINE = 2**12  # bytes of the name of a type
MAX_KEY = 2**32  # larger integers can be chosen so that they collide in a dictionary
WINDOW = 2**20  # bytes that a Cursor reads at a time
MAX_ARGUMENTS = MAX_DIMENSIONS = 8


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


class Slices(Protocol):
    """Bytes that are read by slices: a memoryview, or a part of a file."""

    def __getitem__(self, part: slice, /) -> Any: ...


class Cursor:
    """A position in a file's bytes, as pickletools reads them."""

    def __init__(self, data: Slices, position: int = 0, end: int = sys.maxsize):
        self._data, self._end = data, end
        self.position = position
        self._window, self._begin = b"", position

    def _peek(self, size: int) -> bytes:
        start = self.position - self._begin
        if start + size > len(self._window):
            end = min(self.position + max(size, WINDOW), self._end)
            self._window, self._begin, start = bytes(self._data[self.position : end]), self.position, 0
        return self._window[start : start + size]

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if size > MAX_TEXT:
            raise Refused(f"its pickle has a text of {size} bytes")
        piece = self._peek(size)
        self.position += len(piece)
        return piece

    def readline(self) -> bytes:
        piece = self._peek(MAX_LINE)
        line = piece[: piece.find(b"\n") + 1]
        self.position += len(line)
        return line


def run(cursor: Cursor, storage: Callable[[Any], Storage] | None = None) -> Any:
    """Run the pickle at the cursor, and return the object that it builds. The cursor then is at its end.

    Containers become plain dicts, lists and tuples; an argparse.Namespace becomes the dict of its attributes; other
    known plain data becomes Inert. Keys that are not text or small integers become text.

    Args:
        cursor: the beginning of the pickle.
        storage: returns the Storage of a persistent id; without it, the pickle may not refer to storages.

    Raises:
        Refused: the pickle is damaged, or asks for more than plain data. Damage can also raise another ValueError, a
            LookupError or a TypeError.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop() -> Any:
        if len(stack) <= (marks[-1] if marks else 0):
            raise Refused("its pickle takes more than it has")
        return stack.pop()

    def above_mark() -> list[Any]:
        if not marks:
            raise Refused("its pickle takes more than it has")
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def top(kind: type) -> Any:
        if not stack or not isinstance(stack[-1], (kind, Inert)):
            raise Refused(f"its pickle adds to something that is not a {kind.__name__}")
        return stack[-1]

    def add(items: list[Any]) -> None:
        target = top(list)
        if not isinstance(target, Inert):
            target.extend(items)

    def fill(items: list[Any]) -> None:
        target = top(dict)
        keys = [_key(key, len(target) + i) for i, key in enumerate(items[::2])] if isinstance(target, dict) else []
        if keys:
            target.update(zip(keys, items[1::2], strict=True))

    def named(module: Any, attribute: Any) -> Global:
        if type(module) is not str or type(attribute) is not str:
            raise Refused("its pickle asks for something without a name")
        name = f"{module}.{attribute}"
        if name not in _CALLS and name not in _INERT and name not in _NAMES:
            raise Refused(
                f"it asks for {printable(name, 100)!r}, which is neither part of a tensor nor plain data; nothing was "
                "run. If you trust the file, save only its state dict: torch.save(model.state_dict(), file) in PyTorch"
            )
        return Global(name)

    work = 0
    for operation, argument, _ in pickletools.genops(cast(IO[bytes], cursor)):
        work += 1
        if work > MAX_INSTRUCTIONS:
            raise Refused(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
        match operation.name:
            case "PROTO" | "FRAME":
                # The protocol does not matter, because unknown instructions are refused below.
                pass
            case name if name in _VALUES:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[_natural(argument)] = top(object)
            case "MEMOIZE":
                memo[len(memo)] = top(object)
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[_natural(argument)])
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple([pop() for _ in range(int(name[-1]))][::-1]))
            case "APPEND":
                add([pop()])
            case "APPENDS" | "ADDITEMS":
                add(above_mark())
            case "SETITEM":
                fill([pop(), pop()][::-1])
            case "SETITEMS":
                fill(above_mark())
            case "EMPTY_SET":
                stack.append(Inert("set"))
            case "FROZENSET":
                above_mark()
                stack.append(Inert("frozenset"))
            case "GLOBAL":
                stack.append(named(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                stack.append(named(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = pop(), pop()
                name = function.name if isinstance(function, Global) else ""
                if (name not in _CALLS and name not in _INERT) or not isinstance(arguments, tuple):
                    raise Refused("its pickle calls something that is not a function")
                if (name in _CALLS and len(arguments) > MAX_ARGUMENTS) or len(arguments) < _INERT.get(name, 0):
                    raise Refused(f"its pickle calls {name} with {len(arguments)} arguments")
                stack.append(_CALLS[name](*arguments) if name in _CALLS else Inert(name))
            case "BUILD":
                state, target = pop(), top(dict)
                if isinstance(target, Inert):
                    continue
                if not isinstance(state, dict):
                    raise Refused("its pickle has an object whose state is not a dictionary")
                work += len(state)
                # The state of an OrderedDict is metadata, and is left out.
                if isinstance(target, Namespace):
                    target.update(state)
            case "BINPERSID":
                if storage is None:
                    raise Refused("its pickle refers to a storage that it does not have")
                stack.append(storage(pop()))
            case "STOP":
                return pop()
            case name:
                raise Refused(f"its pickle has an instruction {name}, which no checkpoint needs")
    raise Refused("its pickle has no end")


def _key(key: Any, position: int) -> str | int:
    """Return a dictionary key as text, whose hash cannot be predicted, or as an integer too small to collide."""
    if type(key) is str or (type(key) is int and 0 <= key < MAX_KEY):
        return key
    if key is None or type(key) in (int, float, bool):
        return str(key)
    if isinstance(key, Inert):
        return f"{key.name} {position}"
    # Refuse tuples, because hashing a deeply nested one would overflow the stack.
    raise Refused("its pickle has a dictionary key that is neither text nor a number")


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise Refused("its pickle has a size, offset or stride that is not a natural number")
    return value


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise Refused("a tensor without storage, shape or strides")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Refused(f"a tensor of {len(shape)} dimensions and {len(strides)} strides")
    offset, shape, strides = _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, strides))
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
    return STORAGES[name], key, _natural(count)


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_CALLS: dict[str, Callable[..., Any]] = {
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
_INERT: dict[str, int] = {
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
_NAMES = {
    *(f"torch.{name}" for name in STORAGES),
    *(f"torch.{name}" for name in (*_INTEGERS, *_FLOATS, *_TORCH_TYPES)),
    *(f"numpy.{name}" for name in (*_INTEGERS, *_FLOATS, *_NUMPY_TYPES)),
    *(f"{module}.{name}" for module in _BUILTINS for name in ("list", "dict", "tuple", "int", "float", "str", "bool")),
}
