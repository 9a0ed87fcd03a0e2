"""How arrays lie over the devices: batches split over the axis `data`, parameters over `model` where asked for."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .errors import InputError


def make_mesh(batch_size: int = 0, model_parallel: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, (data, model). InputError if they do not divide evenly."""
    devices = jax.devices() if devices is None else devices
    if len(devices) % model_parallel:
        raise InputError(f"train.model_parallel {model_parallel} does not divide {len(devices)} devices; lower it")
    data = len(devices) // model_parallel
    if batch_size % data:
        raise InputError(
            f"train.batch_size {batch_size} does not divide among {data} devices; choose a multiple of {data}, or show "
            "the program fewer devices (CUDA_VISIBLE_DEVICES)"
        )
    return jax.make_mesh((data, model_parallel), ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays on the devices, laid out by one sharding or a tree of them; of several processes each gives the same."""

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return jax.device_put(x, sharding)
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda x: one(x, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def own_mesh(mesh: Mesh) -> Mesh:
    """The mesh, or of several processes one of this process's own devices, for what each computes by itself."""
    return make_mesh(devices=jax.local_devices()) if mesh.is_multi_process else mesh


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
