"""Count the similarities of genuine and impostor pairs, block by block, and compute error rates at a threshold.

Q and G crops on the two sides of the pairs, B crops of a block, P people, K thresholds, A attributes (such as cameras).
A genuine pair shows one person, an impostor pair two. A pair of one person and one view is left out. As in the test
protocols, the view is the camera, or the crop itself, so that no crop is compared with itself. Similarities are cosines
in −1..1, counted in bins of width RESOLUTION. The edges of the bins are exact numbers, so the rates at a threshold on
an edge are exact too.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student
from tqdm import tqdm

from .distances import unit_rows

# Bins are far wider than the rounding of float32 (2**-24 near 1), and 2**18 counts take only 2 MB.
BITS = 17
RESOLUTION = 2.0**-BITS
# The last bin holds the similarity 1 alone.
BINS = 2 ** (BITS + 1) + 1
# With this many pairs at a time the intermediate arrays take around 100 MB.
BLOCK_PAIRS = 2**22


@dataclasses.dataclass(frozen=True)
class Crops:
    """One side of the pairs.

    Attributes:
        features: [N, D] of length 1, float32.
        people: int [N], the same numbers on both sides.
        views: int [N].
    """

    features: np.ndarray
    people: np.ndarray
    views: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, people: np.ndarray, views: np.ndarray) -> "Crops":
        """Scale features of any length to length 1. Raises ValueError if one is not finite."""
        return cls(unit_rows(features).astype(np.float32), people, views)

    def __len__(self) -> int:
        return len(self.people)

    def subset(self, rows: np.ndarray) -> "Crops":
        """Return the crops that `rows`, indices or a mask, selects."""
        return Crops(self.features[rows], self.people[rows], self.views[rows])


@dataclasses.dataclass(frozen=True)
class Block:
    """The pairs of some query crops with all gallery crops.

    Attributes:
        rows: the consecutive indices of the query crops [B].
        similarity: float32 [B, G].
        genuine, left_out: masks [B, G]; the other pairs are impostors.
    """

    rows: slice
    similarity: np.ndarray
    genuine: np.ndarray
    left_out: np.ndarray


def blocks(query: Crops, gallery: Crops, title: str = "") -> Iterator[Block]:
    """Yield all pairs, at most BLOCK_PAIRS at a time but at least one row. A `title` shows a progress bar."""
    size = max(1, BLOCK_PAIRS // max(1, len(gallery)))
    starts = range(0, len(query), size)
    for start in tqdm(starts, title, unit="block", leave=False, disable=None if title else True):
        rows = slice(start, min(start + size, len(query)))
        similarity = query.features[rows] @ gallery.features.T
        same = query.people[rows, None] == gallery.people
        left_out = same & (query.views[rows, None] == gallery.views)
        yield Block(rows, similarity, same & ~left_out, left_out)


def bin_of(similarity: np.ndarray) -> np.ndarray:
    """Return the bin of each similarity. Scaling by a power of two is exact, so no value crosses an edge."""
    return np.floor(np.clip(similarity, -1, 1) * 2**BITS).astype(np.int64) + 2**BITS


def edge(number: int) -> float:
    """Return the lower edge of a bin. A pair is in this bin or a higher one if its similarity reaches the edge."""
    return number * RESOLUTION - 1


@dataclasses.dataclass
class Histograms:
    """The numbers of genuine and of impostor pairs with a similarity in each bin, [BINS] each."""

    genuine: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))
    impostor: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, block: Block) -> None:
        """Count the pairs of a block."""
        bins = bin_of(block.similarity)
        genuine, left_out = (np.bincount(bins[mask], minlength=BINS) for mask in (block.genuine, block.left_out))
        self.genuine += genuine
        self.impostor += np.bincount(bins.ravel(), minlength=BINS) - genuine - left_out

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the false-match and the false-non-match rate at each bin's edge as the threshold, [BINS] each.

        A rate without any pair is NaN.
        """
        with np.errstate(invalid="ignore"):
            false_match = self.impostor[::-1].cumsum()[::-1] / self.impostor.sum()
            false_non_match = (self.genuine.cumsum() - self.genuine) / self.genuine.sum()
        return false_match, false_non_match

    def threshold(self, rate: float) -> int:
        """Return the lowest bin with a false-match rate of at most `rate` at its edge; BINS if no bin has that."""
        # `searchsorted` needs rising numbers, and these rates fall.
        return int(np.searchsorted(-self.rates()[0], -rate))


def people_needed(rate: float) -> int:
    """Return how many people it takes to measure a false-match rate.

    By the rule of three, n independent comparisons without an error show, with 95 % confidence, a rate of at most 3/n.
    Pairs of people count as independent comparisons, however many crops show them: P·(P − 1)/2 ≥ 3/rate. This is a
    lower limit: if some people resemble many others, the pairs are not independent, and the interval is wider.

    Args:
        rate: the false-match rate, above 0 and at most 1.

    Returns:
        The number of people, at most 10¹⁵.

    Source:
        Mansfield and Wayman 2002, "Best practices in testing and reporting performance of biometric devices", appendix
        B, and ISO/IEC 19795-1: the rule of three.

    Example:
        >>> from nrsrd_jax.retrieval.pairs import people_needed
        >>> people_needed(0.01), people_needed(1e-4)
        (25, 246)
    """
    # The small number keeps rounding from adding a person where the root is a whole number.
    return math.ceil(min((1 + math.sqrt(1 + 24 / rate)) / 2 - 1e-9, 1e15))


def interval(rate: float, without: np.ndarray, units: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate by the delete-one-person jackknife, on the scale of its log-odds.

    variance = (n − 1)/n · Σ_i (r_i − mean)², where r_i is the rate without person i. The interval of a rate of 0 ends
    at 3 / `units`, and that of a rate of 1 begins at 1 − 3 / `units`, by the rule of three.

    Args:
        rate: the rate measured with all people, in 0..1.
        without: the rate without each person in turn, [n].
        units: the number of independent comparisons, for the rule of three.

    Returns:
        The lower and upper end.

    Source:
        Arvesen 1969, "Jackknifing U-statistics": the jackknife also holds for rates over pairs of people, because each
        person is left out of both sides.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.pairs import interval
        >>> errors = np.array([0, 1] * 20)
        >>> low, high = interval(0.5, (errors.sum() - errors) / 39, 40)
        >>> print(f"{low:.3f} to {high:.3f}")
        0.343 to 0.657
        >>> interval(0.0, np.zeros(40), 40)
        (0.0, 0.075)
    """
    if rate in (0, 1):
        margin = min(1.0, 3 / units)
        return (0.0, margin) if rate == 0 else (1 - margin, 1.0)
    count = len(without)
    if count < 2:
        return 0.0, 1.0
    error = math.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    half = student.ppf(0.975, count - 1) * error / (rate * (1 - rate))
    low, high = expit([logit(rate) - half, logit(rate) + half])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class PersonCounts:
    """How many pairs of each person reach each threshold. A pair of two people counts for both.

    Attributes:
        hits: the pairs that reach each threshold, int [P, K].
        pairs: all pairs of each person, int [P].
        sides: 1 for genuine pairs; 2 for impostor pairs, because each of these is counted for two people.
    """

    hits: np.ndarray
    pairs: np.ndarray
    sides: int

    @property
    def people(self) -> int:
        """Return how many people have pairs."""
        return int((self.pairs > 0).sum())

    def rate(self, k: int, missed: bool = False) -> tuple[float, float, float] | None:
        """Return the share of pairs that reach threshold k (or do not, if `missed`) and its interval; or None."""
        hits = (self.pairs - self.hits[:, k] if missed else self.hits[:, k])[self.pairs > 0]
        pairs = self.pairs[self.pairs > 0]
        if not len(pairs):
            return None
        # An impostor pair counts for two people, so without a person both of its counts are missing.
        rest = pairs.sum() - self.sides * pairs
        without = ((hits.sum() - self.sides * hits) / np.maximum(rest, 1))[rest > 0]
        units = len(pairs) * (len(pairs) - 1) // 2 if self.sides == 2 else len(pairs)
        return (rate := float(hits.sum() / pairs.sum())), *interval(rate, without, units)


def count_by_person(
    crops: Crops, people: int, thresholds: Sequence[int], attributes: np.ndarray, groupings: Sequence[np.ndarray]
) -> list[list[tuple[PersonCounts, PersonCounts]]]:
    """Count the pairs of crops that reach each threshold, by person and by group of pairs.

    Args:
        crops: crops of people 0..P−1.
        people: P.
        thresholds: bins [K], ascending.
        attributes: the attribute of each crop, 0..A−1 [N].
        groupings: each maps the two attributes of a pair to the pair's group, 0..g−1; int [A, A], symmetric.

    Returns:
        For each grouping, and each of its groups, the counts of genuine and of impostor pairs.
    """
    levels = len(thresholds) + 1
    # Pairs that must not count get a level of their own, which `_counted` leaves out.
    nothing, width = levels, levels + 1
    level_of = np.searchsorted(thresholds, np.arange(BINS), side="right")
    kinds = len(groupings[0])
    columns = attributes * width
    counts = [np.zeros((2, grouping.max() + 1, people, width), np.int64) for grouping in groupings]
    for block in blocks(crops, crops, "counting pairs"):
        level = level_of[bin_of(block.similarity)]
        # A single number holds the row, the attribute and the level of a pair, so that one call of bincount counts all.
        rows = np.arange(len(level))[:, None] * kinds * width
        shape = len(level), kinds, width
        genuine = np.bincount((level + columns + rows)[block.genuine], minlength=math.prod(shape)).reshape(shape)
        level[block.genuine | block.left_out] = nothing
        level += columns + rows
        impostor = np.bincount(level.ravel(), minlength=math.prod(shape)).reshape(shape)
        whose, of_row = crops.people[block.rows, None], attributes[block.rows]
        for grouping, total in zip(groupings, counts, strict=True):
            for kind, table in enumerate((genuine, impostor)):
                np.add.at(total[kind], (grouping[of_row], whose), table)
    return [[(_counted(g, 1), _counted(i, 2)) for g, i in zip(*total, strict=True)] for total in counts]


def _counted(table: np.ndarray, sides: int) -> PersonCounts:
    """Turn counts by the number of thresholds reached into counts of pairs that reach each threshold.

    Args:
        table: the counts [P, K + 2]. The last column counts pairs that are left out or of the other kind.
        sides: as in PersonCounts.
    """
    counted = table[:, :-1]
    return PersonCounts(counted[:, ::-1].cumsum(1)[:, ::-1][:, 1:], counted.sum(1), sides)
