"""Resizing of position embeddings for images of another size, by two rules of the official code of TransReID-SSL.

Both rules keep the row of CLS. The bilinear one serves a checkpoint that starts a model of another image size. The
bicubic one serves the small views of pretraining, in each step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError

# PyTorch's coefficient of the cubic kernel.
CUBIC = -0.75


def resize_position_embedding(position: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Resize a position embedding from one grid of patches to another. The row of CLS does not change.

    The interpolation is bilinear with half-pixel centres and without antialiasing.

    Args:
        position: [1, 1 + h·w, D], CLS first, then the patches row by row.
        source: (h, w), its rows and columns of patches.
        target: (h', w'), the rows and columns of patches of the result.

    Returns:
        [1, 1 + h'·w', D].

    Raises:
        InputError: `position` does not have 1 + h·w rows.

    Source:
        The official code of TransReID-SSL, which uses torch.nn.functional.interpolate(align_corners=False).

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.models.position import resize_position_embedding
        >>> position = np.array([[[9.0], [0.0], [1.0]]], np.float32)
        >>> resize_position_embedding(position, (1, 2), (1, 4)).ravel().round(4).tolist()
        [9.0, 0.0, 0.25, 0.75, 1.0]
    """
    if position.shape[1] != 1 + source[0] * source[1]:
        raise InputError(f"position embedding has {position.shape[1] - 1} patches, not {source[0]}×{source[1]}")

    grid = position[0, 1:].reshape(*source, -1)
    resized = jax.image.resize(grid, (*target, grid.shape[-1]), "bilinear", antialias=False)
    return np.concatenate([position[:, :1], np.asarray(resized).reshape(1, -1, grid.shape[-1])], axis=1)


def resize_bicubic(position: jax.Array, source: tuple[int, int], target: tuple[int, int]) -> jax.Array:
    """Resize a position embedding as the official pretraining does for views of another size.

    The interpolation is bicubic without antialiasing. Its scale is (n' + 0.1) / n, as in the official code.

    Args:
        position: [1, 1 + h·w, D], CLS first, then the patches row by row.
        source: (h, w), its rows and columns of patches.
        target: (h', w'), the rows and columns of patches of the result.

    Returns:
        [1, 1 + h'·w', D]; `position` itself if the grids are equal.

    Source:
        DINO (Caron et al. 2021), https://github.com/facebookresearch/dino, as TransReID-SSL uses it.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.models.position import resize_bicubic
        >>> resize_bicubic(jnp.ones((1, 129, 4)), (16, 8), (8, 4)).shape
        (1, 33, 4)
    """
    if source == target:
        return position
    rows, columns = (
        jnp.asarray(_cubic_matrix(*lengths), position.dtype) for lengths in zip(source, target, strict=True)
    )
    patches = position[0, 1:].reshape(*source, -1)
    # By default, a GPU would round the factors to TF32.
    exact = jax.lax.Precision.HIGHEST
    patches = jnp.einsum("hH,wW,HWd->hwd", rows, columns, patches, precision=exact)
    return jnp.concatenate([position[:, :1], patches.reshape(1, -1, patches.shape[-1])], axis=1)


@functools.cache
def _cubic_matrix(source: int, target: int) -> np.ndarray:
    """Return the weights [target, source] of cubic interpolation. Positions beyond an end take the value at the end."""
    # The official code adds 0.1 so that rounding cannot lose a row: https://github.com/facebookresearch/dino/issues/8.
    place = (np.arange(target) + 0.5) * source / (target + 0.1) - 0.5
    first = np.floor(place).astype(int) - 1
    matrix = np.zeros((target, source))
    for tap in range(4):
        weights = cubic_kernel(np.abs(place - (first + tap)), CUBIC)
        matrix[np.arange(target), np.clip(first + tap, 0, source - 1)] += weights
    return matrix


def cubic_kernel(distance: Any, coefficient: float) -> Any:
    """Return the weights of cubic convolution (Keys 1981) at distances of at least 0, an array of NumPy or JAX."""
    near = ((coefficient + 2) * distance - (coefficient + 3)) * distance**2 + 1
    far = coefficient * (((distance - 5) * distance + 8) * distance - 4)
    return near * (distance <= 1) + far * ((distance > 1) & (distance < 2))
