"""Correct groups of crops by two facts: a track shows one person, and a camera sees a person only once at a time.

It is not enough to remove pairs from the graph: two crops that must not share a group could still be joined through a
third crop. So the groups are built again link by link, and a link that would join such crops is refused.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

# How many links are Python numbers at a time.
BLOCK = 2**16


def constrain(
    graph: sp.csr_array,
    labels: np.ndarray,
    min_size: int,
    tracks: np.ndarray | None = None,
    cameras: np.ndarray | None = None,
    times: np.ndarray | None = None,
    same_time: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join groups that share a track, and split groups in which one camera sees two crops at the same time.

    The crops of each track are joined first. Then the links within the given groups follow, the shortest first. A link
    joins two parts of a group. It is refused if one camera saw a crop of each part at times that differ by at most
    `same_time`. Without tracks and cameras, groups of at least `min_size` crops stay as they are.

    Args:
        graph: distances of pairs, symmetric, sparse [N, N].
        labels: the group of each crop, int [N], −1 for no group; each group is connected in the graph.
        min_size: smaller groups are dissolved.
        tracks: int [N], −1 for no track; None for no tracks.
        cameras: int [N], −1 if unknown; None if all are unknown.
        times: datetime64 [N], NaT if unknown; None if all are unknown.
        same_time: seconds, at least 0.

    Returns:
        The new group of each crop, int [N], −1 for no group, numbered from 0 in the order of their first crops; the
        distance of each group's weakest link [G], which is the last link that was added; and the two crops of this
        link, int [G, 2].

    Example:
        >>> import numpy as np, scipy.sparse as sp
        >>> from nrsrd_jax.retrieval.linking import constrain
        >>> graph = sp.csr_array([[0, 0.1, 0], [0.1, 0, 0.2], [0, 0.2, 0]])
        >>> one_group, camera = np.array([0, 0, 0]), np.array([1, 1, 1])
        >>> times = np.array(["2026-01-01T00:00", "2026-01-01T01:00", "2026-01-01T00:00"], "datetime64[us]")
        >>> constrain(graph, one_group, 2, cameras=camera, times=times)[0].tolist()
        [0, 0, -1]
    """
    count = len(labels)
    parent = list(range(count))
    seen: dict[int, dict[int, list[int]]] = {}
    if cameras is not None and times is not None:
        crops = contested(cameras, times, same_time)
        places = zip(crops.tolist(), cameras[crops].tolist(), _microseconds(times)[crops].tolist(), strict=True)
        # The times of each part, by camera. Only contested crops can cause a refusal, so the others are left out.
        seen = {crop: {camera: [time]} for crop, camera, time in places}
    # Whole microseconds are compared exactly; seconds since 1970 as floats are not.
    tolerance = round(same_time * 1e6)
    weakest: dict[int, tuple[float, int, int]] = {}

    def root(crop: int) -> int:
        while parent[crop] != crop:
            # Halve the path to the root, which keeps later searches short.
            parent[crop] = crop = parent[parent[crop]]
        return crop

    def join(distance: float, left: int, right: int, checked: bool) -> None:
        a, b = root(left), root(right)
        if a == b or (checked and _meet(seen.get(a), seen.get(b), tolerance)):
            return
        parent[b] = a
        weakest.pop(b, None)
        weakest[a] = (distance, left, right)
        if b in seen:
            _absorb(seen.setdefault(a, {}), seen.pop(b))

    if tracks is not None:
        order = np.argsort(tracks, kind="stable")
        order = order[tracks[order] >= 0]
        same = tracks[order[:-1]] == tracks[order[1:]]
        for left, right in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
            join(0.0, left, right, checked=False)
    for distance, left, right in _links(graph, labels):
        join(distance, left, right, checked=True)

    roots = np.array([root(crop) for crop in range(count)], int)
    _, first, inverse, sizes = np.unique(roots, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    order = order[sizes[order] >= min_size]
    numbers = np.full(len(first), -1)
    numbers[order] = np.arange(len(order))
    links = [weakest[int(roots[first[number]])] for number in order]
    doubt = np.array([distance for distance, _, _ in links], np.float32)
    return numbers[inverse], doubt, np.array([link[1:] for link in links], int).reshape(-1, 2)


def _links(graph: sp.csr_array, labels: np.ndarray) -> Iterator[tuple[float, int, int]]:
    """Yield the distance and the two crops of each pair within a group, by rising distance."""
    pairs = graph.tocoo()
    kept = (pairs.row < pairs.col) & (labels[pairs.row] == labels[pairs.col]) & (labels[pairs.row] >= 0)
    columns = pairs.data[kept], pairs.row[kept], pairs.col[kept]
    # Pairs of equal distance are sorted by their crops, so that groups do not depend on the order in the graph.
    order = np.lexsort(columns[::-1])
    # Python numbers take five times the memory of NumPy's, so only BLOCK links are converted at a time.
    for start in range(0, len(order), BLOCK):
        yield from zip(*(column[order[start : start + BLOCK]].tolist() for column in columns), strict=True)


def contested(cameras: np.ndarray, times: np.ndarray, same_time: float) -> np.ndarray:
    """Return the indices of crops whose camera has another crop at a time that differs by at most `same_time`.

    Args:
        cameras: int [N], −1 if unknown.
        times: datetime64 [N], NaT if unknown.
        same_time: seconds, at least 0.

    Returns:
        Indices, int, sorted by camera and then by time.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.linking import contested
        >>> times = np.array(["2026-01-01T00:00:00", "2026-01-01T00:00:01", "NaT"], "datetime64[us]")
        >>> contested(np.array([1, 1, 1]), times, 1.0).tolist(), contested(np.array([1, 1, 1]), times, 0.5).tolist()
        ([0, 1], [])
    """
    known = np.flatnonzero((cameras >= 0) & ~np.isnat(times))
    if not len(known):
        return known
    moments = _microseconds(times)
    order = known[np.lexsort((moments[known], cameras[known]))]
    close = (np.diff(cameras[order]) == 0) & (np.diff(moments[order]) <= round(same_time * 1e6))
    return order[np.r_[close, False] | np.r_[False, close]]


def _microseconds(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[us]").astype(np.int64)


def _meet(left: dict[int, list[int]] | None, right: dict[int, list[int]] | None, tolerance: int) -> bool:
    """Return whether a camera saw both parts at times that differ by at most `tolerance` microseconds."""
    if not left or not right:
        return False
    for camera in left.keys() & right.keys():
        fewer, more = sorted((left[camera], right[camera]), key=len)
        for time in fewer:
            place = bisect_left(more, time - tolerance)
            if place < len(more) and more[place] <= time + tolerance:
                return True
    return False


def _absorb(part: dict[int, list[int]], other: dict[int, list[int]]) -> None:
    """Add the cameras and times of `other` to those of `part`, in order."""
    for camera, times in other.items():
        # Insert the fewer times into the more, so that a large part is not inserted into a single crop's.
        fewer, part[camera] = sorted((part.get(camera, []), times), key=len)
        for time in fewer:
            insort(part[camera], time)
