"""From a checkpoint file to the state dict in it, under the names of the official Re-ID model."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch_file
from safetensors import SafetensorError, safe_open
from tensor_pickle import Tensor

from nrsrd_jax.errors import InputError, printable

WRAPPERS = ("model", "state_dict", "teacher")  # in the order in which the official loader looks
Array = Tensor | np.ndarray


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors by official name; `beside` names what lay beside them, `faults` what should not be there."""

    tensors: dict[str, Array]
    beside: dict[str, str]
    faults: dict[str, str]
    notes: str  # to_torch.py's description of the model, "" if it did not make the file


def read(path: Path) -> StateDict:
    """The state dict of a .pth or .safetensors file. InputError if there is none."""
    content, notes = _load(path)
    beside = {}
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            beside |= {
                str(name): f"beside the weights, which are in {wrapper!r}" for name in content if name != wrapper
            }
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Array) for value in content.values()):
        raise InputError("it holds no state dict: no names with tensors, and none under " + ", ".join(WRAPPERS))
    plain = [(re.sub(r"^(module\.)+", "", str(name)), value) for name, value in content.items()]
    prefix = next((prefix for prefix in ("backbone.", "base.", "") if f"{prefix}cls_token" in dict(plain)), None)
    if prefix is None:
        some = ", ".join(printable(name, 100) for name, _ in plain[:4])
        raise InputError(f"it holds no ViT: there is no cls_token; its names are {some}, …")
    tensors: dict[str, Array] = {}
    faults = {}
    for name, value in plain:
        official = "base." + name.removeprefix(prefix) if name.startswith(prefix) else name
        if official in tensors:
            faults[official] = "stands there twice, under different prefixes"
        elif not official.isprintable():
            faults[official] = "a name that cannot be shown"
        elif isinstance(value, Array):
            tensors[official] = value
        else:
            faults[official] = f"not a tensor but a {type(value).__name__}"
    return StateDict(tensors, beside, faults, notes)


def _load(path: Path) -> tuple[Any, str]:
    with path.open("rb") as file:
        start = file.read(9)
    if not start.endswith(b"{") or start.startswith(b"PK"):  # safetensors: eight bytes of size, then JSON
        return torch_file.load(path)
    try:
        with safe_open(path, framework="np") as file:
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            return content, (file.metadata() or {}).get(torch_file.NOTES, "")
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last: a type that numpy has not
        raise InputError(f"the file is damaged, or of a type that is not read: {error}") from error
