"""The parts of TransReID that a ViT can have: local features of shuffled patches (JPM), and the cameras' vectors (SIE).

Source: He et al. 2021, "TransReID", and its official code, https://github.com/damo-cv/TransReID.
"""

import jax
import jax.numpy as jnp
import numpy as np

PARTS = 4
SHIFT = 4  # The official option says 5, but it counts the CLS token.
GROUPS = 2
SIE_FACTOR = 3.0
# The shares of the losses: half on the global feature, half on the mean of the local ones.
LOSS_WEIGHTS = (0.5, *[0.5 / PARTS] * PARTS)


def shuffled(count: int) -> np.ndarray:
    """Return the order in which JPM takes patches: shifted by four, and then one from each half in turn.

    Args:
        count: the number of patches.

    Returns:
        Their indices. If `count` is odd, the order has one patch more: the second-to-last one of the shifted order
        stands at the end of the second half too.

    Example:
        >>> from nrsrd_jax.models.transreid import shuffled
        >>> shuffled(8).tolist()
        [4, 0, 5, 1, 6, 2, 7, 3]
    """
    order = np.roll(np.arange(count), -SHIFT)
    if count % GROUPS:
        order = np.append(order, order[-2])
    return order.reshape(GROUPS, -1).T.ravel()


def part_tokens(tokens: jax.Array) -> jax.Array:
    """Return the tokens of each part: CLS, and a quarter of the shuffled patches.

    Args:
        tokens: [B, 1 + N, D], CLS first. N is at least 4; patches beyond a multiple of 4 in shuffled order are dropped.

    Returns:
        [B·4, 1 + N // 4, D], the parts of an image one after the other.
    """
    batch, count, width = tokens.shape
    length = (count - 1) // PARTS
    patches = tokens[:, 1 + shuffled(count - 1)[: PARTS * length]].reshape(batch, PARTS, length, width)
    cls = jnp.broadcast_to(tokens[:, None, :1], (batch, PARTS, 1, width))
    return jnp.concatenate([cls, patches], axis=2).reshape(batch * PARTS, 1 + length, width)


def add_cameras(tokens: jax.Array, table: jax.Array, cameras: jax.Array | None) -> jax.Array:
    """Add to all tokens [B, N, D] of an image three times the vector of its camera.

    Args:
        tokens: [B, N, D].
        table: the vectors [C, 1, D].
        cameras: the rank [B] of each image's camera in the table; −1, or None for all, adds nothing.
    """
    if cameras is None:
        return tokens
    known = (cameras >= 0)[:, None, None]
    return tokens + (SIE_FACTOR * jnp.where(known, table[cameras], 0)).astype(tokens.dtype)


def torch_name(name: str, depth: int) -> str:
    """Return the JPM model's name of a tensor that a plain ViT of `depth` blocks calls `name`.

    There `b1` is the last block and LayerNorm, and `b2` those of the local features.
    """
    branches = {f"base.blocks.{depth - 1}.": "b1.0.", "base.norm.": "b1.1."}
    branches |= {"base.local_block.": "b2.0.", "base.local_norm.": "b2.1."}
    for own, theirs in branches.items():
        name = name.replace(own, theirs)
    return name
