"""Learning rates and optimisers, as the official codes of TransReID-SSL, TransReID, BoT and others train."""

import functools
import re
from collections.abc import Callable, Sequence

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
    milestones: Sequence[int] = (),
    milestone_factor: float = 0.1,
) -> jax.Array:
    """Compute the rate of one parameter group during 0-based `epoch`: a linear warm-up, then a cosine or steps.

    The warm-up rises from warmup_factor·base to the group's own rate group_factor·base. The cosine, which began at
    epoch 0, falls to final_factor·base. Both ends use the base rate for every group. With `milestones` the rate is
    multiplied by `milestone_factor` from each of these epochs on, instead of the cosine.
    """
    group = group_factor * base
    start, end = warmup_factor * base, final_factor * base
    warmup = start + (group - start) * epoch / max(warmup_epochs, 1)
    if milestones:
        passed = sum(jnp.where(epoch >= milestone, 1, 0) for milestone in milestones)
        later = group * milestone_factor**passed
    else:
        later = end + 0.5 * (group - end) * (1 + jnp.cos(jnp.pi * epoch / epochs))
    return jnp.where(epoch < warmup_epochs, warmup, later)


def make_optimizer(
    name: str,
    *,
    momentum: float,
    decay: float,
    nesterov: bool = False,
    frozen_bias: bool = True,
    centers: float | None = None,
) -> optax.GradientTransformation:
    """Return the directions to step along, before the learning rate: update = −rate(group)·direction.

    Every parameter decays, biases and norms too, except NRA's λ, the necks' frozen biases and the centres.

    Args:
        name: "sgd" is PyTorch's form, v = momentum·v + (g + decay·p); "adam" adds decay·p to the gradient, as PyTorch's
            Adam does; "adamw" decouples the decay (Loshchilov and Hutter 2019).
        momentum: of sgd, in 0..1.
        decay: the weight decay, at least 0.
        nesterov: whether sgd looks ahead, g + momentum·v.
        frozen_bias: whether the necks' biases are frozen (`models.reid.Head`).
        centers: what the gradients of the centre loss's centres are multiplied by. Their direction is that product,
            and `scale_updates` takes it as it is. None for a model that does not learn centres.

    Raises:
        ValueError: there is no optimiser of this name.
    """
    undecayed = re.compile(r"(norm_ratio|bottleneck(_\d+)?/bias)$" if frozen_bias else r"norm_ratio$")

    def is_decayed(path, _) -> bool:
        return not undecayed.search(_path(path))

    mask = functools.partial(jax.tree_util.tree_map_with_path, is_decayed)
    decayed = optax.add_decayed_weights(decay, mask=mask)
    chains = {
        "sgd": optax.chain(decayed, optax.trace(momentum, nesterov=nesterov)),
        "adam": optax.chain(decayed, optax.scale_by_adam()),
        "adamw": optax.chain(optax.scale_by_adam(), decayed),
    }
    if name not in chains:
        raise ValueError(f"optim.name is {name!r}; choose one of {', '.join(chains)}")
    if centers is None:
        return chains[name]
    return optax.partition(
        {"centers": optax.scale(centers), "others": chains[name]},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "centers" if _is_centers(_path(path)) else "others", params
        ),
    )


def _path(key_path) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _is_centers(path: str) -> bool:
    return path == "centers"


def scale_updates(
    directions, rate: jax.Array, bias_rate: jax.Array, factor: Callable[[tuple[str, ...]], float] = lambda path: 1.0
):
    """Return −rate·factor(path)·direction of each parameter.

    Parameters whose name contains "bias" take `bias_rate`. The centres of the centre loss have no learning rate.
    """

    def scaled(key_path, direction):
        path = _path(key_path)
        if _is_centers(path):
            return -direction
        return -(bias_rate if "bias" in path else rate) * factor(tuple(path.split("/"))) * direction

    return jax.tree_util.tree_map_with_path(scaled, directions)
