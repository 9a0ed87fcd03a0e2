"""How arrays lie over the devices: batches split over the axis `data`, parameters over `model` where asked for."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .errors import InputError


def make_mesh(batch_size: int = 0, model_parallel: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, (data, model). InputError if they do not divide evenly."""
    devices = jax.devices() if devices is None else devices
    if len(devices) % model_parallel:
        raise InputError(f"train.model_parallel {model_parallel} does not divide {len(devices)} devices")
    data = len(devices) // model_parallel
    if batch_size % data:
        raise InputError(
            f"train.batch_size {batch_size} does not divide among {data} devices; choose a multiple of {data}, or show "
            "the program fewer devices (CUDA_VISIBLE_DEVICES)"
        )
    return jax.make_mesh((data, model_parallel), ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def parameter_shardings(tree, mesh: Mesh):
    """Each array's last axis that the `model` axis divides is split over it; the rest is replicated."""
    size = mesh.shape["model"]

    def shard(array) -> NamedSharding:
        axes: list[str | None] = [None] * array.ndim
        divisible = [axis for axis in range(array.ndim) if array.shape[axis] % size == 0]
        if size > 1 and divisible:
            axes[divisible[-1]] = "model"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(shard, tree)
