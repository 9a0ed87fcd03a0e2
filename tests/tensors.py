"""Helpers of the tests that compare with the tensors of official codes."""

import jax
import jax.numpy as jnp
import numpy as np


def nhwc(images: np.ndarray) -> jax.Array:
    """Convert images from PyTorch's [B, C, H, W] to our [B, H, W, C]."""
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def at(tree, path):
    """Return the part of a nested dictionary that a path of keys leads to."""
    for key in path:
        tree = tree[key]
    return tree


def close(ours, theirs, tolerance=1e-4):
    """Check that arrays differ by at most `tolerance` times the largest magnitude in the second."""
    np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


def official_variables(description, slots, weight):
    """Return a model's variables with official weights; `weight` returns the tensor of an official name."""
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), description.abstract_variables())
    for name, slot in slots.items():
        at(variables, slot.path[:-1])[slot.path[-1]] = slot.from_torch(weight(name))
    return variables


def random_variables(description, seed):
    """Return random variables of a model, without compiling its initialisation."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), description.abstract_variables())
