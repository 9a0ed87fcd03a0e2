"""The training step: eq. 7–10 of the paper as one pure function.

A batch is {"epoch": int32 scalar, "real": {…}, and with an auxiliary domain "aux": {…}}, where a domain holds
`labels` [B] and uint8 `images` [B, H, W, 3], and "aux" may hold `dark_images`, the dark twins.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import augment, lowlight
from .losses import dkd_loss, id_loss, total_loss, triplet_loss
from .models.reid import ReID
from .schedule import scale_updates
from .state import TrainState

DOMAINS = {"real": ("real", "logits"), "aux": ("syn", "aux_logits")}  # the name of its losses, and its classifier


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen model and the normalisation of its images; its `logits` are over the auxiliary identities."""

    model: ReID
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How uint8 batches become the network's inputs: normalisation, augmentation and degradation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: float = 0.5
    pad: int = 10
    erasing: float = 0.5
    degradation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, key: jax.Array, batch: dict, teacher: Teacher | None = None) -> dict:
        """{"real": float images, "aux": the dark ones, "teacher": the bright ones with the same flip and crop}."""
        keys = jax.random.split(key, 5)
        move = functools.partial(augment.flip_and_crop, flip=self.flip, pad=self.pad)

        def finish(erase_key: jax.Array, images: jax.Array) -> jax.Array:
            images = augment.normalize(images, self.mean, self.std)
            return augment.random_erasing(erase_key, images, probability=self.erasing)

        inputs = {"real": finish(keys[1], move(keys[0], _to_float(batch["real"]["images"])))}
        if "aux" in batch:
            bright = _to_float(batch["aux"]["images"])
            if "dark_images" in batch["aux"]:
                dark = _to_float(batch["aux"]["dark_images"])
            else:
                dark = lowlight.degrade(keys[2], bright, **self.degradation)
            inputs["aux"] = finish(keys[4], move(keys[3], dark))
            if teacher:
                inputs["teacher"] = augment.normalize(move(keys[3], bright), teacher.mean, teacher.std)
        return inputs


def _to_float(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 255


def make_objective(
    model: ReID,
    loss_weights: dict[str, float],
    *,
    triplet: dict | None = None,
    label_smoothing: float = 0.0,
    distillation: dict | None = None,
    teacher: Teacher | None = None,
) -> Callable:
    """objective(params, batch_stats, inputs, labels, key, teacher_variables) -> (loss, (batch_stats, metrics)).

    `inputs` are normalised float images per domain, as Preparation returns them; `labels` {"real": [B], "aux": [B]}.
    `loss_weights` are the λ of eq. 10 by name: id_real, triplet_real, id_syn, triplet_syn, distill.
    """

    def objective(params, batch_stats, inputs, labels, key, teacher_variables):
        domains = [domain for domain in DOMAINS if domain in inputs]
        # One pass for both: side by side, not end to end, so that each device keeps its own images.
        images = jnp.stack([inputs[domain] for domain in domains], axis=1)
        out, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images.reshape(-1, *images.shape[2:]),
            train=True,
            domains=len(domains),
            rngs={"drop_path": key},
            mutable=["batch_stats"],
        )
        metrics, terms = {}, {}
        for index, domain in enumerate(domains):
            name, head = DOMAINS[domain]
            logits, features = (out[part][index :: len(domains)] for part in (head, "features"))
            terms[f"id_{name}"] = id_loss(logits, labels[domain], label_smoothing=label_smoothing)
            terms[f"triplet_{name}"] = triplet_loss(features, labels[domain], **(triplet or {}))
            metrics[f"accuracy_{name}"] = (jnp.argmax(logits, axis=1) == labels[domain]).mean()
            if teacher and domain == "aux":
                taught: Any = teacher.model.apply(teacher_variables, inputs["teacher"])
                terms["distill"] = dkd_loss(logits, taught["logits"], labels[domain], **(distillation or {}))
        last = out["blocks"][-1]
        metrics |= {name: last[name][:: len(domains)].mean() for name in ("leverage", "logit_spread") if name in last}
        metrics |= {"norm_ratio": last["norm_ratio"]} if "norm_ratio" in last else {}
        loss = total_loss(terms, loss_weights)
        return loss, (updates["batch_stats"], {"loss": loss} | terms | metrics)

    return objective


def make_update(objective: Callable, optimizer: optax.GradientTransformation, rates: Callable) -> Callable:
    """update(state, inputs, labels, epoch, key, teacher_variables) -> (state, metrics): one optimiser step.

    `rates(epoch)` returns the learning rates of weights and of biases. With a model without drop path this is
    deterministic in its float inputs: it is what the parity tests call.
    """

    def update(state: TrainState, inputs, labels, epoch, key, teacher_variables=None):
        gradient = jax.grad(objective, has_aux=True)
        grads, (batch_stats, metrics) = gradient(
            state.params, state.batch_stats, inputs, labels, key, teacher_variables
        )
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate, bias_rate = rates(epoch)
        updates = scale_updates(directions, rate, bias_rate)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "learning_rate": rate,
            "gradient_norm": optax.tree.norm(grads),
            "parameter_norm": optax.tree.norm(state.params),
            "update_norm": optax.tree.norm(updates),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return update


def make_train_step(prepare: Preparation, update: Callable, teacher: Teacher | None, seed: int) -> Callable:
    """train_step(state, batch, teacher_variables) -> (state, metrics), pure: its randomness is (seed, state.step)."""

    def train_step(state: TrainState, batch: dict, teacher_variables=None):
        prepare_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        inputs = prepare(prepare_key, batch, teacher)
        labels = {domain: batch[domain]["labels"] for domain in DOMAINS if domain in batch}
        with jax.default_matmul_precision("highest"):  # no TF32 where float32 was asked for; bfloat16 stays as it is
            return update(state, inputs, labels, batch["epoch"], model_key, teacher_variables)

    return train_step
