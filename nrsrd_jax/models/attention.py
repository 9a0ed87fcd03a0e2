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
    """The settings of Norm-Ratio Attention."""

    init: float = 1.0  # λ at the start; it is learned
    scope: str = "head"  # head | token: whose vectors the norms are of
    epsilon: float = 1e-6


def l2_norm(x: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Euclidean norm in float32, with gradient 0 at a zero vector."""
    squared = jnp.square(at_least_float32(x)).sum(axis)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def token_norms(x_BNHK: jax.Array, scope: str = "head") -> jax.Array:
    """Norm of every token's vector, [B, H, N]: of each head's part, or with scope "token" of the whole width."""
    if scope == "token":
        norm_BN = l2_norm(x_BNHK, axis=(-2, -1))
        return jnp.broadcast_to(norm_BN[:, None], (norm_BN.shape[0], x_BNHK.shape[2], norm_BN.shape[1]))
    return l2_norm(x_BNHK).swapaxes(1, 2)


def norm_ratio_penalty(
    q_norm_BHM: jax.Array, k_norm_BHN: jax.Array, strength: jax.Array, epsilon: float = 1e-6
) -> jax.Array:
    """γ = λ‖K‖ / (‖Q‖ + ε), [B, H, M, N] (paper, eq. 2); rank one over (query, key).

    It is kept in float32 and subtracted from the logits as they are: M is 1 (the CLS query of the last block) unless
    all maps are asked for, so it costs no bias matrix, and its deviations over the keys, often thousandths, survive
    bfloat16.
    """
    return strength * k_norm_BHN[:, :, None, :] / (q_norm_BHM[..., None] + epsilon)


def attention_logits(q_BMHK: jax.Array, k_BNHK: jax.Array) -> jax.Array:
    """QKᵀ/√K in float32, [B, H, M, N]."""
    accumulate = jnp.promote_types(q_BMHK.dtype, jnp.float32)
    # Otherwise the gradients' products would take both factors in float32, which no tensor core has.
    precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if q_BMHK.dtype == jnp.bfloat16 else None
    logits_BHMN = jnp.einsum("BMHK,BNHK->BHMN", q_BMHK, k_BNHK, precision=precision, preferred_element_type=accumulate)
    return logits_BHMN * q_BMHK.shape[-1] ** -0.5


def attend(logits_BHMN: jax.Array, v_BNHK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax over the keys and the weighted sum of values: [B, M, H, K], and the weights [B, H, M, N]."""
    weights_BHMN = jax.nn.softmax(logits_BHMN, axis=-1)
    return jnp.einsum("BHMN,BNHK->BMHK", weights_BHMN.astype(v_BNHK.dtype), v_BNHK), weights_BHMN


def fused_attend(q_BNHK: jax.Array, k_BNHK: jax.Array, v_BNHK: jax.Array, tokens: int, layer: int = 0) -> jax.Array:
    """Softmax(QKᵀ/√K)·V over the first `tokens` keys, [B, N, H, K], by cuDNN, which never writes the [N, N] weights.

    It needs bfloat16, an NVIDIA GPU and, for gradients, an even N
    (https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html). Rows past `tokens` are 0.
    Calls of the same shapes in one program need different `layer` numbers. XLA fails on two equal calls in a
    program that must be deterministic (https://github.com/openxla/xla/pull/46500, third defect). The number makes
    the calls differ, by a part of the scale that float32 rounds away.
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
    """Return whether `fused_attend` runs on this device and gives the numbers and gradients of `attend`.

    The first call tries it on two small layers, with the train step's compiler options.
    """
    if jax.default_backend() != "gpu":
        return False
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
        difference = np.abs(np.asarray(fused) - np.asarray(output_and_gradients(plain))).max()  # NumPy's max shows NaN
        reason = "" if difference < 0.05 else f"it is {difference:.2g} off"
    except Exception as error:  # whatever JAX's checks, cuDNN and XLA raise: training continues without it
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    if reason:
        say(f"note: cuDNN's attention is not used, so training is slower ({reason})", error=True)
    return not reason
