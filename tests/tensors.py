"""What the tests against tensors of official codes share."""

import jax
import jax.numpy as jnp
import numpy as np


def nhwc(images: np.ndarray) -> jax.Array:
    """Return images as our models take them, from PyTorch's order."""
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def at(tree, path):
    """Return what a path of keys leads to."""
    for key in path:
        tree = tree[key]
    return tree


def close(ours, theirs, tolerance=1e-4):
    """Check that arrays differ by no more than a part of the largest number of the second."""
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


def official_variables(description, slots, weight):
    """Return the variables of a model; `weight` gives the official tensor of each official name."""
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), description.abstract_variables())
    for name, slot in slots.items():
        at(variables, slot.path[:-1])[slot.path[-1]] = slot.from_torch(weight(name))
    return variables


def random_variables(description, seed):
    """Return variables of a model without meaning, made without compiling it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), description.abstract_variables())
