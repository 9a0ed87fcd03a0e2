"""Learning rates and optimisers that equal those of the official codes of TransReID-SSL, TransReID, BoT and others."""

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
    """Compute the learning rate of one parameter group in an epoch: a linear warm-up, then a cosine or steps.

    The warm-up rises from warmup_factor·base to the group's own rate group_factor·base. The cosine is counted from
    epoch 0 and falls to final_factor·base. Where the warm-up starts and the cosine ends does not depend on the group.

    Args:
        epoch: the epoch, counted from 0.
        base: the base learning rate.
        group_factor: the group's own rate, in base rates.
        epochs: the epoch at which the cosine ends.
        warmup_epochs: the length of the warm-up; 0 for none.
        warmup_factor: the rate at the start of the warm-up, in base rates.
        final_factor: the rate at the end of the cosine, in base rates.
        milestones: epochs at which the rate is multiplied by `milestone_factor`. If given, they replace the cosine.
        milestone_factor: see `milestones`.

    Returns:
        A scalar.
    """
    group = group_factor * base
    start, end = warmup_factor * base, final_factor * base
    # `where` below needs both values, so without a warm-up this must not divide by 0.
    warmup = start + (group - start) * epoch / max(warmup_epochs, 1)
    if milestones:
        # The epoch is traced, so Python cannot compare it.
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
    """Return the optimiser without its learning rate: an update is −rate(group)·direction (`scale_updates`).

    All parameters decay, including biases and norms, except NRA's λ, the necks' frozen biases and the centres.

    Args:
        name: "sgd" is PyTorch's form, v = momentum·v + (g + decay·p); "adam" adds decay·p to the gradient, as PyTorch's
            Adam does; "adamw" decouples the decay (Loshchilov and Hutter 2019).
        momentum: the momentum of sgd, in 0..1.
        decay: the weight decay, at least 0.
        nesterov: whether sgd steps along g + momentum·v instead of v.
        frozen_bias: whether the necks' biases are frozen (`models.reid.Head`).
        centers: the factor of the gradients of the centre loss's centres. The product is their direction, and the
            learning rate does not apply to it. None for a model that does not learn centres.

    Returns:
        The optimiser.

    Raises:
        ValueError: `name` is unknown.
    """
    # The official codes pass no frozen parameter to the optimiser, so frozen biases do not decay there.
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
    """Return the update of each parameter, −rate·factor(path)·direction.

    Parameters whose path contains "bias" use `bias_rate`. The update of the centre loss's centres is −direction.
    """

    def scaled(key_path, direction):
        path = _path(key_path)
        if _is_centers(path):
            return -direction
        # The official codes choose by the name, so the biases of norms count as well.
        return -(bias_rate if "bias" in path else rate) * factor(tuple(path.split("/"))) * direction

    return jax.tree_util.tree_map_with_path(scaled, directions)
