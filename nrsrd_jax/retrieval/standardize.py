"""Normalise features at test time, relative to the test images of the same camera or of about the same brightness.

Q queries, G gallery images, D feature width. The normalisation uses the whole test set, so its numbers are
transductive.
"""

import numpy as np

# A group with fewer images has no reliable deviation, so it takes the statistics of all images.
SMALLEST = 8
BRIGHTNESS_GROUPS = 4
# How many numbers of each feature are standardised at once.
NUMBERS = 32


def standardize_groups(
    query: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Subtract from each feature the mean of its group, and divide it by the deviation of its group.

    f ← (f − mean_g)/deviation_g for each number of the feature, over the queries and gallery images of group g. A
    number that is constant within the group becomes 0. A group of fewer than 8 images takes the mean and deviation of
    all images.

    Args:
        query: features [Q, D].
        gallery: features [G, D].
        query_groups: the group of each query [Q], such as its camera.
        gallery_groups: the group of each gallery image [G].

    Returns:
        The new query and gallery features, float32.

    Source:
        Zhuang et al. 2020, "Rethinking the distribution gap of person re-identification with camera-based batch
        normalization"; here at test time only.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval import standardize_groups
        >>> gallery = np.array([[1.0], [3.0]] * 4 + [[11.0], [13.0]] * 4)
        >>> cameras = np.repeat([1, 2], 8)
        >>> new, _ = standardize_groups(gallery, gallery[:0], cameras, cameras[:0])
        >>> new.round(4)[[0, 1, 8, 9], 0].tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """
    _, groups = np.unique(np.concatenate([query_groups, gallery_groups]), return_inverse=True)
    large = np.flatnonzero(np.bincount(groups) >= SMALLEST)
    result = np.empty((len(query) + len(gallery), query.shape[1]), np.float32)
    # Each number of a feature is standardised by itself. A few at a time keep the float64 copies small.
    for start in range(0, query.shape[1], NUMBERS):
        part = slice(start, start + NUMBERS)
        features = np.concatenate([query[:, part], gallery[:, part]]).astype(np.float64)
        standardized = _standardize(features)
        for group in large:
            rows = groups == group
            standardized[rows] = _standardize(features[rows])
        result[:, part] = standardized
    return result[: len(query)], result[len(query) :]


def _standardize(features: np.ndarray) -> np.ndarray:
    """Return features [N, D] with mean 0 and deviation 1 in each number that varies, and 0 in the others."""
    if not len(features):
        return features
    mean, deviation = features.mean(0), features.std(0)
    # By rounding, the deviation of equal numbers may be slightly above 0.
    varies = deviation > 1e-7 * np.abs(mean)
    return np.where(varies, (features - mean) / np.where(varies, deviation, 1), 0)


def brightness_groups(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split images by their mean luminance into four groups of about equal size.

    Args:
        query: the mean luminance of each query [Q], in 0..1.
        gallery: the mean luminance of each gallery image [G], in 0..1.

    Returns:
        The group of each query [Q] and gallery image [G], integers in 0..3.
    """
    groups, _ = quantile_groups(np.concatenate([query, gallery]))
    return groups[: len(query)], groups[len(query) :]


def quantile_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split images by a value of each, such as its mean luminance, into four groups of about equal size.

    The values are rounded to float32, as in a stored gallery of crops, so that a search makes the same groups as an
    evaluation.

    Args:
        values: [N], finite.

    Returns:
        The group of each image [N], integers in 0..3, and the ends of the groups [5], ascending.
    """
    values = values.astype(np.float32).astype(np.float64)
    edges = np.quantile(values, np.linspace(0, 1, BRIGHTNESS_GROUPS + 1))
    return np.searchsorted(edges[1:-1], values, side="right"), edges
