"""The losses, as pure functions of arrays. They compute in float32, or in float64 if the arrays are float64.

B batch, D feature width, C classes
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .precision import at_least_float32

# One part of a model's output, with `features`, `logits` and `weight` (`models.reid.ReID`).
Part = dict[str, Any]


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


def pairwise_distances(features: jax.Array) -> jax.Array:
    """Compute the Euclidean distances between all pairs of rows.

    distance = √max(‖x_i‖² + ‖x_j‖² − 2·x_i·x_j, 1e-12)

    The lower limit makes the gradient of identical rows 0 instead of NaN.

    Args:
        features: [B, D].

    Returns:
        [B, B], at least 1e-6, in float32 or wider.

    Source:
        The official code of TransReID-SSL, `euclidean_dist`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import pairwise_distances
        >>> pairwise_distances(jnp.array([[0.0, 0.0], [3.0, 4.0]])).round(3).tolist()
        [[0.0, 5.0], [5.0, 0.0]]
    """
    x = at_least_float32(features)
    squares = jnp.square(x).sum(axis=1)
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 1e-12))


def triplet_loss(
    features: jax.Array, labels: jax.Array, *, margin: float | None = None, normalize: bool = False
) -> jax.Array:
    """Compute the batch-hard triplet loss, averaged over the anchors.

    loss = max(0, d_ap − d_an + m), or with the soft margin log(1 + exp(d_ap − d_an))

    d_ap is the distance from an anchor to the farthest row of its identity, which may be the anchor itself. d_an is the
    distance to the nearest row of another identity. If several rows are equally far, the first counts. An anchor
    contributes 0 if the batch has no row of another identity.

    Args:
        features: [B, D].
        labels: the identities [B], integers.
        margin: m in the unit of the distances, or None for the soft margin, which the paper uses.
        normalize: whether to scale the rows to length 1 first.

    Returns:
        A scalar, at least 0.

    Source:
        Guo et al. (the paper), L_Triplet in eq. 8 and 9; Hermans et al. 2017, "batch hard"; checked against the
        official code of TransReID-SSL.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import triplet_loss
        >>> features = jnp.array([[0.0], [1.0], [3.0], [5.0]])
        >>> labels = jnp.array([0, 0, 1, 1])
        >>> print(f"{triplet_loss(features, labels, margin=1.0):.2f}")  # The third anchor alone violates the margin.
        0.25
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


def relation_loss(student_features: jax.Array, teacher_features: jax.Array) -> jax.Array:
    """Compare the distances between the student's features with the distances between the teacher's features.

    loss = mean over pairs i≠j of huber(s_ij − t_ij), huber(x) = x²/2 where |x| ≤ 1, else |x| − 1/2

    s_ij and t_ij are the Euclidean distances between rows i and j, divided by the mean distance over all pairs. So the
    loss does not change if all features are scaled or shifted, and student and teacher may differ in width. The
    teacher's features receive no gradient.

    Args:
        student_features: [B, D].
        teacher_features: [B, E], of the same images in the same order.

    Returns:
        A scalar, at least 0; 0 for fewer than two images.

    Source:
        Park et al. 2019, "Relational Knowledge Distillation", the distance-wise loss.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import relation_loss
        >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [4.0]])
        >>> print(f"{relation_loss(student, teacher):.4f} {relation_loss(10 * teacher + 5, teacher):.4f}")
        0.0469 0.0000
    """
    teacher_features = jax.lax.stop_gradient(teacher_features)
    count = len(student_features)
    if count < 2:
        return jnp.zeros(())
    pairs = ~jnp.eye(count, dtype=bool)

    def relative(features: jax.Array) -> jax.Array:
        distances = jnp.where(pairs, pairwise_distances(features), 0)
        return distances / (distances.sum() / (count * (count - 1)))

    huber = optax.huber_loss(relative(student_features), relative(teacher_features))
    return huber.sum() / (count * (count - 1))


def spread_loss(features: jax.Array) -> jax.Array:
    """Penalise feature dimensions whose standard deviation over the batch is below 1.

    loss = mean over the dimensions d of max(0, 1 − √(var_d + 1e-4))

    The loss keeps features from becoming nearly parallel. The identity loss does not prevent that, because a BNNeck
    divides by the standard deviation. The batch-hard triplet loss can cause it: while an anchor's farthest image of its
    own identity is farther away than its nearest image of another one, shrinking all distances lowers the loss.

    Args:
        features: [B, D].

    Returns:
        A scalar in 0..1.

    Source:
        Bardes et al. 2022, "VICReg", the variance term with γ = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import spread_loss
        >>> print(f"{spread_loss(jnp.array([[5.0], [6.0]])):.3f} {spread_loss(jnp.array([[5.0], [7.0]])):.3f}")
        0.500 0.000
    """
    variance = at_least_float32(features).var(axis=0)
    return jnp.maximum(1 - jnp.sqrt(variance + 1e-4), 0).mean()


def center_loss(features: jax.Array, labels: jax.Array, centers: jax.Array) -> jax.Array:
    """Compute the mean squared distance between features and the centres of their identities.

    loss = mean over i of ‖f_i − c_{y_i}‖²

    Args:
        features: [B, D].
        labels: [B], integers in 0..C−1.
        centers: the learned centre of each identity, [C, D].

    Returns:
        A scalar, at least 0.

    Source:
        Wen et al. 2016, "A Discriminative Feature Learning Approach", without its factor ½; the official code of BoT.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import center_loss
        >>> float(center_loss(jnp.array([[1.0], [5.0]]), jnp.array([0, 1]), jnp.array([[0.0], [3.0]])))
        2.5
    """
    return jnp.square(at_least_float32(features) - at_least_float32(centers)[labels]).sum(axis=1).mean()


def weighted_triplet_loss(features: jax.Array, labels: jax.Array, *, form: str = "exact") -> jax.Array:
    """Compute the weighted regularised triplet loss, averaged over the anchors.

    loss = log(1 + exp(Σ_p w⁺_p·d_p − Σ_n w⁻_n·d_n))

    w⁺ = softmax(d) over the rows of the anchor's identity, including the anchor. w⁻ = softmax(−d) over the other rows.

    Args:
        features: [B, D].
        labels: the identities [B], integers.
        form: "exact" for these weights; "official" for the weights of the official code, w⁻ = exp(−d)/(Σ exp(−d) +
            1e-6). The official w⁻ vanish when all distances exceed about 18; the loss then only pulls rows of one
            identity together.

    Returns:
        A scalar, at least 0. An anchor contributes 0 if the batch has no row of another identity.

    Raises:
        ValueError: `form` is unknown.

    Source:
        Ye et al. 2021, "Deep Learning for Person Re-identification", eq. 7, and its official code (AGW).

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import weighted_triplet_loss
        >>> features, labels = jnp.array([[0.0], [1.0], [30.0], [31.0]]), jnp.array([0, 0, 1, 1])
        >>> exact, official = (weighted_triplet_loss(features, labels, form=form) for form in ("exact", "official"))
        >>> print(f"{exact:.4f} {official:.4f}")
        0.0000 1.1240
    """
    if form not in ("exact", "official"):
        raise ValueError(f"form is {form!r}; choose exact or official")
    distances = pairwise_distances(features)
    same = labels[:, None] == labels[None, :]

    def weighted_sum(values: jax.Array, mask: jax.Array) -> jax.Array:
        """Return Σ softmax(values)·distance over the entries of each row that the mask selects, [B]."""
        # The official code multiplies the values by the mask before it takes their maximum. The values of the negatives
        # are −d, so their maximum is the 0 of a masked entry.
        largest = jnp.where(mask, values, 0 if form == "official" else -jnp.inf).max(axis=1, keepdims=True)
        powers = jnp.exp(jnp.where(mask, values - jax.lax.stop_gradient(largest), -jnp.inf))
        total = powers.sum(axis=1, keepdims=True) + (1e-6 if form == "official" else 1e-30)
        return (powers / total * distances).sum(axis=1)

    loss = jax.nn.softplus(weighted_sum(distances, same) - weighted_sum(-distances, ~same))
    return jnp.where(same.all(axis=1), 0.0, loss).mean()


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


def _id_term(part: Part, labels: jax.Array, domain: str, taught: Part | None, **options) -> jax.Array:
    return id_loss(part["logits"][domain], labels, **options)


def _triplet_term(part: Part, labels: jax.Array, domain: str, taught: Part | None, **options) -> jax.Array:
    return triplet_loss(part["features"], labels, **options)


def _weighted_term(
    part: Part, labels: jax.Array, domain: str, taught: Part | None, weighted_form: str = "exact"
) -> jax.Array:
    return weighted_triplet_loss(part["features"], labels, form=weighted_form)


def _center_term(part: Part, labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    return center_loss(part["features"], labels, part["centers"])


def _spread_term(part: Part, labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    return spread_loss(part["features"])


def _distill_term(part: Part, labels: jax.Array, domain: str, taught: Part | None, **options) -> jax.Array:
    assert taught is not None
    return dkd_loss(part["logits"][domain], taught["logits"]["real"], labels, **options)


def _relation_term(part: Part, labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    assert taught is not None
    return relation_loss(part["features"], taught["features"])


def _agree_term(parts: Sequence[Part], labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    return agreement_loss([part["logits"][domain] for part in parts])


def _term_of_the_model(name: str) -> Callable[..., jax.Array]:
    return lambda parts, labels, domain, taught: parts[0]["losses"][name]


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the objective (paper, eq. 10).

    Attributes:
        compute: (part, labels [B], domain, the teacher's first part or None, **options) -> scalar. `part` is one of the
            model's parts, with only the rows of the domain. The teacher's own classifier is `logits["real"]`.
        domain: "real" or "aux", the images that the term is computed on.
        options: the names of the `loss` options that `compute` takes.
        taught: whether the term needs a teacher. It then compares the first part of the model with that of the teacher.
        own: whether the term exists only for models whose spec names it (`models.spec.Spec.losses`). `compute` then
            takes the list of all parts instead of one part, and the weights of the parts do not apply.
    """

    compute: Callable[..., jax.Array]
    domain: str
    options: tuple[str, ...] = ()
    taught: bool = False
    own: bool = False


DISTILLATION = ("alpha", "beta", "temperature", "nckd_weight")
# The field of the same name in `options.Loss` is the weight λ of a term.
TERMS = {
    "id_real": Term(_id_term, "real", ("label_smoothing",)),
    "triplet_real": Term(_triplet_term, "real", ("margin", "normalize")),
    "spread_real": Term(_spread_term, "real"),
    "weighted_real": Term(_weighted_term, "real", ("weighted_form",)),
    "center_real": Term(_center_term, "real"),
    "id_syn": Term(_id_term, "aux", ("label_smoothing",)),
    "triplet_syn": Term(_triplet_term, "aux", ("margin", "normalize")),
    "spread_syn": Term(_spread_term, "aux"),
    "distill": Term(_distill_term, "aux", DISTILLATION, taught=True),
    "relation": Term(_relation_term, "aux", taught=True),
    "enhance": Term(_term_of_the_model("enhance"), "real", own=True),
    "decode": Term(_term_of_the_model("decode"), "real", own=True),
    "agree": Term(_agree_term, "real", own=True),
}


def compute_terms(
    parts: Sequence[Part],
    labels: Mapping[str, jax.Array],
    domains: Sequence[str],
    taught: Part | None,
    options: Mapping[str, Any],
    wanted: Collection[str],
) -> dict[str, jax.Array]:
    """Compute every wanted term that the batch has data for, summed over the model's parts.

    A term is Σ_part weight·term(part). Terms that need a teacher read only the first part.

    Args:
        parts: the parts that the model returns (`models.reid.ReID`). Row i belongs to domain i % len(domains).
        labels: {domain: [B]}, the identities of the images of each domain.
        domains: the domains of the batch, "real" or "aux" or both, in the order of its rows.
        taught: the teacher's first part for the auxiliary images; None without a teacher.
        options: options of the terms by name, such as `margin`. A missing option keeps its default.
        wanted: the names of the terms to compute. The model must support all of them.

    Returns:
        {name: scalar}, not weighted by λ. A term is left out if the batch lacks its domain, or if the term needs a
        teacher and `taught` is None.

    Source:
        Guo et al. (the paper), the terms of eq. 10.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import compute_terms
        >>> part = {"features": jnp.zeros((2, 4)), "logits": {"real": jnp.zeros((2, 2))}, "weight": 1.0}
        >>> terms = compute_terms(
        ...     [part], {"real": jnp.array([0, 1])}, ["real"], None, {}, ("id_real", "triplet_real")
        ... )
        >>> {name: f"{value:.4f}" for name, value in terms.items()}
        {'id_real': '0.6931', 'triplet_real': '0.6931'}
    """

    def of_domain(part: Part, domain: str) -> Part:
        rows = slice(domains.index(domain), None, len(domains))
        own = {"features": part["features"][rows], "logits": {domain: part["logits"][domain][rows]}}
        return own | {name: part[name] for name in ("centers", "losses") if name in part}

    terms = {}
    for name, term in TERMS.items():
        if name not in wanted or term.domain not in domains or (term.taught and taught is None):
            continue
        chosen = {option: options[option] for option in term.options if option in options}
        if term.own:
            own = [of_domain(part, term.domain) for part in parts]
            terms[name] = term.compute(own, labels[term.domain], term.domain, taught, **chosen)
            continue
        values = []
        for part in parts[:1] if term.taught else parts:
            own = of_domain(part, term.domain)
            value = term.compute(own, labels[term.domain], term.domain, taught, **chosen)
            values.append(value if part["weight"] == 1 else part["weight"] * value)
        terms[name] = sum(values[1:], start=values[0])
    return terms


def total_loss(terms: dict[str, jax.Array], weights: dict[str, float]) -> jax.Array:
    """Add up the weighted terms, Σ λ·term.

    Args:
        terms: {name: scalar}, from `compute_terms`.
        weights: {name: λ}, with an entry for each of the terms. The paper uses 0.5, and 0.02 for `distill`.

    Returns:
        A scalar; 0 without terms.

    Raises:
        KeyError: a term has no weight.

    Source:
        Guo et al. (the paper), eq. 10.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import total_loss
        >>> terms = {"id_real": jnp.array(2.0), "distill": jnp.array(50.0)}
        >>> float(total_loss(terms, {"id_real": 0.5, "distill": 0.02}))
        2.0
    """
    return sum((weights[name] * value for name, value in terms.items()), start=jnp.zeros(()))
