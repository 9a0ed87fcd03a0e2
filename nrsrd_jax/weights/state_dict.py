"""The state dict in a checkpoint file, under the names of the official Re-ID model.

The state dict is found by its structure: a dictionary with tensors, one of them named `….cls_token` (a ViT) or
`….layer1.0.conv1.weight` (a ResNet). Both are called networks here.
"""

import dataclasses
from collections import deque
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from . import foreign_names, weights_file
from .foreign_names import Array
from .tensor_pickle import Inert

LISTS = (list, tuple)
MAX_LEVELS = 8  # of dictionaries inside dictionaries
MAX_STEPS = 32  # of a name, between dots, that are searched for the prefix of a model
MAX_ROWS = 100  # of what lies beside the weights
MAX_NAME = 1000  # characters; the names of a real model have some 60
MAX_NETWORKS = 64
SIGNS = ("cls_token", "layer1.0.conv1.weight")  # the tensors that tell a ViT and a ResNet


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors by official name, and what to report about them."""

    tensors: dict[str, Array]
    beside: dict[str, str]  # what else the file holds
    faults: dict[str, str]  # what should not be there
    notes: str  # to_torch.py's description of the model, "" if it did not make the file
    remarks: dict[str, str] = dataclasses.field(default_factory=dict)  # how a tensor came to its official name
    origin: str = ""  # where in the file the tensors were found
    files: tuple[Path, ...] = ()  # all that were read
    sources: dict[str, str] = dataclasses.field(default_factory=dict)  # the file's own names, by official name


@dataclasses.dataclass(frozen=True)
class Found:
    """A network in a dictionary of the file: its names there begin with `prefix`."""

    path: tuple[str, ...]
    content: list[tuple[str, Any]]  # names without `module.` and the like, and values
    prefix: str
    layout: str  # "embeddings." for Hugging Face's names
    alone: bool  # whether the dictionary holds no other network

    @property
    def key(self) -> str:
        """Return what --key calls it."""
        return "/".join([*self.path, *([] if self.alone else [self.prefix.rstrip(".") or "."])]) or "."

    @property
    def parent(self) -> str:
        """Return the prefix of the Re-ID model around the backbone: "model." for "model.base."."""
        return "".join(part + "." for part in self.prefix.split(".")[:-2])

    @property
    def words(self) -> set[str]:
        return {*self.path, *self.prefix.split(".")}


def read(path: Path, key: str = "") -> StateDict:
    """Return the state dict of a file, of shards by their index, or of a folder with either.

    Args:
        path: the file or folder.
        key: which network to take where there are several, by the name that the error about them gives it.

    Raises:
        InputError: there is no network, or there are several and `key` names none of them.
    """
    content, notes, files = weights_file.load(path)
    dictionaries = _dictionaries(content)
    if not dictionaries:
        raise InputError("it holds no state dict: there is no dictionary with tensors in it")
    found = _networks(dictionaries)
    if not found:
        raise InputError(_no_network([dictionary for _, dictionary in dictionaries]))
    vit = _choose(found, key)
    tensors, beside, faults, sources = _official(vit, _rivals(vit, found))
    tensors, joined = foreign_names.from_hugging_face(tensors) if vit.layout else (tensors, {})
    tensors, pooled = foreign_names.with_final_norm(tensors)
    where = [f"under {'/'.join(vit.path)}"] * bool(vit.path) + [f"behind the prefix {vit.prefix}"] * bool(vit.prefix)
    origin = ", ".join(where + ["by Hugging Face's names"] * bool(vit.layout))
    beside = _few(_siblings(content, vit.path) | beside)
    return StateDict(tensors, beside, faults, notes, joined | pooled, origin, tuple(files), sources)


def _dictionaries(content: Any) -> list[tuple[tuple[str, ...], dict]]:
    """Return all dictionaries that hold tensors, and where they are, the outermost first."""
    found: list[tuple[tuple[str, ...], dict]] = []
    seen: set[int] = set()
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    while queue:
        path, value = queue.popleft()
        if id(value) in seen:  # A pickle can put one container into many places, or into itself.
            continue
        seen.add(id(value))
        items = _items(value)
        holds = isinstance(value, dict) and any(isinstance(item, Array) for _, item in items)
        used = [name for name, item in items if holds or isinstance(item, (dict, *LISTS))]
        if long := next((name for name in used if isinstance(name, str) and len(name) > MAX_NAME), ""):
            raise InputError(f"a name in it has {len(long)} characters, and may have {MAX_NAME}: {printable(long, 60)}")
        if holds:
            found.append((path, value))
        if len(path) < MAX_LEVELS:
            queue.extend(((*path, str(name)), item) for name, item in items if isinstance(item, (dict, *LISTS)))
    return found


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Return what a dictionary or list holds, by key or index; nothing for any other value."""
    return list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, LISTS) else ())


def _networks(dictionaries: list[tuple[tuple[str, ...], dict]]) -> list[Found]:
    """Return the networks in all dictionaries. Raises InputError if there are too many to look at each."""
    found = []
    for path, dictionary in dictionaries:
        content = [(foreign_names.without_wrappers(name), value) for name, value in dictionary.items()]
        ends = {name.removesuffix(sign) for name, value in content for sign in SIGNS if isinstance(value, Array)
                and f".{name}".endswith(f".{sign}")}  # fmt: skip
        theirs = foreign_names.hugging_face_ends(name for name, _ in content)
        for end in sorted(ends):
            layout = "embeddings." if end in theirs else ""
            found.append(Found(path, content, end.removesuffix(layout), layout, len(ends) == 1))
    if len(found) > MAX_NETWORKS:
        some = ", ".join(printable(vit.key, 100) for vit in found[:4])
        raise InputError(
            f"it holds {len(found)} networks: {some}, …; no more than {MAX_NETWORKS} are read: save one alone"
        )
    return found


def _choose(found: list[Found], key: str) -> Found:
    if key:
        chosen = [vit for vit in found if vit.key == key] or [vit for vit in found if vit.key.endswith(f"/{key}")]
    else:
        # A DINO or iBOT checkpoint holds teacher and student; the official loader takes the teacher.
        teachers = [vit for vit in found if "teacher" in vit.words]
        students = [vit for vit in found if "student" in vit.words]
        chosen = teachers if len(found) == len(teachers) + len(students) and len(teachers) == 1 else found
    if len(chosen) == 1:
        return chosen[0]
    counts = [len(_official(vit, _rivals(vit, found))[0]) for vit in found[:10]]
    listed = ", ".join(
        f"{printable(vit.key, 100)} ({count} tensors)" for vit, count in zip(found, counts, strict=False)
    )
    listed += ", …" * (len(found) > 10)
    if key:
        raise InputError(f"--key {printable(key, 100)} names no network in it; there are: {listed}")
    raise InputError(f"it holds {len(found)} networks: {listed}; choose one with --key")


def _rivals(vit: Found, found: list[Found]) -> list[Found]:
    """Return the networks in the same dictionary."""
    return [other for other in found if other.content is vit.content]


def _siblings(content: Any, path: tuple[str, ...]) -> dict[str, str]:
    """Return what else the file holds at each step of the path to the weights."""
    beside = {}
    for step in path:
        items = {str(name): item for name, item in _items(content)}
        beside |= {name: f"beside the weights, which are in '{printable(step, 100)}'" for name in items if name != step}
        content = items[step]
    return beside


def _official(
    vit: Found, rivals: list[Found]
) -> tuple[dict[str, Array], dict[str, str], dict[str, str], dict[str, str]]:
    """Return the tensors of a network and of the Re-ID model around it, the rest, faults, and the file's names."""
    owners = {"": vit}
    owners |= {other.parent: other for other in rivals if other.parent and not vit.prefix.startswith(other.parent)}
    owners |= {vit.parent: vit} | {other.prefix: other for other in rivals}
    parent = vit.parent
    tensors: dict[str, Array] = {}
    beside, faults, sources, others = {}, {}, {}, dict.fromkeys((other.key for other in rivals if other is not vit), 0)
    for name, value in vit.content:
        steps = name.split(".", MAX_STEPS)[:-1]
        prefixes = ("".join(step + "." for step in steps[:count]) for count in range(len(steps), -1, -1))
        owner = owners[next(prefix for prefix in prefixes if prefix in owners)]
        if owner is not vit:
            others[owner.key] += 1
            continue
        inside, around = name.startswith(vit.prefix), name.startswith(parent)
        official = "base." + name[len(vit.prefix) :] if inside else name[len(parent) * around :]
        if not isinstance(value, Array):
            beside[name] = f"not a tensor but {value.name if isinstance(value, Inert) else type(value).__name__}"
        elif official in tensors:
            faults[official] = "stands there twice, under different prefixes"
        elif not official.isprintable():
            faults[official] = "a name that cannot be shown"
        else:
            tensors[official], sources[official] = value, name
    beside |= {key: f"another network, of {count} tensors" for key, count in others.items()}
    return tensors, beside, faults, sources


def _few(beside: dict[str, str]) -> dict[str, str]:
    """Return the first rows, and the number of the others."""
    if len(beside) <= MAX_ROWS:
        return beside
    return dict(list(beside.items())[:MAX_ROWS]) | {"…": f"{len(beside) - MAX_ROWS} more beside the weights"}


def _no_network(dictionaries: list[dict]) -> str:
    names = [str(name) for dictionary in dictionaries for name in dictionary]
    some = ", ".join(printable(name, 100) for name in list(max(dictionaries, key=len))[:4])
    what = foreign_names.other_model(names)
    readable = "only a ViT with a class token is read, as of TransReID-SSL, PersonViT, DINO, timm, or a ResNet-50"
    if what:
        return f"it holds {what}; {readable}"
    return f"it holds no ViT and no ResNet: there is no cls_token and no layer1; its names are {some}"
