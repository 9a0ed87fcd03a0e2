"""What a report shows of a ranking: the top of each query's list, and the distribution of the distances of pairs.

Q queries, G gallery images, B queries of a block, K entries of a list. A genuine pair shows one identity, an impostor
pair two. The protocol leaves out gallery images of the query's identity and view, so their pairs are neither.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..retrieval.distances import Distances
from ..retrieval.ranking import QUERY_BLOCK

RIGHT, WRONG, LEFT_OUT = "right", "wrong", "left out"
# The most images in a list that the protocol leaves out.
LEFT_OUT_SHOWN = 5
# The most pairs of a block.
BLOCK_PAIRS = 2**24
MANTISSA_BITS = 13
# Distances in a bin differ only in this many last bits of a float32.
SHIFT = 23 - MANTISSA_BITS
# All distances below SMALLEST share the first bin, and all above LARGEST the last bin.
SMALLEST, LARGEST = np.float32(2.0**-20), np.float32(2.0**3)
# The largest relative width of a bin.
RESOLUTION = 2.0**-MANTISSA_BITS


@dataclasses.dataclass(frozen=True)
class RankedList:
    """The gallery images that come first for one query, nearest first. The list always holds the nearest match.

    Attributes:
        gallery: the indices of the images, int [K].
        distance: their distances to the query [K].
        outcome: RIGHT, WRONG or LEFT_OUT for each image [K].
        rank: the rank of each image, from 1, int [K]; 0 for an image that the protocol leaves out.
        hidden: how many more left-out images are as near, but are not listed.
    """

    gallery: np.ndarray
    distance: np.ndarray
    outcome: list[str]
    rank: np.ndarray
    hidden: int


def ranked_list(distances: np.ndarray, genuine: np.ndarray, left_out: np.ndarray, top: int = 10) -> RankedList:
    """List the `top` nearest images that count, the first 5 left-out images among them, and the nearest match.

    If distances are equal, the earlier gallery image comes first, as in the metrics.

    Args:
        distances: the query's distances to the gallery [G].
        genuine: which gallery images are matches, bool [G].
        left_out: which gallery images the protocol leaves out, bool [G].
        top: how many images that count are listed.
    """
    counted = np.where(left_out, np.inf, distances)
    last = np.partition(counted, top - 1)[top - 1] if top <= len(counted) else np.inf
    # All images that may be listed, in the gallery's order, so that the stable sort keeps equal ones in order.
    near = np.flatnonzero(distances <= last)
    near = near[np.argsort(distances[near], kind="stable")]
    rank = np.cumsum(~left_out[near])
    near = near[: np.searchsorted(rank, top) + 1]
    rank = np.where(left_out[near], 0, rank[: len(near)])
    hidden = left_out[near] & (np.cumsum(left_out[near]) > LEFT_OUT_SHOWN)
    shown, rank = near[~hidden], rank[~hidden]
    if genuine.any() and not genuine[shown].any():
        match = int(np.argmin(np.where(genuine, distances, np.inf)))
        nearer = (counted < distances[match]).sum() + (counted[:match] == distances[match]).sum()
        shown, rank = np.append(shown, match), np.append(rank, nearer + 1)
    outcome = [LEFT_OUT if left_out[i] else RIGHT if genuine[i] else WRONG for i in shown]
    return RankedList(shown, distances[shown], outcome, rank, int(hidden.sum()))


class Pairs:
    """The numbers of genuine and of impostor pairs by distance, in bins of relative width RESOLUTION."""

    def __init__(self):
        bins = int(_bin(LARGEST)) + 1
        self.genuine, self.impostor = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        self.lowest, self.highest = np.inf, -np.inf

    def add(self, distances: np.ndarray, genuine: np.ndarray, left_out: np.ndarray) -> None:
        """Count pairs [B, G]. `genuine` and `left_out` are masks."""
        bins = _bin(distances)
        everything, matches, junk = (
            np.bincount(x, minlength=len(self.genuine)) for x in (bins.ravel(), bins[genuine], bins[left_out])
        )
        self.genuine += matches
        self.impostor += everything - matches - junk
        self.lowest = min(self.lowest, float(distances.min()))
        self.highest = max(self.highest, float(distances.max()))

    def threshold(self, one_in: int) -> tuple[float, float, float]:
        """Return the largest threshold with a false-match rate of at most 1/one_in, and the rates at it.

        The threshold is the lower edge of a bin, so the rates are exact. It is too small by at most RESOLUTION
        (relative) or SMALLEST.

        Returns:
            The threshold of the distance, the false-match rate and the true-match rate, NaN without genuine pairs.
        """
        impostors, genuine = np.cumsum(self.impostor), self.genuine.sum()
        first_beyond = int(np.searchsorted(impostors, impostors[-1] // one_in, side="right"))
        accepted = [counts[:first_beyond].sum() for counts in (self.impostor, self.genuine)]
        true_rate = accepted[1] / genuine if genuine else np.nan
        return _lower_edge(first_beyond), float(accepted[0] / impostors[-1]), float(true_rate)

    def rates(self) -> list[int]:
        """Return the false-match rates for which there are enough impostor pairs: 10 for 1 in 10, then 100, …"""
        return [10**power for power in range(1, len(str(self.impostor.sum())))]

    def bars(self, count: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return edges [count + 1] of equal steps over all distances, and how many pairs are between them.

        Args:
            count: the number of steps.

        Returns:
            The edges; the numbers of genuine pairs and of impostor pairs, int [count] each.
        """
        edges = np.linspace(min(self.lowest, 0.0), self.highest, count + 1)
        used = np.flatnonzero(self.genuine + self.impostor)
        bar = np.clip(
            np.searchsorted(edges, [_lower_edge(number) for number in used.tolist()], side="right") - 1, 0, count - 1
        )
        genuine, impostor = (np.bincount(bar, counts[used], count) for counts in (self.genuine, self.impostor))
        return edges, genuine.astype(np.int64), impostor.astype(np.int64)


def _bin(distances: np.ndarray | np.float32) -> np.ndarray:
    """Return the bin of each distance: the first bits of its float32, so that no range must be chosen beforehand."""
    bits = np.clip(np.asarray(distances, np.float32), SMALLEST, LARGEST).view(np.int32)
    return (bits >> SHIFT) - (SMALLEST.view(np.int32) >> SHIFT)


def _lower_edge(number: int) -> float:
    """Return the lower edge of a bin; 0 for the first bin, which also holds all smaller distances."""
    bits = np.int32((number << SHIFT) + int(SMALLEST.view(np.int32)))
    return float(bits.view(np.float32)) if number else 0.0


def read_ranking(
    distances: Distances,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_views: np.ndarray,
    gallery_views: np.ndarray,
    top: int = 10,
) -> tuple[list[RankedList], Pairs]:
    """Return the list of every query and the counts of all pairs, reading one block of distances at a time.

    Args:
        distances: a function from the indices of some queries [B] to their distances [B, G].
        query_ids, gallery_ids: the identities [Q] and [G].
        query_views, gallery_views: the views [Q] and [G].
        top: as in `ranked_list`.
    """
    pairs, lists = Pairs(), []
    for rows, block in _blocks(distances, len(query_ids), len(gallery_ids)):
        same = query_ids[rows, None] == gallery_ids
        left_out = same & (query_views[rows, None] == gallery_views)
        genuine = same & ~left_out
        pairs.add(block, genuine, left_out)
        lists += [ranked_list(*row, top=top) for row in zip(block, genuine, left_out, strict=True)]
    return lists, pairs


def _blocks(distances: Distances, queries: int, gallery: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of queries [B] and their distances [B, G]. All calls have one shape, to compile only once."""
    size = max(1, min(QUERY_BLOCK, queries, BLOCK_PAIRS // gallery))
    for start in range(0, queries, size):
        rows = np.arange(start, min(start + size, queries))
        yield rows, np.asarray(distances(np.resize(rows, size)))[: len(rows)]
