"""Pickles of tensors, run without PyTorch and without running anything that a file asks for.

A pickle is a program. Here it runs on a machine of about thirty instructions that build containers, numbers, text and
tensors, and nothing else; whatever else it asks for is refused by name. It cannot recurse, and what it may take of
memory and time is bounded: so many instructions, so long a text, no tensor larger than its storage.
Instructions: https://docs.python.org/3/library/pickletools.html, https://peps.python.org/pep-0307/.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

from nrsrd_jax.errors import InputError, printable

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
MAX_INSTRUCTIONS = 2_000_000  # a ViT-B with its optimiser takes some 50,000
MAX_TEXT = 2**16  # bytes of one name
MAX_ARGUMENTS = MAX_DIMENSIONS = 8


class Refused(InputError):
    """The file is damaged, or asks for what no tensor needs."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """`count` numbers somewhere in the file; `read` gives their bytes, and is Refused if they are damaged."""

    dtype: np.dtype
    count: int
    read: Callable[[], memoryview]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, not yet read; offset and strides in elements, checked to lie inside it."""

    storage: Storage
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The numbers, read-only, straight from the file's pages; for np.asarray."""
        flat = np.frombuffer(self.storage.read(), self.dtype)[self.offset :]
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return np.array(view, dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle asked for and may have; it is never imported."""

    name: str


class Namespace(dict):
    """The attributes of an argparse.Namespace."""


class Cursor:
    """A position in a file's bytes, as pickletools reads them."""

    def __init__(self, data: memoryview, position: int = 0):
        self._data = data
        self.position = position

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        if size > MAX_TEXT:
            raise Refused(f"its pickle has a text of {size} bytes")
        piece = bytes(self._data[self.position : self.position + size])
        self.position += len(piece)
        return piece

    def readline(self) -> bytes:
        piece = bytes(self._data[self.position : self.position + MAX_TEXT])
        line = piece[: piece.find(b"\n") + 1]
        self.position += len(line)
        return line


def run(cursor: Cursor, storage: Callable[[Any], Storage] | None = None) -> Any:
    """What the pickle at the cursor builds; the cursor ends behind it. `storage` makes a Storage of a persistent id.

    Containers come as plain dicts, lists and tuples, an argparse.Namespace as the dict of its attributes. Refused, or
    another ValueError, LookupError or TypeError, for what is damaged or no plain data.
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
        if not stack or not isinstance(stack[-1], kind):
            raise Refused(f"its pickle adds to something that is no {kind.__name__}")
        return stack[-1]

    def named(module: Any, attribute: Any) -> Global:
        if type(module) is not str or type(attribute) is not str:
            raise Refused("its pickle asks for something without a name")
        name = f"{module}.{attribute}"
        if name not in _CALLS and name not in _STORAGE_NAMES:
            raise Refused(
                f"it asks for {printable(name, 100)!r}, no part of a tensor or of plain data; nothing was run. If you "
                "trust the file, save its state dict alone with PyTorch: torch.save(model.state_dict(), file)"
            )
        return Global(name)

    work = 0
    for operation, argument, _ in pickletools.genops(cast(IO[bytes], cursor)):
        work += 1
        if work > MAX_INSTRUCTIONS:
            raise Refused(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
        match operation.name:
            case "PROTO" | "FRAME":
                pass  # an instruction unknown here is refused, whatever the protocol
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
                items = [pop()]
                top(list).extend(items)
            case "APPENDS":
                items = above_mark()
                top(list).extend(items)
            case "SETITEM":
                items = [pop(), pop()][::-1]
                _fill(top(dict), items)
            case "SETITEMS":
                items = above_mark()
                _fill(top(dict), items)
            case "GLOBAL":
                stack.append(named(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                stack.append(named(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = pop(), pop()
                if not isinstance(function, Global) or function.name not in _CALLS or not isinstance(arguments, tuple):
                    raise Refused("its pickle calls what is no function")
                if len(arguments) > MAX_ARGUMENTS:
                    raise Refused(f"its pickle calls {function.name} with {len(arguments)} arguments")
                stack.append(_CALLS[function.name](*arguments))
            case "BUILD":
                state, target = pop(), top(dict)
                if not isinstance(state, dict):
                    raise Refused("its pickle has an object whose state is no dictionary")
                work += len(state)
                if isinstance(target, Namespace):
                    target.update(state)  # of an OrderedDict the state is metadata, not content
            case "BINPERSID":
                if storage is None:
                    raise Refused("its pickle refers to a storage where there is none")
                stack.append(storage(pop()))
            case "STOP":
                return pop()
            case name:
                raise Refused(f"its pickle has an instruction {name}, which no checkpoint needs")
    raise Refused("its pickle has no end")


def _fill(target: dict, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if any(type(key) not in (str, int) for key in keys):  # a deeply nested tuple would overflow the stack
        raise Refused("its pickle has a dictionary key that is neither text nor a number")
    target.update(zip(keys, values, strict=True))


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise Refused("its pickle has a size, offset or stride that is no natural number")
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


def _ordered_dict() -> dict:  # no arguments: their keys would be neither checked nor counted
    return {}


def _namespace() -> Namespace:
    return Namespace()


def _size(sides: Any) -> tuple[int, ...]:
    if not isinstance(sides, tuple) or len(sides) > MAX_DIMENSIONS:
        raise Refused("a torch.Size that is no tuple of few numbers")
    return sides


def storage_identifier(identifier: Any, length: int) -> tuple[np.dtype, str, int]:
    """The type, key and size of ("storage", type, key, device, size, …)."""
    if not isinstance(identifier, tuple) or len(identifier) != length or identifier[0] != "storage":
        raise Refused("a reference to something that is no storage")
    _, kind, key, _, count = identifier[:5]
    module, _, name = kind.name.rpartition(".") if isinstance(kind, Global) else ("", "", "")
    if module != "torch" or name not in STORAGES or not isinstance(key, str):
        raise Refused("a storage of unknown type")
    return STORAGES[name], key, _natural(count)


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
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
    "argparse.Namespace": _namespace,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": _size,
}
_STORAGE_NAMES = {f"torch.{name}" for name in STORAGES}
