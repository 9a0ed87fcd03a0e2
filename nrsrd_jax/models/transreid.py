"""TransReID's additions to a ViT: local features of shuffled patches (JPM), and a learned vector per camera (SIE).

Source: He et al. 2021, "TransReID", and its official code, https://github.com/damo-cv/TransReID.
"""

import jax
import jax.numpy as jnp
import numpy as np

PARTS = 4
# The official option is 5 because it counts the CLS token.
SHIFT = 4
GROUPS = 2
# The weights of the parts' losses: half for the global feature, half for the mean over the local features.
LOSS_WEIGHTS = (0.5, *[0.5 / PARTS] * PARTS)
# The factor of the cameras' vectors in the official configs, which call it SIE_COE.
SIE_FACTOR = 3.0
# The factors of the parts in the features of the official test.
TEST_FACTORS = (1.0, *[1 / PARTS] * PARTS)


def shuffled(count: int) -> np.ndarray:
    """Return the order in which JPM takes patches: shifted by four, then alternately from the two halves.

    Args:
        count: the number of patches.

    Returns:
        The indices of the patches. If `count` is odd, there is one index more: the second-to-last patch of the shifted
        order is repeated at its end, so that the two halves are equally long.

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
        tokens: [B, 1 + N, D], CLS first. N is at least 4. If it is not a multiple of 4, the last patches of the
            shuffled order are dropped.

    Returns:
        [B·4, 1 + N // 4, D], with the four parts of an image in succession.
    """
    batch, count, width = tokens.shape
    length = (count - 1) // PARTS
    patches = tokens[:, 1 + shuffled(count - 1)[: PARTS * length]].reshape(batch, PARTS, length, width)
    cls = jnp.broadcast_to(tokens[:, None, :1], (batch, PARTS, 1, width))
    return jnp.concatenate([cls, patches], axis=2).reshape(batch * PARTS, 1 + length, width)


def add_cameras(tokens: jax.Array, table: jax.Array, cameras: jax.Array | None, factor: float) -> jax.Array:
    """Add `factor` times the vector of an image's camera to all tokens of the image.

    Args:
        tokens: [B, N, D].
        table: the vector of each camera, [C, 1, D].
        cameras: the row [B] of each image's camera in the table; −1 for an unknown camera, for which nothing is added;
            None if all are unknown.
        factor: the official configs call it SIE_COE.

    Returns:
        [B, N, D], of the type of `tokens`.
    """
    if cameras is None:
        return tokens
    # Row −1 would be the last camera's; `where` replaces it, so that its vector gets no gradient either.
    known = (cameras >= 0)[:, None, None]
    return tokens + (factor * jnp.where(known, table[cameras], 0)).astype(tokens.dtype)


def torch_name(name: str, depth: int) -> str:
    """Return the official name in a model with JPM of a tensor that a plain ViT of `depth` blocks calls `name`.

    With JPM, `b1` is the last block with its LayerNorm, and `b2` is the block and LayerNorm of the local features.
    """
    branches = {f"base.blocks.{depth - 1}.": "b1.0.", "base.norm.": "b1.1."}
    branches |= {"base.local_block.": "b2.0.", "base.local_norm.": "b2.1."}
    for own, theirs in branches.items():
        name = name.replace(own, theirs)
    return name
