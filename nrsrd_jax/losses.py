"""The losses of NRSRD: pure functions of arrays, computed in float32 (or wider, if given wider).

B batch, D feature width, C classes
"""

import jax
import jax.numpy as jnp

from .precision import at_least_float32


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


def total_loss(terms: dict[str, jax.Array], weights: dict[str, float]) -> jax.Array:
    """Σ λ·term over the terms present (paper, eq. 10: id_real, triplet_real, id_syn, triplet_syn, distill)."""
    return sum((weights[name] * value for name, value in terms.items()), start=jnp.zeros(()))
