"""One step of DINO.

A student learns to give each view of an image the answer that its teacher gives to other views of this image. The
teacher is a slow average of the student.

The result of a pretraining is the teacher. Therefore `params` and `batch_stats` of the `TrainState` are the teacher's
backbone, and everything else is in `opt_state`:

  student, student_stats   the student's parameters {"base", "head"}, and the statistics of its backbone
  teacher_head             the teacher's head
  centre                   [K], subtracted from the teacher's outputs
  adam, adam_last          the optimiser's moments; the last layer has its own, because its training begins later
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from .. import augment, lowlight
from ..state import TrainState
from .dino import Head, cosine, dino_loss, entropies, koleo_loss, next_centre, teacher_probabilities
from .dino import teacher_temperature as temperature_of
from .views import Views, make_views

ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
LAST = "last_layer"


@dataclasses.dataclass(frozen=True)
class Schedules:
    """The values that change during a run.

    Attributes:
        steps: the number of steps of the run.
        warmup: the number of steps in which the learning rate rises.
        rate, rate_end: the learning rate after the rise, and at the end.
        decay, decay_end: the weight decay at the start and at the end.
        momentum: the share of the teacher that a step keeps, at the start; it ends at 1.
        temperature, temperature_end: the teacher's temperature at the start, and after the epochs of its change.
        temperature_epochs: the number of epochs in which it changes.
        frozen_epochs: the number of epochs in which the head's last layer is not trained.
    """

    steps: int
    warmup: int
    rate: float
    rate_end: float
    decay: float
    decay_end: float
    momentum: float
    temperature: float
    temperature_end: float
    temperature_epochs: int
    frozen_epochs: int


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules: the student's backbone, the teacher's (without stochastic depth), and the head, for both."""

    student: nn.Module
    teacher: nn.Module
    head: Head


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Turn a batch of images into views.

    Attributes:
        global_views, local_views: the settings of the two large views, and of the small ones.
        mean, std, brighten: the normalisation and brightening of the finished model, which views get as well.
        night: the probability that the student's second global view is a dark version of the teacher's.
        degradation: the arguments of `lowlight.degrade` for dark views.
    """

    global_views: Views
    local_views: Views
    mean: tuple[float, ...]
    std: tuple[float, ...]
    brighten: float = 0.0
    night: float = 0.0
    degradation: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, key: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
        """Return normalised views of uint8 images [B, H, W, 3]: "teacher" and "global" [B, 2, …], "local" [B, L, …]."""
        keys = jax.random.split(key, 4)
        large = make_views(keys[0], images, self.global_views)
        views = {"teacher": large, "global": large, "local": make_views(keys[1], images, self.local_views)}
        if self.night:
            dark = lowlight.degrade(keys[2], large[:, 1], **self.degradation)
            chosen = jax.random.bernoulli(keys[3], self.night, (len(images), 1, 1, 1))
            views["global"] = large.at[:, 1].set(jnp.where(chosen, dark, large[:, 1]))
        return {name: self._finish(view) for name, view in views.items()}

    def _finish(self, views: jax.Array) -> jax.Array:
        flat = views.reshape(-1, *views.shape[2:])
        return augment.normalize(augment.brighten(flat, self.brighten), self.mean, self.std).reshape(views.shape)


def start(variables: dict, networks: Networks, key: jax.Array) -> TrainState:
    """Return the state before the first step. Teacher and student both start from `variables`."""
    base = variables["params"]["base"]
    head: Any = networks.head.init(key, jnp.zeros((1, base["cls_token"].shape[-1])))["params"]
    student = {"base": base, "head": head}
    rest, last = _split(student)
    memory = {
        "student": student,
        "student_stats": _base_stats(variables["batch_stats"]),
        "teacher_head": head,
        "centre": jnp.zeros(networks.head.prototypes),
        "adam": ADAM.init(rest),
        "adam_last": ADAM.init(last),
    }
    return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], memory)


def with_backbone(state: TrainState, variables: dict) -> TrainState:
    """Return a new state whose teacher and student both start from the backbone in a model's variables."""
    memory: Any = state.opt_state
    # The step donates its arguments, so no array may occur twice in the state.
    own = jax.tree.map(jnp.copy, variables)
    student = memory["student"] | {"base": own["params"]["base"]}
    memory = memory | {"student": student, "student_stats": _base_stats(own["batch_stats"])}
    return dataclasses.replace(state, opt_state=memory, **variables)


def _base_stats(batch_stats: dict) -> dict:
    return batch_stats.get("base", {})


def make_update(networks: Networks, schedules: Schedules, *, clip: float, koleo: float) -> Callable:
    """Return update(state, views, epoch, key) -> (state, metrics), which takes the views that Preparation returns.

    `clip` limits the norm of the gradient of each tensor separately; 0 for no limit. `koleo` is the weight of
    `koleo_loss` of the student's features of each large view.
    """

    def update(state: TrainState, views: dict, epoch: jax.Array | int, key: jax.Array):
        memory: Any = state.opt_state
        keys = jax.random.split(key)
        temperature = temperature_of(
            epoch, schedules.temperature, schedules.temperature_end, schedules.temperature_epochs
        )
        taught, teacher_stats = _embed(
            networks.teacher, state.params["base"], _base_stats(state.batch_stats), views["teacher"], None
        )
        teacher = _compare(networks.head, memory["teacher_head"], taught)

        def objective(student: dict):
            # Global and local views differ in size, so they take two passes.
            large, stats = _embed(networks.student, student["base"], memory["student_stats"], views["global"], keys[0])
            small, stats = _embed(networks.student, student["base"], stats, views["local"], keys[1])
            outputs = _compare(networks.head, student["head"], jnp.concatenate([large, small], axis=1))
            loss = dino_loss(outputs, teacher, memory["centre"], temperature=temperature)
            if koleo:
                loss += koleo * jax.vmap(koleo_loss, in_axes=1)(large).sum()
            return loss, stats

        (loss, student_stats), grads = jax.value_and_grad(objective, has_aux=True)(memory["student"])
        # The norm is taken before clipping, so that the log shows gradients that grow.
        norm = optax.tree.norm(grads)
        # As in the official code, each tensor is clipped by its own norm.
        if clip:
            grads = jax.tree.map(lambda g: g * jnp.minimum(1, clip / (jnp.linalg.norm(g) + 1e-6)), grads)
        rate = cosine(state.step, schedules.rate, schedules.rate_end, schedules.steps, schedules.warmup)
        decay = cosine(state.step, schedules.decay, schedules.decay_end, schedules.steps)
        momentum = cosine(state.step, schedules.momentum, 1.0, schedules.steps)
        frozen = jnp.asarray(epoch) < schedules.frozen_epochs
        learned = _learn(memory, grads, rate, decay, frozen, networks.head.free_length)

        def average(teacher: Any, student: Any) -> Any:
            return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)

        undecided, informed = entropies(teacher_probabilities(teacher, memory["centre"], temperature))
        params = state.params | {"base": average(state.params["base"], learned["student"]["base"])}
        stats = state.batch_stats | ({"base": teacher_stats} if teacher_stats else {})
        new_memory = learned | {
            "student_stats": student_stats,
            "teacher_head": average(memory["teacher_head"], learned["student"]["head"]),
            # The loss above used the old centre, as in the official code.
            "centre": next_centre(memory["centre"], teacher),
        }
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "weight_decay": decay,
            "teacher_momentum": momentum,
            "centre_norm": jnp.linalg.norm(memory["centre"]),
            "teacher_entropy": undecided,
            "teacher_information": informed,
        }
        return TrainState(state.step + 1, params, stats, new_memory), metrics

    return update


def _embed(
    module: nn.Module, params: dict, stats: Any, views: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Return a backbone's features [B, V, D] of views [B, V, …], and its updated statistics."""
    batch, count = views.shape[:2]
    out, updates = module.apply(
        {"params": params, "batch_stats": stats},
        views.reshape(-1, *views.shape[2:]),
        # The teacher too normalises by the batch: the official code leaves it in training mode.
        train=True,
        rngs={"drop_path": key} if key is not None else None,
        mutable=["batch_stats"],
    )
    features: jax.Array = out["embedding"]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
    return features.reshape(batch, count, -1), updates.get("batch_stats", {})


def _compare(head: Head, params: dict, features: jax.Array) -> jax.Array:
    """Return a head's outputs [B, V, K] for features [B, V, D]."""
    flat = features.reshape(-1, features.shape[-1])
    outputs: Any = head.apply({"params": params}, flat)
    return outputs.reshape(*features.shape[:2], -1)


def _learn(
    memory: dict, grads: dict, rate: jax.Array, decay: jax.Array, frozen: jax.Array, free_length: bool
) -> dict[str, Any]:
    """Return the next `student`, `adam` and `adam_last` of the memory. If `frozen`, the last layer does not change."""
    rest, last = _split(memory["student"])
    rest_grads, last_grads = _split(grads)

    def move(params: dict, grads: dict, moments: Any) -> tuple[dict, Any]:
        directions, moments = ADAM.update(grads, moments)
        moved = jax.tree_util.tree_map_with_path(
            lambda path, p, d: p - rate * (d + decay * p) if _decays(path, p) else p - rate * d, params, directions
        )
        return moved, moments

    new_rest, adam = move(rest, rest_grads, memory["adam"])
    new_last, adam_last = move(last, last_grads, memory["adam_last"])
    # Lengths that are not learned get no gradient, but the weight decay would shrink them.
    new_last |= {} if free_length else {"weight_g": last["weight_g"]}
    # A frozen layer also keeps its moments, so that Adam counts the layer's steps from its first change.
    new_last, adam_last = jax.tree.map(
        lambda old, new: jnp.where(frozen, old, new), (last, memory["adam_last"]), (new_last, adam_last)
    )
    return {"student": _join(new_rest, new_last), "adam": adam, "adam_last": adam_last}


def make_step(prepare: Preparation, update: Callable, seed: int) -> Callable:
    """Return the pure step(state, batch, None) -> (state, metrics), random by (seed, state.step)."""

    def step(state: TrainState, batch: dict, _teacher: None = None):
        prepare_key, model_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        views = prepare(prepare_key, batch["real"]["images"])
        # Do not use TF32 where float32 was asked for. This does not affect bfloat16.
        with jax.default_matmul_precision("highest"):
            return update(state, views, batch["epoch"], model_key)

    return step


def _split(student: dict) -> tuple[dict, dict]:
    """Split the student's parameters into those of the head's last layer and all others; return the others first."""
    head = dict(student["head"])
    last = head.pop(LAST)
    return student | {"head": head}, last


def _join(rest: dict, last: dict) -> dict:
    return rest | {"head": rest["head"] | {LAST: last}}


def _decays(path: tuple, parameter: jax.Array) -> bool:
    """Return whether weight decay acts on a parameter. It does not act on biases and one-dimensional parameters."""
    return parameter.ndim > 1 and not jax.tree_util.keystr(path[-1:], simple=True).endswith("bias")
