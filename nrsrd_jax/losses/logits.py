"""Losses of class logits. They compute in float32, or in float64 if the arrays are float64.

B batch, C classes
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ..precision import at_least_float32


def id_loss(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Compute the softmax cross-entropy with smoothed labels, averaged over the batch.

    loss = −Σ_c y_c·log p_c, where p = softmax(logits) and y = (1 − ε)·onehot(label) + ε/C

    Args:
        logits: [B, C].
        labels: [B], integers in 0..C−1.
        label_smoothing: ε in 0..1. The paper uses 0.

    Returns:
        A scalar in nats, at least 0.

    Source:
        Guo et al. (the paper), L_ID in eq. 8 and 9; Szegedy et al. 2016, section 7, for ε; checked against the official
        code of TransReID-SSL.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import id_loss
        >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]))
        >>> print(f"{id_loss(logits, jnp.array([0, 2])):.4f}")  # log 2
        0.6931
    """
    log_p = jax.nn.log_softmax(at_least_float32(logits))
    target = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -((1 - label_smoothing) * target + label_smoothing * log_p.mean(axis=1)).mean()


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
    """Compute the loss of decoupled knowledge distillation, averaged over the batch.

    loss = (α·TCKD + β·NCKD)·T²
    TCKD = p_t·log(p_t/q_t) + (1 − p_t)·log((1 − p_t)/(1 − q_t))
    NCKD = w·Σ_{i≠t} p̂_i·log(p̂_i/q̂_i), where p̂_i = p_i/(1 − p_t), q̂_i = q_i/(1 − q_t)

    Here p = softmax(teacher_logits/T), q = softmax(student_logits/T), and t is the label. Everything is computed from
    log-probabilities, so values and gradients stay finite if the teacher or the student is certain. The teacher's
    logits receive no gradient.

    Args:
        student_logits, teacher_logits: [B, C], C at least 2.
        labels: [B], integers in 0..C−1.
        alpha: α, the weight of TCKD, at least 0.
        beta: β, the weight of NCKD, at least 0.
        temperature: T, above 0.
        nckd_weight: "target" for w = p_t (eq. 6 of the paper), "none" for w = 1 (the published code of DKD).

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: `nckd_weight` is unknown, the logits differ in shape, or there are fewer than 2 classes.

    Source:
        Guo et al. (the paper), eq. 4–6; Zhao et al. 2022, and their published code for T².

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import dkd_loss
        >>> teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
        >>> student = jnp.log(jnp.array([[0.25, 0.5, 0.25]]))
        >>> print(f"{dkd_loss(student, teacher, jnp.array([0])):.4f}")
        0.1674
        >>> print(f"{dkd_loss(teacher, teacher, jnp.array([0])):.4f}")
        0.0000
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
    """Split log-probabilities into target against rest, and the rest among themselves.

    Returns:
        log[p_t, 1 − p_t], [B, 2], and the log-probabilities of the other classes given that the class is not t,
        [B, C − 1].
    """
    # This selects the columns of the other classes. Masking the target with −∞ instead would give NaN in the
    # divergence, which subtracts log-probabilities.
    column = jnp.arange(logits.shape[1] - 1)[None, :]
    others = jnp.take_along_axis(logits, column + (column >= labels[:, None]), axis=1)
    target = jnp.take_along_axis(logits, labels[:, None], axis=1)
    rest = jax.nn.logsumexp(others, axis=1, keepdims=True)
    return jax.nn.log_softmax(jnp.concatenate([target, rest], axis=1)), others - rest


def _kl_divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """Return KL(p ‖ q) of each row, [B], in nats."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=1)


def agreement_loss(logits: Sequence[jax.Array]) -> jax.Array:
    """Compute how far the parts' class probabilities are from those of the last part, averaged over the batch.

    loss = Σ_i KL(p ‖ q_i), where p = softmax(logits of the last part) and q_i = softmax(logits of part i)

    The logits of the last part receive no gradient.

    Args:
        logits: the logits of each part, [B, C] each.

    Returns:
        A scalar in nats, at least 0.

    Source:
        Lu et al. 2023, "Illumination Distillation Framework", and its official code.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import agreement_loss
        >>> uniform, sure = jnp.zeros((1, 2)), jnp.array([[0.0, 20.0]])
        >>> print(f"{agreement_loss([uniform, uniform, sure]):.4f}")  # 2 · log 2
        1.3863
    """
    *others, last = (jax.nn.log_softmax(at_least_float32(each)) for each in logits)
    last = jax.lax.stop_gradient(last)
    return sum((_kl_divergence(last, other).mean() for other in others), start=jnp.zeros(()))
