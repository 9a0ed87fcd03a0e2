"""Find the state dict in a checkpoint file, and give its tensors the names of the official Re-ID model.

A state dict is recognised by its structure: a dictionary with tensors, of which one is named `….cls_token` (a ViT) or
`….layer1.0.conv1.weight` (a ResNet). Both are called networks here.
"""

import dataclasses
from collections import deque
from pathlib import Path
from typing import Any

from ..errors import InputError, printable
from . import foreign_names, weights_file
from .foreign_names import Array
from .pickle_types import Inert

LISTS = (list, tuple)
MAX_LEVELS = 8  # of dictionaries inside dictionaries
MAX_STEPS = 32  # parts of a name, between dots, that are searched for the prefix of a model
MAX_ROWS = 100  # of the report, about what the file contains beside the weights
MAX_NAME = 1000  # characters; the names of a real model have about 60
MAX_NETWORKS = 64
# The tensors that identify a ViT and a ResNet.
SIGNS = ("cls_token", "layer1.0.conv1.weight")


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors under their official names, and what to report about them.

    Attributes:
        tensors: {official name: tensor}.
        beside: {name: reason} for everything else in the file, which is ignored.
        faults: {official name: reason} for tensors that make the file unusable.
        notes: to_torch.py's description of the model; "" if it did not write the file.
        remarks: {official name: how the tensor was renamed or changed}.
        origin: where in the file the tensors were found.
        files: all files that were read.
        sources: {official name: name in the file}.
    """

    tensors: dict[str, Array]
    beside: dict[str, str]
    faults: dict[str, str]
    notes: str
    remarks: dict[str, str] = dataclasses.field(default_factory=dict)
    origin: str = ""
    files: tuple[Path, ...] = ()
    sources: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Found:
    """A network in a dictionary of the file.

    Attributes:
        path: the keys that lead to the dictionary.
        content: the dictionary's names, without `module.` and the like, and values.
        prefix: the beginning of the network's names in the dictionary.
        layout: "embeddings." if the names are Hugging Face's, otherwise "".
        alone: whether the dictionary contains no other network.
    """

    path: tuple[str, ...]
    content: list[tuple[str, Any]]
    prefix: str
    layout: str
    alone: bool

    @property
    def key(self) -> str:
        """Return the network's name for --key."""
        return "/".join([*self.path, *([] if self.alone else [self.prefix.rstrip(".") or "."])]) or "."

    @property
    def parent(self) -> str:
        """Return the prefix of the Re-ID model around the backbone: "model." for "model.base."."""
        return "".join(part + "." for part in self.prefix.split(".")[:-2])

    @property
    def words(self) -> set[str]:
        return {*self.path, *self.prefix.split(".")}


def read(path: Path, key: str = "") -> StateDict:
    """Read the state dict of a file, of shards by their index, or of a folder with either.

    Args:
        path: the file or folder.
        key: the network to take if there are several, as the error about them names it.

    Raises:
        InputError: the file contains no network, or several and `key` is not the name of one.
    """
    content, notes, files = weights_file.load(path)
    dictionaries = _dictionaries(content)
    if not dictionaries:
        raise InputError("it contains no state dict: no dictionary in it has tensors")
    found = _networks(dictionaries)
    if not found:
        raise InputError(_no_network([dictionary for _, dictionary in dictionaries]))
    prefixes = {vit.prefix for vit in found}
    if any(f".{prefix}".endswith(".model_e.") and f"{prefix[:-2]}v." in prefixes for prefix in prefixes):
        raise InputError("it contains an IDF model (networks model_e and model_v); files of IDF cannot be imported")
    vit = _choose(found, key)
    tensors, beside, faults, sources = _official(vit, _rivals(vit, found))
    tensors, joined = foreign_names.from_hugging_face(tensors) if vit.layout else (tensors, {})
    tensors, pooled = foreign_names.with_final_norm(tensors)
    where = [f"under {'/'.join(vit.path)}"] * bool(vit.path) + [f"behind the prefix {vit.prefix}"] * bool(vit.prefix)
    origin = ", ".join(where + ["by Hugging Face's names"] * bool(vit.layout))
    beside = _few(_siblings(content, vit.path) | beside)
    return StateDict(tensors, beside, faults, notes, joined | pooled, origin, tuple(files), sources)


def _dictionaries(content: Any) -> list[tuple[tuple[str, ...], dict]]:
    """Return (keys that lead to it, dictionary) of all dictionaries that contain tensors, the outermost first."""
    found: list[tuple[tuple[str, ...], dict]] = []
    seen: set[int] = set()
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    while queue:
        path, value = queue.popleft()
        # A pickle can put one container into many places, or into itself.
        if id(value) in seen:
            continue
        seen.add(id(value))
        items = _items(value)
        holds = isinstance(value, dict) and any(isinstance(item, Array) for _, item in items)
        used = [name for name, item in items if holds or isinstance(item, (dict, *LISTS))]
        if long := next((name for name in used if isinstance(name, str) and len(name) > MAX_NAME), ""):
            raise InputError(f"a name has {len(long)} characters; the limit is {MAX_NAME}: {printable(long, 60)}")
        if holds:
            found.append((path, value))
        if len(path) < MAX_LEVELS:
            queue.extend(((*path, str(name)), item) for name, item in items if isinstance(item, (dict, *LISTS)))
    return found


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Return (key or index, item) of a dictionary's or list's content; [] for any other value."""
    return list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, LISTS) else ())


def _networks(dictionaries: list[tuple[tuple[str, ...], dict]]) -> list[Found]:
    """Return the networks in all dictionaries.

    Raises:
        InputError: there are more than MAX_NETWORKS.
    """
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
            f"it contains {len(found)} networks: {some}, …; at most {MAX_NETWORKS} are allowed: save one alone"
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
        raise InputError(f"--key {printable(key, 100)} names no network in it; choose one of: {listed}")
    raise InputError(f"it contains {len(found)} networks: {listed}; choose one with --key")


def _rivals(vit: Found, found: list[Found]) -> list[Found]:
    """Return the networks in the same dictionary, including the network itself."""
    return [other for other in found if other.content is vit.content]


def _siblings(content: Any, path: tuple[str, ...]) -> dict[str, str]:
    """Return {name: remark} of everything else in the containers on the path to the weights."""
    beside = {}
    for step in path:
        items = {str(name): item for name, item in _items(content)}
        beside |= {name: f"beside the weights, which are in '{printable(step, 100)}'" for name in items if name != step}
        content = items[step]
    return beside


def _official(
    vit: Found, rivals: list[Found]
) -> tuple[dict[str, Array], dict[str, str], dict[str, str], dict[str, str]]:
    """Sort a dictionary's content into what belongs to a network, or to the Re-ID model around it, and the rest.

    Each value belongs to the network, among all in the dictionary, whose prefix fits the longest part of its name.

    Returns:
        `tensors`, `beside`, `faults` and `sources` of the StateDict.
    """
    # {prefix: network}. A later entry overrides an earlier one with the same prefix.
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
            faults[official] = "occurs twice, with different prefixes"
        elif not official.isprintable():
            faults[official] = "its name has characters that cannot be printed"
        else:
            tensors[official], sources[official] = value, name
    beside |= {key: f"another network, of {count} tensors" for key, count in others.items()}
    return tensors, beside, faults, sources


def _few(beside: dict[str, str]) -> dict[str, str]:
    """Return the first rows, and a row with the number of the others."""
    if len(beside) <= MAX_ROWS:
        return beside
    return dict(list(beside.items())[:MAX_ROWS]) | {"…": f"{len(beside) - MAX_ROWS} more beside the weights"}


def _no_network(dictionaries: list[dict]) -> str:
    names = [str(name) for dictionary in dictionaries for name in dictionary]
    some = ", ".join(printable(name, 100) for name in list(max(dictionaries, key=len))[:4])
    what = foreign_names.other_model(names)
    readable = "supported are a ViT with a class token (of TransReID-SSL, PersonViT, DINO, timm) and a ResNet-50"
    if what:
        return f"it contains {what}; {readable}"
    return f"it contains no ViT and no ResNet: it has no cls_token and no layer1; its names are {some}"
