"""Losses of features. They compute in float32, or in float64 if the arrays are float64.

B batch, D feature width, C classes
"""

import jax
import jax.numpy as jnp
import optax

from ..precision import at_least_float32


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
    # For near rows the sum below cancels, so that products in TF32, a GPU's default, would leave few correct digits.
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
    # Select by index: the gradient of a maximum would be split among equal distances, and in PyTorch one row gets it.
    farthest = jnp.argmax(jnp.where(same, distances, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(same, jnp.inf, distances), axis=1)
    positive, negative = (jnp.take_along_axis(distances, i[:, None], axis=1)[:, 0] for i in (farthest, nearest))
    gap = positive - negative
    loss = jax.nn.softplus(gap) if margin is None else jnp.maximum(gap + margin, 0)
    return jnp.where(same.all(axis=1), 0.0, loss).mean()


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
        # 1e-30 avoids 0/0 in rows without such entries, which the last line leaves out.
        total = powers.sum(axis=1, keepdims=True) + (1e-6 if form == "official" else 1e-30)
        return (powers / total * distances).sum(axis=1)

    loss = jax.nn.softplus(weighted_sum(distances, same) - weighted_sum(-distances, ~same))
    return jnp.where(same.all(axis=1), 0.0, loss).mean()


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


def consistency_loss(dark_features: jax.Array, bright_features: jax.Array) -> jax.Array:
    """Pull the features of dark images to those of the same images in good light.

    loss = mean over i of 1 − cos(d_i, b_i)

    The features of the bright images receive no gradient, so that they cannot become as poor as those of the dark
    images. The loss is 0 if all features are parallel: use it with a loss that prevents that, such as `spread_loss`.

    Args:
        dark_features: [B, D].
        bright_features: [B, D], of the same images in the same order.

    Returns:
        A scalar in 0..2. A row of length 0 counts as 1.

    Source:
        Grill et al. 2020, "BYOL", eq. 2 without its predictor and its factor 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import consistency_loss
        >>> dark, bright = jnp.array([[3.0, 0.0], [0.0, 3.0]]), jnp.array([[1.0, 0.0], [2.0, 0.0]])
        >>> float(consistency_loss(dark, bright))
        0.5
    """
    bright = jax.lax.stop_gradient(at_least_float32(bright_features))
    return optax.cosine_distance(at_least_float32(dark_features), bright, epsilon=1e-6).mean()


def relation_loss(student_features: jax.Array, teacher_features: jax.Array) -> jax.Array:
    """Compare the distances between the student's features with the distances between the teacher's features.

    loss = mean over pairs i≠j of huber(s_ij − t_ij), huber(x) = x²/2 where `|x|` ≤ 1, else `|x|` − 1/2

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
