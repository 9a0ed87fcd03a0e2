"""Multi-head attention as functions of arrays, with Norm-Ratio Attention (NRA).

B batch, M query tokens, N key tokens, H heads, K head width
"""

import dataclasses

import jax
import jax.numpy as jnp

from ..precision import at_least_float32


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

    It is kept in float32 and subtracted from the logits as they are: where it is used M is 1 (the CLS query of the
    last block), so it costs no bias matrix, and its deviations over the keys, often thousandths, survive bfloat16.
    """
    return strength * k_norm_BHN[:, :, None, :] / (q_norm_BHM[..., None] + epsilon)


def attention_logits(q_BMHK: jax.Array, k_BNHK: jax.Array) -> jax.Array:
    """QKᵀ/√K in float32, [B, H, M, N]."""
    accumulate = jnp.promote_types(q_BMHK.dtype, jnp.float32)
    logits_BHMN = jnp.einsum("BMHK,BNHK->BHMN", q_BMHK, k_BNHK, preferred_element_type=accumulate)
    return logits_BHMN * q_BMHK.shape[-1] ** -0.5


def attend(logits_BHMN: jax.Array, v_BNHK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax over the keys and the weighted sum of values: [B, M, H, K], and the weights [B, H, M, N]."""
    weights_BHMN = jax.nn.softmax(logits_BHMN, axis=-1)
    return jnp.einsum("BHMN,BNHK->BMHK", weights_BHMN.astype(v_BNHK.dtype), v_BNHK), weights_BHMN
