"""Eight CPU devices, so that sharding is tested on any machine, and the reference tensors."""

import lzma
import os
from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
os.environ["XDG_CACHE_HOME"] = "/dev/null"  # no test writes to a home folder

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """golden("losses") -> the arrays of tests/golden/losses.npz."""
    return lambda name: np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def official_weights():
    """official_weights("vit_tiny_ics") -> our variables with the official model's weights."""

    def load(name: str) -> dict:
        with lzma.open(GOLDEN / f"{name}.npz.xz") as file:
            return from_torch_names(dict(np.load(file, allow_pickle=False)))

    return load


def from_torch_names(weights: dict[str, np.ndarray]) -> dict:
    variables: dict = {"params": {}, "batch_stats": {}}
    for name, value in weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        collection, path, value = our_name(name, value)
        node = variables[collection]
        *parents, last = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return variables


def our_name(name: str, value: np.ndarray) -> tuple[str, str, np.ndarray]:
    """(collection, path, array) of a PyTorch tensor."""
    *parents, last = name.split(".")
    path: list[str] = []
    for part in parents:
        if part.isdigit():
            path[-1] += f"_{part}"
        else:
            path.append(part)
    renamed = {"running_mean": "mean", "running_var": "var", "weight": "scale" if value.ndim == 1 else "kernel"}
    if last == "weight" and value.ndim == 2:
        value = value.T
    if last == "weight" and value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    collection = "batch_stats" if last.startswith("running") else "params"
    return collection, "/".join([*path, renamed.get(last, last)]), value
