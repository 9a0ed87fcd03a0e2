"""Lay out arrays over devices: split batches over the axis `data`, and parameters over the axis `model` if asked."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .errors import InputError


def make_mesh(batch_size: int = 0, model_parallel: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of devices with the axes `data` and `model`.

    Args:
        batch_size: the number of images that must divide evenly over the axis `data`; 0 for no check.
        model_parallel: the length of the axis `model`, at least 1.
        devices: the devices to use; None for all devices of all processes.

    Returns:
        The mesh, of shape (number of devices / model_parallel, model_parallel).

    Raises:
        InputError: the devices or the batch do not divide evenly.

    Example:
        >>> import jax
        >>> from nrsrd_jax.sharding import make_mesh
        >>> dict(make_mesh(batch_size=64, devices=jax.devices()[:1]).shape)
        {'data': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % model_parallel:
        raise InputError(f"train.model_parallel {model_parallel} does not divide {len(devices)} devices; lower it")
    data = len(devices) // model_parallel
    if batch_size % data:
        raise InputError(
            f"train.batch_size {batch_size} does not divide among {data} devices; choose a multiple of {data}, or show "
            "the program fewer devices (CUDA_VISIBLE_DEVICES)"
        )
    # JAX's default is explicit axes, with which each operation would have to state its layout.
    return jax.make_mesh((data, model_parallel), ("data", "model"), (AxisType.Auto,) * 2, devices=devices)


def place(tree: Any, shardings: Any) -> Any:
    """Put arrays on the devices.

    Args:
        tree: a tree of arrays. Every process must pass the same values.
        shardings: one sharding for all arrays, or a tree of shardings like `tree`.

    Returns:
        The tree as global JAX arrays.

    Example:
        >>> import jax, numpy as np
        >>> from nrsrd_jax.sharding import make_mesh, place, replicated
        >>> mesh = make_mesh(devices=jax.devices()[:1])
        >>> place({"steps": np.arange(3)}, replicated(mesh))["steps"].tolist()
        [0, 1, 2]
    """

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        # An array that already spans several processes cannot be read by one of them, only moved.
        if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return jax.device_put(x, sharding)
        # Each process puts only its own part of the array on its devices.
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda x: one(x, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def own_mesh(mesh: Mesh) -> Mesh:
    """Return a mesh for a computation that each process runs on its own.

    Args:
        mesh: the mesh of the run.

    Returns:
        `mesh`, or with several processes a mesh of this process's devices.

    Example:
        >>> from nrsrd_jax.sharding import make_mesh, own_mesh
        >>> mesh = make_mesh()
        >>> own_mesh(mesh) is mesh  # There is a single process.
        True
    """
    return make_mesh(devices=jax.local_devices()) if mesh.is_multi_process else mesh


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a whole array on every device.

    Args:
        mesh: the mesh of the devices.

    Returns:
        The sharding, for arrays of any shape.

    Example:
        >>> from nrsrd_jax.sharding import make_mesh, replicated
        >>> replicated(make_mesh()).is_fully_replicated
        True
    """
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits an array's first axis over the axis `data`.

    Args:
        mesh: the mesh of the devices.

    Returns:
        The sharding, for arrays whose first axis is a multiple of the axis `data`.

    Example:
        >>> from nrsrd_jax.sharding import make_mesh, over_data
        >>> over_data(make_mesh()).spec[0]
        'data'
    """
    return NamedSharding(mesh, PartitionSpec("data"))


def parameter_shardings(tree, mesh: Mesh):
    """Return a sharding for each parameter: split its last axis that the length of the axis `model` divides.

    Args:
        tree: a tree of arrays, or of their shapes (`jax.ShapeDtypeStruct`).
        mesh: the mesh of the devices.

    Returns:
        A tree of shardings like `tree`. An array without such an axis is replicated. If the axis `model` has length 1,
        every array is replicated.

    Example:
        >>> import jax, numpy as np
        >>> from nrsrd_jax.sharding import make_mesh, parameter_shardings
        >>> mesh = make_mesh(devices=jax.devices()[:1])
        >>> parameter_shardings({"kernel": np.zeros((3, 4))}, mesh)["kernel"].is_fully_replicated
        True
    """
    size = mesh.shape["model"]

    def shard(array) -> NamedSharding:
        axes: list[str | None] = [None] * array.ndim
        divisible = [axis for axis in range(array.ndim) if array.shape[axis] % size == 0]
        if size > 1 and divisible:
            axes[divisible[-1]] = "model"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(shard, tree)
