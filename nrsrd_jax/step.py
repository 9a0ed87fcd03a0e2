"""The training step: eq. 7–10 of the paper as one pure function.

A batch is a dict with `epoch`, an int32 scalar, and a dict for each domain: "real", and "aux" if there is an auxiliary
domain. A domain's dict has `labels` [B] and uint8 `images` [B, H, W, 3], and may have `cameras` [B]. The dict of "aux"
may also have `dark_images` [B, H, W, 3], the dark twins of its images.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import augment, lowlight
from .losses import compute_terms, total_loss
from .models.reid import ReID
from .schedule import scale_updates
from .state import TrainState

# The paper's losses call the auxiliary domain "syn".
DOMAINS = {"real": "real", "aux": "syn"}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen model, and how to prepare its images. Its classifier is over the auxiliary identities.

    Attributes:
        model: the model, without its variables.
        mean, std: per channel, for `augment.normalize`.
        brighten: the level for `augment.brighten`, in 0..1; 0 for no change.
    """

    model: ReID
    mean: tuple[float, ...]
    std: tuple[float, ...]
    brighten: float = 0.0


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Turn uint8 batches into the network's inputs by degradation, brightening, augmentation and normalisation.

    Attributes:
        mean, std: per channel, for `augment.normalize`.
        flip, pad: for `augment.flip_and_crop`.
        erasing: the probability of `augment.random_erasing`.
        degradation: the arguments of `lowlight.degrade`, for auxiliary images without dark twins.
        brighten: the level for `augment.brighten`, in 0..1; 0 for no change.
        curriculum: the epochs in which the strength of `lowlight.degrade` rises from 0 to 1; 0 for full strength.
        bright: whether to also return the bright auxiliary images.
        erasing_form: further arguments of `augment.random_erasing`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: float
    pad: int
    erasing: float
    degradation: dict[str, Any]
    brighten: float = 0.0
    curriculum: int = 0
    bright: bool = False
    erasing_form: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, key: jax.Array, batch: dict, teacher: Teacher | None = None) -> dict:
        """Return the network's inputs: float images [B, H, W, 3] by name.

        "real" has the night images and "aux" the dark auxiliary images, both augmented. With a teacher, "teacher" has
        the bright auxiliary images, flipped and cropped as in "aux", without erasing. So has "bright", but prepared for
        the student.
        """
        keys = jax.random.split(key, 5)
        move = functools.partial(augment.flip_and_crop, flip=self.flip, pad=self.pad)

        def finish(erase_key: jax.Array, images: jax.Array) -> jax.Array:
            images = augment.normalize(images, self.mean, self.std)
            # Erase after the normalisation, because the noise is N(0, 1) in normalised values.
            return augment.random_erasing(erase_key, images, probability=self.erasing, **self.erasing_form)

        real = augment.brighten(_to_float(batch["real"]["images"]), self.brighten)
        inputs = {"real": finish(keys[1], move(keys[0], real))}
        if "aux" in batch:
            images = _to_float(batch["aux"]["images"])
            if "dark_images" in batch["aux"]:
                dark = _to_float(batch["aux"]["dark_images"])
            else:
                strength = jnp.minimum(batch["epoch"] / self.curriculum, 1) if self.curriculum else None
                dark = lowlight.degrade(keys[2], images, strength=strength, **self.degradation)
            inputs["aux"] = finish(keys[4], move(keys[3], augment.brighten(dark, self.brighten)))
            # The key of the dark images is used again, so that bright and dark images have the same flip and crop.
            for name, viewer in {"teacher": teacher, "bright": self if self.bright else None}.items():
                if viewer:
                    bright = move(keys[3], augment.brighten(images, viewer.brighten))
                    inputs[name] = augment.normalize(bright, viewer.mean, viewer.std)
        return inputs


def _to_float(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 255


def make_objective(
    model: ReID,
    loss_weights: dict[str, float],
    *,
    loss_options: dict[str, Any] | None = None,
    teacher: Teacher | None = None,
) -> Callable:
    """Return the loss as a function of the parameters, to differentiate.

    The function is objective(params, batch_stats, inputs, labels, key, teacher_variables, cameras) -> (loss,
    (batch_stats, metrics)). Its `inputs` are normalised float images by domain, as Preparation returns them. Its
    `labels` and `cameras` are {domain: [B]}; `cameras` may be left out.

    Args:
        model: the model to train.
        loss_weights: λ of eq. 10 by the names in `losses.TERMS`. A term of weight 0 is neither computed nor logged.
        loss_options: options of those terms, such as `margin`. A missing option keeps its default.
        teacher: the model whose output for the bright auxiliary images the student learns from.
    """

    def objective(params, batch_stats, inputs, labels, key, teacher_variables, cameras=None):
        domains = [domain for domain in DOMAINS if domain in inputs]

        # Run both domains in one forward pass. Interleave them (real, aux, real, aux, …) instead of concatenating, so
        # that sharding the batch moves no image between devices.
        def interleaved(arrays: list[jax.Array]) -> jax.Array:
            return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])

        out, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            interleaved([inputs[domain] for domain in domains]),
            cameras=interleaved([cameras[domain] for domain in domains]) if cameras else None,
            train=True,
            domains=len(domains),
            rngs={"drop_path": key},
            mutable=["batch_stats"],
        )
        taught = None
        if teacher and "aux" in domains:
            answer: Any = teacher.model.apply(teacher_variables, inputs["teacher"])
            taught = answer["parts"][0]
        bright = None
        if "bright" in inputs:
            # These features are a target, so this pass needs no backward pass and no statistics of its own.
            fixed = jax.lax.stop_gradient({"params": params, "batch_stats": batch_stats})
            seen: Any = model.apply(fixed, inputs["bright"])
            bright = seen["parts"][0]
        wanted = [name for name, weight in loss_weights.items() if weight]
        terms = compute_terms(out["parts"], labels, domains, taught, loss_options or {}, wanted, bright)
        metrics = {}
        for index, domain in enumerate(domains):
            logits = out["parts"][0]["logits"][domain][index :: len(domains)]
            metrics[f"accuracy_{DOMAINS[domain]}"] = (jnp.argmax(logits, axis=1) == labels[domain]).mean()
        loss = total_loss(terms, loss_weights)
        return loss, (updates["batch_stats"], {"loss": loss} | terms | metrics | out["diagnostics"])

    return objective


def make_update(
    objective: Callable,
    optimizer: optax.GradientTransformation,
    rates: Callable,
    factor: Callable[[tuple[str, ...]], float] = lambda path: 1.0,
) -> Callable:
    """Return update(state, inputs, labels, epoch, key, teacher_variables, cameras) -> (state, metrics), one step.

    For a model without drop path and dropout, the update is a deterministic function of its float inputs, so the parity
    tests call it directly.

    Args:
        objective: from `make_objective`.
        optimizer: from `schedule.make_optimizer`.
        rates: rates(epoch) returns the learning rates of weights and of biases.
        factor: factor(path) returns what the learning rate of a parameter is multiplied by.
    """

    def update(state: TrainState, inputs, labels, epoch, key, teacher_variables=None, cameras=None):
        gradient = jax.grad(objective, has_aux=True)
        grads, (batch_stats, metrics) = gradient(
            state.params, state.batch_stats, inputs, labels, key, teacher_variables, cameras
        )
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate, bias_rate = rates(epoch)
        updates = scale_updates(directions, rate, bias_rate, factor)
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
    """Return the pure function train_step(state, batch, teacher_variables) -> (state, metrics).

    Its random numbers depend only on `seed` and `state.step`, so a resumed run draws the same ones.
    """

    def train_step(state: TrainState, batch: dict, teacher_variables=None):
        prepare_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        inputs = prepare(prepare_key, batch, teacher)
        domains = [domain for domain in DOMAINS if domain in batch]
        labels = {domain: batch[domain]["labels"] for domain in domains}
        cameras = {domain: batch[domain]["cameras"] for domain in domains if "cameras" in batch[domain]}
        # On a GPU, float32 products would otherwise use TF32. Products of bfloat16 stay as they are.
        with jax.default_matmul_precision("highest"):
            return update(state, inputs, labels, batch["epoch"], model_key, teacher_variables, cameras)

    return train_step
