"""Multi-head attention as functions of arrays, with Norm-Ratio Attention (NRA).

B batch, M query tokens, N key tokens, H heads, K head width
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import say
from ..precision import at_least_float32, one_order


@dataclasses.dataclass(frozen=True)
class NormRatio:
    """The settings of Norm-Ratio Attention.

    Attributes:
        init: the first value of λ, which is learned.
        scope: the vectors whose norms are used: those of each "head", or of the whole "token" (all heads together).
        epsilon: ε, above 0.
        form: "ratio" for γ = λ‖K‖/(‖Q‖+ε) as in the paper, "standard" for γ = λ(‖K‖ − mean)/deviation over the keys,
            which does not depend on the scale and the spread of the norms.
    """

    init: float = 1.0
    scope: str = "head"
    epsilon: float = 1e-6
    form: str = "ratio"

    def penalty(self, q_BMHK: jax.Array, k_BNHK: jax.Array, strength: jax.Array) -> jax.Array:
        """Return γ, [B, H, M, N] in nats, which is subtracted from the logits; `strength` is λ."""
        q_norm_BHM, k_norm_BHN = (token_norms(x, self.scope) for x in (q_BMHK, k_BNHK))
        if self.form == "standard":
            return standard_norm_penalty(k_norm_BHN, strength)
        return norm_ratio_penalty(q_norm_BHM, k_norm_BHN, strength, self.epsilon)


def l2_norm(x: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Compute the Euclidean norm, √Σ x².

    Args:
        x: an array of any shape.
        axis: the axis or axes of a vector.

    Returns:
        `x` without those axes, in float32 or wider. The gradient at a zero vector is 0, not NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.attention import l2_norm
        >>> l2_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(4).tolist()
        [5.0, 0.0]
    """
    squared = jnp.square(at_least_float32(x)).sum(axis)
    positive = squared > 0
    # The inner `where` keeps 0 out of the root: its gradient there is infinite, and 0·∞ is NaN.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def token_norms(x_BNHK: jax.Array, scope: str = "head") -> jax.Array:
    """Compute the norm of each token's queries, keys or values.

    Args:
        x_BNHK: queries, keys or values.
        scope: "head" for the norm of each head's vector, "token" for the norm of the whole token, √Σ_head ‖x_head‖².

    Returns:
        [B, H, N] in float32 or wider. With scope "token" all heads have the same norm.

    Source:
        Guo et al. (the paper), ‖Q‖ and ‖K‖ in eq. 2. It does not say whether it means heads or whole tokens.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.attention import token_norms
        >>> x = jnp.array([[[[3.0, 0.0], [0.0, 4.0]]]])  # one image, one token, two heads
        >>> token_norms(x).round(4).tolist(), token_norms(x, scope="token").round(4).tolist()
        ([[[3.0], [4.0]]], [[[5.0], [5.0]]])
    """
    if scope == "token":
        norm_BN = l2_norm(x_BNHK, axis=(-2, -1))
        return jnp.broadcast_to(norm_BN[:, None], (norm_BN.shape[0], x_BNHK.shape[2], norm_BN.shape[1]))
    return l2_norm(x_BNHK).swapaxes(1, 2)


def norm_ratio_penalty(
    q_norm_BHM: jax.Array, k_norm_BHN: jax.Array, strength: jax.Array, epsilon: float = 1e-6
) -> jax.Array:
    """Compute the penalty that Norm-Ratio Attention subtracts from the logits.

    γ = λ·‖K‖ / (‖Q‖ + ε)

    γ has rank one over (query, key). It often differs between keys by thousandths only, so it stays in float32 and is
    subtracted from the float32 logits. Unless attention maps are requested, the last block has one query (CLS), and γ
    needs no N×N matrix.

    Args:
        q_norm_BHM: norms of the queries, from `token_norms`.
        k_norm_BHN: norms of the keys.
        strength: λ, a scalar.
        epsilon: ε, above 0.

    Returns:
        γ, [B, H, M, N], in nats.

    Source:
        Guo et al. (the paper), eq. 2; eq. 3 subtracts it.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.attention import norm_ratio_penalty
        >>> q_norm, k_norm = jnp.array([[[2.0]]]), jnp.array([[[1.0, 2.0]]])
        >>> norm_ratio_penalty(q_norm, k_norm, jnp.array(1.0)).round(4).tolist()
        [[[[0.5, 1.0]]]]
    """
    return strength * k_norm_BHN[:, :, None, :] / (q_norm_BHM[..., None] + epsilon)


def standard_norm_penalty(k_norm_BHN: jax.Array, strength: jax.Array) -> jax.Array:
    """Compute a penalty of the keys' norms in standard deviations.

    γ = λ·(‖K‖ − mean)/√(variance + 1e-12), with mean and variance over the keys

    The standard deviation of γ over the keys is `|λ|` nats in every image and head. With `norm_ratio_penalty`, it
    depends on the norm of the query and the spread of the keys' norms.

    Args:
        k_norm_BHN: norms of the keys, from `token_norms`.
        strength: λ, a scalar.

    Returns:
        γ, [B, H, 1, N], in nats, which applies to every query. It is 0 if all keys have the same norm.

    Source:
        This project, not the paper.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.attention import standard_norm_penalty
        >>> standard_norm_penalty(jnp.array([[[1.0, 3.0]]]), jnp.array(0.5)).round(4).tolist()
        [[[[-0.5, 0.5]]]]
    """
    deviation = k_norm_BHN - k_norm_BHN.mean(axis=2, keepdims=True)
    variance = jnp.square(deviation).mean(axis=2, keepdims=True)
    return strength * (deviation * jax.lax.rsqrt(variance + 1e-12))[:, :, None, :]


def attention_logits(q_BMHK: jax.Array, k_BNHK: jax.Array) -> jax.Array:
    """Compute the scaled products of queries and keys, QKᵀ/√K.

    Args:
        q_BMHK: queries, of any float type.
        k_BNHK: keys, of the same type.

    Returns:
        [B, H, M, N], in float32 or wider, in nats.

    Source:
        Guo et al. (the paper), eq. 1; Vaswani et al. 2017, eq. 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.attention import attention_logits
        >>> q = jnp.ones((1, 1, 1, 4))
        >>> attention_logits(q, jnp.ones((1, 3, 1, 4))).tolist()
        [[[[2.0, 2.0, 2.0]]]]
    """
    accumulate = jnp.promote_types(q_BMHK.dtype, jnp.float32)
    # Without this algorithm, the products of the backward pass would have float32 factors, for which tensor cores are
    # not used.
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if q_BMHK.dtype == jnp.bfloat16 else None
    logits_BHMN = jnp.einsum("BMHK,BNHK->BHMN", q_BMHK, k_BNHK, precision=precision, preferred_element_type=accumulate)
    return logits_BHMN * q_BMHK.shape[-1] ** -0.5


def attend(logits_BHMN: jax.Array, v_BNHK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the attention weights and the weighted sum of the values, Softmax(logits)·V.

    Args:
        logits_BHMN: from `attention_logits`; for Norm-Ratio Attention minus the penalty.
        v_BNHK: values, of any float type.

    Returns:
        The output [B, M, H, K] in the type of the values, and the weights [B, H, M, N] in the type of the logits. The
        weights sum to 1 over the keys.

    Source:
        Guo et al. (the paper), eq. 1 and 3.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.attention import attend
        >>> logits = jnp.log(jnp.array([[[[1.0, 3.0]]]]))
        >>> output, weights = attend(logits, jnp.array([0.0, 4.0]).reshape(1, 2, 1, 1))
        >>> output.round(4).tolist(), weights.round(4).tolist()
        ([[[[3.0]]]], [[[[0.25, 0.75]]]])
    """
    weights_BHMN = jax.nn.softmax(logits_BHMN, axis=-1)
    return jnp.einsum("BHMN,BNHK->BMHK", weights_BHMN.astype(v_BNHK.dtype), v_BNHK), weights_BHMN


def fused_attend(q_BNHK: jax.Array, k_BNHK: jax.Array, v_BNHK: jax.Array, tokens: int, layer: int = 0) -> jax.Array:
    """Compute Softmax(QKᵀ/√K)·V with cuDNN, which never writes the [N, N] weights to memory.

    This needs bfloat16, an NVIDIA GPU and, for gradients, an even N. `fusion_works` checks the device.

    Args:
        q_BNHK: queries, bfloat16.
        k_BNHK: keys, bfloat16.
        v_BNHK: values, bfloat16.
        tokens: the number of real tokens, in 1..N. They come first; the other rows are padding.
        layer: a number that differs between calls of equal shapes in one program. XLA fails on two equal calls in a
            program that must be deterministic (https://github.com/openxla/xla/pull/46500, third defect). The number
            changes the scale by less than float32 resolves, so the calls differ but the results do not.

    Returns:
        [B, N, H, K], bfloat16. Rows past `tokens` are 0.

    Source:
        https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html
    """
    batch, length, _, width = q_BNHK.shape
    lengths = None if tokens == length else jnp.full(batch, tokens, jnp.int32)
    return jax.nn.dot_product_attention(
        q_BNHK,
        k_BNHK,
        v_BNHK,
        scale=width**-0.5 * (1 + layer * 2.0**-40),
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


@functools.cache
def fusion_works() -> bool:
    """Return whether `fused_attend` works on this device, with the same results and gradients as `attend`.

    The first call tries two small layers, with the compiler options of the training step. If that fails on a GPU, a
    note on stderr says why.

    Returns:
        The answer, which is cached for later calls; False without a GPU.
    """
    if jax.default_backend() != "gpu":
        return False
    # An odd number of tokens needs a row of padding, which this tests too.
    tokens = 9
    q, k, v, g = jax.random.normal(jax.random.key(0), (4, 2, tokens + 1, 2, 64), jnp.bfloat16)
    g = g.at[:, tokens:].set(0)

    def plain(q, k, v, tokens, layer):
        y = attend(attention_logits(q, k[:, :tokens]), v[:, :tokens])[0]
        return y.at[:, tokens:].set(0)

    @functools.partial(jax.jit, static_argnums=0, compiler_options=one_order())
    def output_and_gradients(attend):
        y, gradients = jax.vjp(lambda q, k, v: attend(attend(q, k, v, tokens, 0), k, v, tokens, 1), q, k, v)
        return jnp.stack([y, *gradients(g)]).astype(jnp.float32)

    try:
        fused = output_and_gradients(fused_attend)
        # NumPy's maximum is NaN if a result is NaN, and the comparison below is then false.
        difference = np.abs(np.asarray(fused) - np.asarray(output_and_gradients(plain))).max()
        reason = "" if difference < 0.05 else f"it is {difference:.2g} off"
    # JAX, cuDNN and XLA raise many kinds of errors, and training can continue without the fusion.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    if reason:
        say(f"note: cuDNN's attention is not used, so training is slower ({reason})", error=True)
    return not reason
