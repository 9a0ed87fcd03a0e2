"""Read pickles of tensors without PyTorch, and without running any code that a file asks for.

A pickle is a program. This interpreter knows about thirty instructions, which build containers, numbers, text and
tensors. Known plain data beside the weights (NumPy scalars, paths, devices, …) becomes an Inert placeholder: its type
is looked up in a table, and is never imported or called. The interpreter refuses anything else, and the error names it.
It cannot recurse. Its memory and time are limited: by the number of instructions, the length of texts, and because no
tensor can be larger than its storage.
Instructions: https://docs.python.org/3/library/pickletools.html, https://peps.python.org/pep-0307/.
"""

import pickletools
import sys
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

from ..errors import printable
from .pickle_types import CALLS, INERT, NAMES, Global, Inert, Namespace, Refused, Storage, natural

MAX_INSTRUCTIONS = 2_000_000  # a ViT-B with its optimiser takes about 50,000
MAX_TEXT = 2**24  # bytes of a text; a NumPy array beside the weights is stored as one
MAX_LINE = 2**12  # bytes of the name of a type
MAX_KEY = 2**32  # larger integers can be chosen so that they collide in a dictionary
WINDOW = 2**20  # bytes that a Cursor reads at a time
# PyTorch's longest call, `_rebuild_tensor_v2`, has seven arguments.
MAX_ARGUMENTS = 8


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
        # Without a line break this is empty, which pickletools refuses.
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
        if name not in CALLS and name not in INERT and name not in NAMES:
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
                memo[natural(argument)] = top(object)
            case "MEMOIZE":
                memo[len(memo)] = top(object)
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[natural(argument)])
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
                if (name not in CALLS and name not in INERT) or not isinstance(arguments, tuple):
                    raise Refused("its pickle calls something that is not a function")
                if (name in CALLS and len(arguments) > MAX_ARGUMENTS) or len(arguments) < INERT.get(name, 0):
                    raise Refused(f"its pickle calls {name} with {len(arguments)} arguments")
                stack.append(CALLS[name](*arguments) if name in CALLS else Inert(name))
            case "BUILD":
                state, target = pop(), top(dict)
                if isinstance(target, Inert):
                    continue
                if not isinstance(state, dict):
                    raise Refused("its pickle has an object whose state is not a dictionary")
                # A dictionary can be the state of many objects, so each time its entries count as instructions.
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
