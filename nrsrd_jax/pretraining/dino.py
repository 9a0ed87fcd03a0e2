"""The parts of DINO: the projection head, the loss, its centre, and the schedules.

B images, V views of each (the two global ones first), K prototypes
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..models.block import LINEAR_INIT, gelu
from ..models.convolution import uniform_fan_in
from ..precision import at_least_float32

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9
GLOBAL_VIEWS = 2


class Head(nn.Module):
    """Project features [N, D] to K cosines in −1..1: three linear layers, then a comparison with K prototypes.

    Attributes:
        prototypes: K.
        hidden: the width of the first two layers.
        bottleneck: the width of the third, whose output is scaled to length 1.
        free_length: whether the length of each prototype is learned; otherwise it stays 1.
        dtype: the type of the matrix products; None for float32.
    """

    prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    free_length: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The numbers are those of the official nn.Sequential, in which each GELU takes one.
        for layer, width in ((0, self.hidden), (2, self.hidden), (4, self.bottleneck)):
            x = nn.Dense(width, kernel_init=LINEAR_INIT, dtype=self.dtype, name=f"mlp_{layer}")(x)
            x = gelu(x) if layer < 4 else x
        return Prototypes(self.prototypes, self.free_length, self.dtype, name="last_layer")(unit(x))


class Prototypes(nn.Module):
    """Compare vectors [N, W] of length 1 with K prototypes, each of which is g·v/‖v‖ (weight normalisation)."""

    count: int
    free_length: bool
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        v = self.param("weight_v", uniform_fan_in(x.shape[-1]), (x.shape[-1], self.count))
        g = self.param("weight_g", nn.initializers.ones, (1, self.count))
        if not self.free_length:
            g = jax.lax.stop_gradient(g)
        kernel = g * v / jnp.linalg.norm(v, axis=0, keepdims=True)
        dtype = self.dtype or x.dtype
        return at_least_float32(x.astype(dtype) @ kernel.astype(dtype))


def unit(x: jax.Array) -> jax.Array:
    """Scale rows to length 1, as torch.nn.functional.normalize does. Zeros stay zeros, with a finite gradient."""
    squares = jnp.square(at_least_float32(x)).sum(-1, keepdims=True)
    return (x / jnp.sqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)


def dino_loss(
    student: jax.Array, teacher: jax.Array, centre: jax.Array, *, temperature: jax.Array | float
) -> jax.Array:
    """Return the cross-entropy between the teacher's answer to a global view and the student's to each other view.

    Args:
        student: [B, V, K], the student's outputs for all views, the two global ones first.
        teacher: [B, 2, K], the teacher's outputs for the global views. No gradient passes through them.
        centre: [K], subtracted from the teacher's outputs.
        temperature: the temperature of the teacher's softmax, above 0.

    Returns:
        A scalar: the mean over images and over the 2·V − 2 pairs of different views.

    Source:
        Caron et al. 2021, equation 3, https://arxiv.org/abs/2104.14294, and the official code of TransReID-SSL.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.pretraining.dino import dino_loss
        >>> outputs = jnp.zeros((1, 3, 4))
        >>> round(dino_loss(outputs, outputs[:, :2], jnp.zeros(4), temperature=0.04).item(), 4)  # ln 4
        1.3863
    """
    logs = jax.nn.log_softmax(at_least_float32(student) / STUDENT_TEMPERATURE)
    targets = teacher_probabilities(teacher, centre, temperature)
    # Each local view is paired with both answers of the teacher. Adding the answers first saves a product.
    both = targets.sum(1)
    pairs = jnp.einsum("bk,bk->", both, logs[:, GLOBAL_VIEWS:].sum(1))
    for view in range(GLOBAL_VIEWS):
        pairs += jnp.einsum("bk,bk->", targets[:, 1 - view], logs[:, view])
    batch, views, _ = student.shape
    return -pairs / (batch * GLOBAL_VIEWS * (views - 1))


def teacher_probabilities(teacher: jax.Array, centre: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Return the softmax of the teacher's centred and sharpened outputs, [B, 2, K]; no gradient passes."""
    return jax.nn.softmax(jax.lax.stop_gradient(at_least_float32(teacher) - centre) / temperature)


def next_centre(centre: jax.Array, teacher: jax.Array) -> jax.Array:
    """Move the centre [K] towards the mean of the teacher's outputs [B, 2, K]."""
    return CENTRE_MOMENTUM * centre + (1 - CENTRE_MOMENTUM) * at_least_float32(teacher).mean((0, 1))


def koleo_loss(features: jax.Array) -> jax.Array:
    """Return a loss that spreads the images of a batch evenly over all directions: −log of the nearest distance.

    Args:
        features: [B, D], of different images, B at least 2. Only their directions count.

    Returns:
        A scalar, the mean over images; 0 if each image is at the distance 1 from its nearest.

    Source:
        Sablayrolles et al. 2019, equation 2, https://arxiv.org/abs/1806.03198, as in DINOv2, Oquab et al. 2023,
        https://arxiv.org/abs/2304.07193.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.pretraining.dino import koleo_loss
        >>> round(koleo_loss(3.0 * jnp.eye(2)).item(), 4)  # −ln √2
        -0.3466
    """
    x = unit(at_least_float32(features))
    cosines = x @ x.T - 4 * jnp.eye(len(x))
    squares = jnp.square(x - x[jax.lax.stop_gradient(cosines).argmax(1)]).sum(1)
    # Equal features have no direction to move apart in. The floor keeps their gradient finite.
    return -0.5 * jnp.log(jnp.maximum(squares, 1e-14)).mean()


def entropies(probabilities: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return how undecided the teacher is, and how much its answers differ, in nats.

    Args:
        probabilities: [B, 2, K].

    Returns:
        The mean entropy of an answer; and the information that an answer has about its image, which is the entropy of
        the mean answer minus the mean entropy. If it is near 0, the teacher gives every image the same answer: it has
        collapsed.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.pretraining.dino import entropies
        >>> [round(float(x), 4) for x in entropies(jnp.eye(2)[:, None].repeat(2, 1))]  # ln 2
        [0.0, 0.6931]
    """

    def entropy(p):
        # 0·log 0 counts as 0, its limit.
        return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1)

    each = entropy(probabilities).mean()
    return each, entropy(probabilities.mean((0, 1))) - each


def cosine(step: jax.Array | int, start: float, end: float, steps: int, warmup: int = 0) -> jax.Array:
    """Return a schedule's value: a linear rise from 0 to `start` over `warmup` steps, then a cosine towards `end`.

    Args:
        step: 0-based, below `steps`.
        start, end: the first value of the cosine, and the value that it approaches but does not quite reach.
        steps: the number of steps of the run.
        warmup: the number of steps of the rise; the first has the value 0, the last `start`.

    Returns:
        A scalar.

    Source:
        The official code of TransReID-SSL.

    Example:
        >>> from nrsrd_jax.pretraining.dino import cosine
        >>> [round(float(cosine(step, 1.0, 0.0, 6, warmup=2)), 3) for step in range(6)]
        [0.0, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    step = jnp.asarray(step, jnp.result_type(float))
    # The official schedule is linspace(0, start, warmup), which includes both ends.
    rise = start * step / max(warmup - 1, 1)
    fall = end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * (step - warmup) / max(steps - warmup, 1)))
    return jnp.where(step < warmup, rise, fall)


def teacher_temperature(epoch: jax.Array | int, start: float, end: float, warmup_epochs: int) -> jax.Array:
    """Return the teacher's temperature in a 0-based epoch: linear from `start` to `end`, then constant at `end`."""
    share = jnp.asarray(epoch, jnp.result_type(float)) / max(warmup_epochs - 1, 1)
    return jnp.where(epoch < warmup_epochs, start + (end - start) * share, end)
