"""What a report shows of a ranking: the top of each query's list, and how the distances of pairs are distributed.

Q queries, G gallery images, B queries of a block, K entries of a list. A genuine pair shows one identity, an impostor
pair two; gallery images of the query's identity and view are left out by the protocol, and are neither.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..retrieval.ranking import QUERY_BLOCK, Distances

RIGHT, WRONG, LEFT_OUT = "right", "wrong", "left out"
LEFT_OUT_SHOWN = 5  # in a list, at most
BLOCK_PAIRS = 2**24  # of a block, so many at most
MANTISSA_BITS = 13
SHIFT = 23 - MANTISSA_BITS  # bits of a float32 that a bin does not tell apart
SMALLEST, LARGEST = np.float32(2.0**-20), np.float32(2.0**3)  # beyond these all share a bin
RESOLUTION = 2.0**-MANTISSA_BITS  # relative width of a bin, at most


@dataclasses.dataclass(frozen=True)
class RankedList:
    """The gallery images that come first for one query, nearest first, [K] each.

    `gallery` are their indices, `rank` counts from 1 those that are not left out (0 where one is). `hidden` images are
    left out and as near, but not listed. The nearest match ends the list even if many are nearer.
    """

    gallery: np.ndarray
    distance: np.ndarray
    outcome: list[str]
    rank: np.ndarray
    hidden: int


def ranked_list(distances: np.ndarray, genuine: np.ndarray, left_out: np.ndarray, top: int = 10) -> RankedList:
    """The first `top` that count, the first 5 left out among them, and the nearest match; from [G] each.

    Of equal distances the earlier gallery image comes first, as in the metrics.
    """
    counted = np.where(left_out, np.inf, distances)
    last = np.partition(counted, top - 1)[top - 1] if top <= len(counted) else np.inf
    near = np.flatnonzero(distances <= last)  # all that may be listed, in the gallery's order
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
    """How many genuine and impostor pairs are at which distance, in bins of relative width RESOLUTION."""

    def __init__(self):
        bins = int(_bin(LARGEST)) + 1
        self.genuine, self.impostor = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        self.lowest, self.highest = np.inf, -np.inf

    def add(self, distances: np.ndarray, genuine: np.ndarray, left_out: np.ndarray) -> None:
        """Counts pairs [B, G]; `genuine` and `left_out` are masks."""
        bins = _bin(distances)
        everything, matches, junk = (
            np.bincount(x, minlength=len(self.genuine)) for x in (bins.ravel(), bins[genuine], bins[left_out])
        )
        self.genuine += matches
        self.impostor += everything - matches - junk
        self.lowest = min(self.lowest, float(distances.min()))
        self.highest = max(self.highest, float(distances.max()))

    def threshold(self, one_in: int) -> tuple[float, float, float]:
        """(t, false-match rate, true-match rate): the largest t at which one of so many impostors at most is below t.

        t is the lower edge of a bin, so the rates are exact, and t is too small by at most RESOLUTION (relative) or
        SMALLEST. The true-match rate is NaN if there are no genuine pairs.
        """
        impostors, genuine = np.cumsum(self.impostor), self.genuine.sum()
        first_beyond = int(np.searchsorted(impostors, impostors[-1] // one_in, side="right"))
        accepted = [counts[:first_beyond].sum() for counts in (self.impostor, self.genuine)]
        true_rate = accepted[1] / genuine if genuine else np.nan
        return _lower_edge(first_beyond), float(accepted[0] / impostors[-1]), float(true_rate)

    def rates(self) -> list[int]:
        """The false-match rates that so many impostor pairs can tell: 10 stands for 1 in 10, then 100, …"""
        return [10**power for power in range(1, len(str(self.impostor.sum())))]

    def bars(self, count: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges [count + 1] of equal steps over all distances, and the pairs between them, genuine and impostor."""
        edges = np.linspace(min(self.lowest, 0.0), self.highest, count + 1)
        used = np.flatnonzero(self.genuine + self.impostor)
        bar = np.clip(
            np.searchsorted(edges, [_lower_edge(number) for number in used.tolist()], side="right") - 1, 0, count - 1
        )
        genuine, impostor = (np.bincount(bar, counts[used], count) for counts in (self.genuine, self.impostor))
        return edges, genuine.astype(np.int64), impostor.astype(np.int64)


def _bin(distances: np.ndarray | np.float32) -> np.ndarray:
    """A float32's sign, exponent and first bits as a number: bins without a range to be chosen beforehand."""
    bits = np.clip(np.asarray(distances, np.float32), SMALLEST, LARGEST).view(np.int32)
    return (bits >> SHIFT) - (SMALLEST.view(np.int32) >> SHIFT)


def _lower_edge(number: int) -> float:
    """Where a bin begins; of the first, which holds all that is smaller, 0."""
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
    """The list of every query and the counts of all pairs, a block of distances at a time."""
    pairs, lists = Pairs(), []
    for rows, block in _blocks(distances, len(query_ids), len(gallery_ids)):
        same = query_ids[rows, None] == gallery_ids
        left_out = same & (query_views[rows, None] == gallery_views)
        genuine = same & ~left_out
        pairs.add(block, genuine, left_out)
        lists += [ranked_list(*row, top=top) for row in zip(block, genuine, left_out, strict=True)]
    return lists, pairs


def _blocks(distances: Distances, queries: int, gallery: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of queries [B] and their distances [B, G], of one shape: one compile."""
    size = max(1, min(QUERY_BLOCK, queries, BLOCK_PAIRS // gallery))
    for start in range(0, queries, size):
        rows = np.arange(start, min(start + size, queries))
        yield rows, np.asarray(distances(np.resize(rows, size)))[: len(rows)]
