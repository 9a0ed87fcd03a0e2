"""Learning rate and optimiser, as the official TransReID-SSL trains."""

import re

import jax
import jax.numpy as jnp
import optax


def learning_rate(
    epoch: jax.Array | int,
    *,
    base: float,
    group_factor: float,
    epochs: int,
    warmup_epochs: int,
    warmup_factor: float,
    final_factor: float,
) -> jax.Array:
    """Rate of one parameter group during 0-based `epoch`: linear warm-up, then a cosine that began at epoch 0.

    Warm-up rises from warmup_factor·base to the group's own rate group_factor·base; the cosine falls to
    final_factor·base. Both ends use the base rate for every group.
    """
    group = group_factor * base
    start, end = warmup_factor * base, final_factor * base
    warmup = start + (group - start) * epoch / max(warmup_epochs, 1)
    cosine = end + 0.5 * (group - end) * (1 + jnp.cos(jnp.pi * epoch / epochs))
    return jnp.where(epoch < warmup_epochs, warmup, cosine)


def make_optimizer(name: str, *, momentum: float, decay: float) -> optax.GradientTransformation:
    """Directions to step along, before the learning rate: update = −rate(group)·direction.

    "sgd" is PyTorch's form, v = momentum·v + (g + decay·p); "adamw" decouples the decay (Loshchilov and Hutter
    2019). Every parameter decays, biases and norms too, except NRA's λ and the neck's frozen bias.
    """
    decayed = optax.add_decayed_weights(decay, mask=_decayed)
    if name == "sgd":
        return optax.chain(decayed, optax.trace(momentum))
    if name == "adamw":
        return optax.chain(optax.scale_by_adam(), decayed)
    raise ValueError(f"optim.name is {name!r}; choose sgd or adamw")


def _path(key_path) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _decayed(params) -> dict:
    undecayed = re.compile(r"(norm_ratio|bottleneck(_\d+)?/bias)$")
    return jax.tree_util.tree_map_with_path(lambda path, _: not undecayed.search(_path(path)), params)


def scale_updates(directions, rate: jax.Array, bias_rate: jax.Array):
    """−rate·direction; parameters whose name contains "bias" take `bias_rate`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, direction: -(bias_rate if "bias" in _path(path) else rate) * direction, directions
    )
