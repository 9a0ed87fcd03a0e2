"""From a checkpoint file to the state dict in it, under the names of the official Re-ID model."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch_file
import torch_names
from safetensors import SafetensorError, safe_open
from tensor_pickle import Tensor

from nrsrd_jax.errors import InputError

WRAPPERS = ("model", "state_dict", "teacher")  # in the order in which the official loader looks


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A tensor of a safetensors file, with the surface of tensor_pickle.Tensor."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def array(self) -> np.ndarray:
        return self.values


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors by official name; `beside` names what lay beside them, `faults` what should not be there."""

    tensors: dict[str, Tensor | Loaded]
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
    if not isinstance(content, dict) or not any(isinstance(value, Tensor | Loaded) for value in content.values()):
        raise InputError("it holds no state dict: no names with tensors, and none under " + ", ".join(WRAPPERS))
    plain = {re.sub(r"^(module\.)+", "", str(name)): value for name, value in content.items()}
    faults = {}
    if len(plain) < len(content):
        faults["module.*"] = "the same name stands there with and without this prefix"
    prefix = next((prefix for prefix in ("backbone.", "base.", "") if f"{prefix}cls_token" in plain), None)
    if prefix is None:
        some = ", ".join(printable(name) for name in list(plain)[:4])
        raise InputError(f"it holds no ViT: there is no cls_token; its names are {some}, …")
    tensors = {}
    for name, value in plain.items():
        official = "base." + name.removeprefix(prefix) if name.startswith(prefix) else name
        if isinstance(value, Tensor | Loaded):
            tensors[official] = value
        else:
            faults[official] = f"not a tensor but a {type(value).__name__}"
    return StateDict(tensors, beside, faults, notes)


def _load(path: Path) -> tuple[Any, str]:
    if path.suffix != ".safetensors":
        return torch_file.load(path)
    try:
        with safe_open(path, framework="np") as file:
            content = {name: Loaded(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118, it is no dict
            return content, (file.metadata() or {}).get(torch_names.NOTES, "")
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(str(error)) from error


def printable(name: str) -> str:
    """A name from a file, safe to show on a terminal."""
    return name if name.isprintable() and len(name) < 100 else ascii(name[:100])
