"""The losses of NRSRD: pure functions of arrays, computed in float32 (or wider, if given wider).

B batch, D feature width, C classes
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .precision import at_least_float32

Part = dict[str, Any]  # `features` and `logits` of one part of the model


def id_loss(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy, batch mean, against (1 − ε)·onehot + ε/C.

    Args: logits [B, C]; labels [B], integers in 0..C−1; label_smoothing ε in 0..1 (the paper: 0).
    Source: the official TransReID-SSL; Szegedy et al. 2016, section 7.
    """
    log_p = jax.nn.log_softmax(at_least_float32(logits))
    target = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -((1 - label_smoothing) * target + label_smoothing * log_p.mean(axis=1)).mean()


def pairwise_distances(features: jax.Array) -> jax.Array:
    """Euclidean distances between rows, [B, B]: √max(d², 1e-12), so that identical rows have gradient 0."""
    x = at_least_float32(features)
    squares = jnp.square(x).sum(axis=1)
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 1e-12))


def triplet_loss(
    features: jax.Array, labels: jax.Array, *, margin: float | None = None, normalize: bool = False
) -> jax.Array:
    """Batch-hard triplet loss (Hermans et al. 2017), mean over the anchors.

    Each anchor is compared with its farthest same-identity row (itself counts as one) and its nearest row of another
    identity; of equal distances the first row is taken. An anchor without such a row adds 0.

    Args: features [B, D]; labels [B]; margin m: max(0, d_ap − d_an + m), or None for the soft margin
    log(1 + exp(d_ap − d_an)) (the paper's); normalize: scale rows to length 1 first.
    """
    if normalize:
        x = at_least_float32(features)
        features = x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=1, keepdims=True), 1e-24))
    distances = pairwise_distances(features)
    same = labels[:, None] == labels[None, :]
    farthest = jnp.argmax(jnp.where(same, distances, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(same, jnp.inf, distances), axis=1)
    positive, negative = (jnp.take_along_axis(distances, i[:, None], axis=1)[:, 0] for i in (farthest, nearest))
    gap = positive - negative
    loss = jax.nn.softplus(gap) if margin is None else jnp.maximum(gap + margin, 0)
    return jnp.where(same.all(axis=1), 0.0, loss).mean()


def dkd_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    alpha: float = 1.0,
    beta: float = 0.8,
    temperature: float = 1.0,
    nckd_weight: str = "target",
) -> jax.Array:
    """Decoupled knowledge distillation, (α·TCKD + β·NCKD)·T², batch mean (paper, eq. 4–6; Zhao et al. 2022).

    TCKD is KL(teacher‖student) of [p_t, 1 − p_t] for the target class t, NCKD the same over the other classes,
    renormalised. All in log space, so a teacher or student that is certain gives finite values and gradients.
    The teacher's logits receive no gradient.

    Args: both logits [B, C], C ≥ 2; labels [B]; temperature T > 0; nckd_weight: "target" multiplies each NCKD by the
    teacher's p_t (the paper's eq. 6), "none" leaves it as in DKD's published code.
    """
    if nckd_weight not in ("target", "none"):
        raise ValueError(f"nckd_weight is {nckd_weight!r}; choose 'target' (eq. 6) or 'none' (DKD's code)")
    if student_logits.shape != teacher_logits.shape or student_logits.shape[1] < 2:
        raise ValueError(
            f"student logits {student_logits.shape} and teacher logits {teacher_logits.shape} "
            "must have one shape [B, C] with at least 2 classes"
        )
    student = at_least_float32(student_logits) / temperature
    teacher = jax.lax.stop_gradient(at_least_float32(teacher_logits)) / temperature
    student_binary, student_others = _decouple(student, labels)
    teacher_binary, teacher_others = _decouple(teacher, labels)
    tckd = _kl_divergence(teacher_binary, student_binary)
    nckd = _kl_divergence(teacher_others, student_others)
    if nckd_weight == "target":
        nckd *= jnp.exp(teacher_binary[:, 0])
    return (alpha * tckd + beta * nckd).mean() * temperature**2


def _decouple(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log[p_t, 1 − p_t] [B, 2], and the log-probabilities of the other classes among themselves [B, C − 1]."""
    column = jnp.arange(logits.shape[1] - 1)[None, :]
    others = jnp.take_along_axis(logits, column + (column >= labels[:, None]), axis=1)
    target = jnp.take_along_axis(logits, labels[:, None], axis=1)
    rest = jax.nn.logsumexp(others, axis=1, keepdims=True)
    return jax.nn.log_softmax(jnp.concatenate([target, rest], axis=1)), others - rest


def _kl_divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=1)


def _id_term(part: Part, labels: jax.Array, domain: str, taught: jax.Array | None, **options) -> jax.Array:
    return id_loss(part["logits"][domain], labels, **options)


def _triplet_term(part: Part, labels: jax.Array, domain: str, taught: jax.Array | None, **options) -> jax.Array:
    return triplet_loss(part["features"], labels, **options)


def _distill_term(part: Part, labels: jax.Array, domain: str, taught: jax.Array | None, **options) -> jax.Array:
    assert taught is not None
    return dkd_loss(part["logits"][domain], taught, labels, **options)


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the objective (paper, eq. 10).

    Attributes:
        compute: (part, labels [B], domain, the teacher's logits [B, C] or None, **options) -> scalar, where `part` is
            one of the model's parts, with only the rows of the domain.
        domain: "real" or "aux": the images that it is computed on.
        options: the names of the `loss` options that `compute` takes.
        taught: whether it needs a teacher. Only the first part is distilled: a teacher has one classifier.
    """

    compute: Callable[..., jax.Array]
    domain: str
    options: tuple[str, ...] = ()
    taught: bool = False


DISTILLATION = ("alpha", "beta", "temperature", "nckd_weight")
# Each name is also the option of options.py's `Loss` that sets the term's weight λ.
TERMS = {
    "id_real": Term(_id_term, "real", ("label_smoothing",)),
    "triplet_real": Term(_triplet_term, "real", ("margin", "normalize")),
    "id_syn": Term(_id_term, "aux", ("label_smoothing",)),
    "triplet_syn": Term(_triplet_term, "aux", ("margin", "normalize")),
    "distill": Term(_distill_term, "aux", DISTILLATION, taught=True),
}


def compute_terms(
    parts: Sequence[Part],
    labels: Mapping[str, jax.Array],
    domains: Sequence[str],
    taught: jax.Array | None,
    options: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Return {name: value} of every term of TERMS that the batch has data for, summed over the model's parts.

    Args:
        parts: the model's parts (`models.reid.ReID`); row i belongs to domain i % len(domains).
        labels: {domain: [B]}.
        domains: the batch's domains, in the order of its rows.
        taught: the teacher's logits on the auxiliary images [B, C], or None without a teacher.
        options: the options of the terms by name, such as `margin`; missing ones keep their defaults.
    """

    def of_domain(part: Part, domain: str) -> Part:
        rows = slice(domains.index(domain), None, len(domains))
        return {"features": part["features"][rows], "logits": {domain: part["logits"][domain][rows]}}

    terms = {}
    for name, term in TERMS.items():
        if term.domain not in domains or (term.taught and taught is None):
            continue
        chosen = {option: options[option] for option in term.options if option in options}
        values = []
        for part in parts[:1] if term.taught else parts:
            own = of_domain(part, term.domain)
            value = term.compute(own, labels[term.domain], term.domain, taught, **chosen)
            values.append(value if part["weight"] == 1 else part["weight"] * value)
        terms[name] = sum(values[1:], start=values[0])
    return terms


def total_loss(terms: dict[str, jax.Array], weights: dict[str, float]) -> jax.Array:
    """Return Σ λ·term over the terms present (paper, eq. 10)."""
    return sum((weights[name] * value for name, value in terms.items()), start=jnp.zeros(()))
