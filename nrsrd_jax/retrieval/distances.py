"""Distances between features, on the device, one block of queries at a time.

Q queries, G gallery images, N features, D feature width, B queries of a block.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from ..sharding import make_mesh, over_data, replicated

# How many features are scaled at once. A small number saves memory.
ROWS = 2**10
# A function from the indices of some queries [B] to their distances [B, G].
Distances = Callable[[np.ndarray], jax.Array | np.ndarray]


def squared_distances(query: np.ndarray, gallery: np.ndarray, mesh: Mesh | None = None) -> Distances:
    """Return a function that computes squared Euclidean distances of features, one block of queries at a time.

    distance = ‖q/‖q‖ − g/‖g‖‖² = 2 − 2·cos(q, g), in 0..4

    The gallery stays on the devices, and a block is split over them.

    Args:
        query: features of the queries [Q, D], of any length; they are scaled to length 1.
        gallery: features of the gallery images [G, D].
        mesh: the devices to use; None for all.

    Returns:
        A function from the indices of some queries [B] to their distances [B, G], float64. Rounding may put a distance
        slightly below 0.

    Raises:
        ValueError: a feature is not finite, or the widths differ.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.distances import squared_distances
        >>> distances = squared_distances(np.array([[3.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
        >>> (np.asarray(distances(np.array([0]))).round(4) + 0.0).tolist()
        [[0.0, 2.0, 4.0]]
    """
    query, gallery, _ = centred_rows(query, gallery)
    return distances_of(query, gallery, mesh or make_mesh())


def centred_rows(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale features [Q, D] and [G, D] to length 1 and subtract the gallery's mean, which changes no distance.

    Features of a network may be nearly parallel. Without their common part, products lose less precision by rounding.

    Returns:
        The query features, the gallery features and the mean [D], in float64.

    Raises:
        ValueError: a feature is not finite, or the widths differ.
    """
    if np.shape(query)[1:] != np.shape(gallery)[1:]:
        raise ValueError(
            f"features must be rows of one width: queries are {np.shape(query)}, the gallery {np.shape(gallery)}"
        )
    mean = unit_rows(gallery).mean(0) if len(gallery) else np.zeros(np.shape(gallery)[1:])
    return unit_rows(query, mean), unit_rows(gallery, mean), mean


def unit_rows(features: np.ndarray, minus: np.ndarray | float = 0.0) -> np.ndarray:
    """Scale features [N, D] to length 1, then subtract a vector `minus` [D]. Rows of zeros are not scaled.

    Returns:
        The result in float64, [N, D].

    Raises:
        ValueError: the features are not rows of real numbers, or a feature is not finite.
    """
    features = unmasked(features, "features")
    if not np.can_cast(features.dtype, np.float64):
        raise ValueError(f"features are of type {features.dtype}; they must be real numbers that fit float64")
    if features.ndim != 2:
        raise ValueError(f"features are {features.shape}; they must be rows [N, D]")
    result = np.empty(features.shape)
    broken = 0
    for start in range(0, len(features), ROWS):
        rows = features[start : start + ROWS].astype(np.float64)
        # Divide by the largest value first, because squares of very large or small values do not fit in float64.
        largest = np.abs(rows).max(1, initial=0, keepdims=True)
        broken += int(np.sum(~np.isfinite(largest)))
        if broken:
            continue
        rows /= np.where(largest > 0, largest, 1)
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        rows /= np.where(lengths > 0, lengths, 1)
        rows -= minus
        result[start : start + ROWS] = rows
    if broken:
        raise ValueError(f"{broken} of {len(features)} features are not finite")
    return result


def distances_of(query: np.ndarray, gallery: np.ndarray, mesh: Mesh) -> Distances:
    """Return the function that `squared_distances` returns, for features from `centred_rows`."""
    squares, gallery_squares = (np.einsum("nd,nd->n", rows, rows) for rows in (query, gallery))
    with jax.enable_x64(True):
        of_gallery = jax.device_put((gallery, gallery_squares), replicated(mesh))
    devices = mesh.shape["data"]

    def distances(rows: np.ndarray) -> jax.Array:
        count = len(rows)
        # Repeat rows until the devices have equal shares of the block.
        if count % devices:
            rows = np.resize(rows, -(-count // devices) * devices)
        with jax.enable_x64(True):
            result = _squared_distances(*jax.device_put((query[rows], squares[rows]), over_data(mesh)), *of_gallery)
            return result if len(rows) == count else result[:count]

    return distances


@jax.jit
def _squared_distances(query: jax.Array, squares: jax.Array, gallery: jax.Array, g_squares: jax.Array) -> jax.Array:
    # The values are float64: float32 is too coarse for small differences if features form groups that are far apart.
    # The squares are computed beforehand because XLA for CPU would fuse their sum and repeat it for every distance.
    return squares[:, None] + g_squares - 2 * (query @ gallery.T)


def unmasked(values: np.ndarray, name: str) -> np.ndarray:
    if np.ma.isMaskedArray(values):
        raise ValueError(f"{name} are masked arrays; fill the masked values")
    return np.asarray(values)
