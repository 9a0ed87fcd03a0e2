"""Searches of a gallery of N enrolled people: how often a stranger is reported, and how often a person is missed.

n crops, P people, B crops of a block, K thresholds, u other people who could be enrolled. Each person has a template:
the crops of one view (a camera, or a single crop), drawn at random. A person's similarity to a crop is the largest
similarity of the template's crops to it. FPIR(N, T) is the share of searches with a person who is not enrolled that
report anybody, at a similarity of at least T. FNIR(N, R, T) is the share of searches with an enrolled person that do
not report this person among the R most similar people, at a similarity of at least T (ISO/IEC 19795-1).

No galleries are drawn at random. Instead, the mean over all galleries of N of the P people is computed: if m of u
people are similar enough to a crop, a random gallery of N has one of them with probability 1 − C(u − m, N)/C(u, N).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln
from scipy.stats import hypergeom

from .pairs import Crops, blocks, interval

GALLERIES = 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000
TOPS = 1, 5, 10


@dataclasses.dataclass(frozen=True)
class Search:
    """The rates of one kind of search, each in 0..1, with 95 % intervals.

    Attributes:
        gallery_people: N.
        top: R.
        threshold: the index of T.
        fpir, fpir_interval: the measured FPIR and its interval.
        fpir_predicted: 1 − (1 − p)^N, where p is the measured rate at which a stranger reaches one enrolled person.
        fnir, fnir_interval: the measured FNIR and its interval.
        one_person: p.
    """

    gallery_people: int
    top: int
    threshold: int
    fpir: float
    fpir_interval: tuple[float, float]
    fpir_predicted: float
    fnir: float
    fnir_interval: tuple[float, float]
    one_person: float


def predicted_fpir(one_person: float, people: int) -> float:
    """Predict how often a stranger is reported, as if enrolled people were independent: 1 − (1 − p)^N.

    Args:
        one_person: p, how often a stranger reaches one enrolled person, in 0..1.
        people: N, the number of enrolled people.

    Returns:
        The predicted FPIR, in 0..1. If some strangers resemble many people, the true FPIR is lower.

    Example:
        >>> from nrsrd_jax.retrieval.searches import predicted_fpir
        >>> round(predicted_fpir(0.001, 1000), 3)
        0.632
    """
    # log1p and expm1 keep the digits of a small p; the limit avoids log(0).
    return float(-np.expm1(people * np.log1p(-min(one_person, 1 - 1e-16))))


def measure_searches(crops: Crops, people: int, thresholds: Sequence[float], seed: int = 0) -> list[Search]:
    """Measure FPIR and FNIR for galleries of the sizes in GALLERIES, as far as the people permit.

    Args:
        crops: crops of people 0..P−1. Crops of a person's enrolled view are not used to search for that person.
        people: P, at least 3.
        thresholds: similarities [K], on bin edges.
        seed: the seed that draws each person's enrolled view.

    Returns:
        A row for each size, number of candidates R ≤ N, and threshold. Intervals are those of `pairs.interval`: a
        person who is left out is neither searched for nor enrolled.
    """
    rng = np.random.default_rng(seed)
    views = [rng.choice(np.unique(crops.views[crops.people == person])) for person in range(people)]
    enrolled = np.flatnonzero(crops.views == np.array(views)[crops.people])
    enrolled = enrolled[np.argsort(crops.people[enrolled], kind="stable")]
    starts = np.searchsorted(crops.people[enrolled], np.arange(people))
    mated = crops.views != np.array(views)[crops.people]
    # One more person searches, and the jackknife leaves out another.
    sizes = [size for size in GALLERIES if size <= people - 2] or [people - 2]
    kinds = [(size, top) for size in sizes for top in TOPS if top <= size]
    others = people - 1, people - 2
    false = [[_any_reported(u, size) for u in others] for size in sizes]
    missed = [[_crowded_out(u, *kind) for u in others] for kind in kinds]
    strangers = [[_Mean(people, tables) for tables in false] for _ in thresholds]
    misses = [[_Mean(people, tables) for tables in missed] for _ in thresholds]
    hits = np.zeros(len(thresholds))
    for block in blocks(crops, crops.subset(enrolled), "searches"):
        whose = crops.people[block.rows]
        similarity = np.maximum.reduceat(block.similarity, starts, axis=1)  # [B, P]
        line = np.arange(len(whose))
        own = similarity[line, whose]
        # A person cannot be a false match of their own crop.
        similarity[line, whose] = -np.inf
        found = mated[block.rows]
        # These people come before the right one; a person who is equally similar counts as before.
        above = (similarity >= own[:, None])[found].astype(np.float32)
        for k, threshold in enumerate(thresholds):
            # `_Mean.add` multiplies by this matrix, and NumPy multiplies integers slowly.
            reached = (similarity >= threshold).astype(np.float32)
            hits[k] += reached.sum()
            for mean in strangers[k]:
                mean.add(reached, whose)
            for mean in misses[k]:
                mean.add(above, whose[found], certain=own[found] < threshold)
    rows = []
    for k in range(len(thresholds)):
        one_person = hits[k] / (len(crops) * (people - 1))
        of_size = {size: mean.rate() for size, mean in zip(sizes, strangers[k], strict=True)}
        for (size, top), mean in zip(kinds, misses[k], strict=True):
            predicted = predicted_fpir(one_person, size)
            rows.append(Search(size, top, k, *of_size[size], predicted, *mean.rate(), one_person))
    return rows


class _Mean:
    """The mean over crops of a function of how many other people reach a crop, also without each person in turn.

    Without person p, p's own crops are not searched. A crop that p reached is reached by one person fewer, and all
    crops can be reached by one person fewer.

    Args:
        people: P.
        tables: the function's values for 0..P people who reach a crop [P + 1]: first of P − 1 other people, then of
            P − 2.
    """

    def __init__(self, people: int, tables: Sequence[np.ndarray]):
        self.tables = tables
        self.whole, self.fewer = 0.0, 0.0
        self.own, self.searches, self.changes = np.zeros(people), np.zeros(people), np.zeros(people)

    def add(self, reached: np.ndarray, whose: np.ndarray, certain: np.ndarray | None = None) -> None:
        """Add crops of people `whose` [B].

        Args:
            reached: who of the others reaches each crop, 0 or 1 [B, P].
            whose: the person of each crop [B].
            certain: where true [B], the function's value is 1, whoever reaches the crop.
        """
        number = np.count_nonzero(reached, axis=1)
        whole, fewer = (table[number] for table in self.tables)
        change = self.tables[1][np.maximum(number - 1, 0)] - fewer
        if certain is not None:
            whole, fewer, change = (
                np.where(certain, 1, whole),
                np.where(certain, 1, fewer),
                np.where(certain, 0, change),
            )
        count = len(self.own)
        self.whole, self.fewer = self.whole + whole.sum(), self.fewer + fewer.sum()
        self.own += np.bincount(whose, fewer, count)
        self.searches += np.bincount(whose, minlength=count)
        # Most crops do not depend on a single person, so the product leaves them out.
        some = np.flatnonzero(change)
        self.changes += change[some].astype(np.float32) @ reached[some]

    def rate(self) -> tuple[float, tuple[float, float]]:
        """Return the mean and its interval."""
        total = self.searches.sum()
        rest = total - self.searches
        without = ((self.fewer - self.own + self.changes) / np.maximum(rest, 1))[rest > 0]
        rate = min(1.0, float(self.whole / total))
        return rate, interval(rate, without, int((self.searches > 0).sum()))


def _any_reported(others: int, size: int) -> np.ndarray:
    """Return the probability that `size` of the `others`, drawn at random, include one of m people; [others + 2].

    The values are for m = 0..others + 1.
    """
    m = np.minimum(np.arange(others + 2), others)
    # Logarithms are needed, because the numbers of galleries exceed float64.
    nobody = _log_choose(others - m, size) - _log_choose(np.array([others]), size)
    return -np.expm1(np.where(others - m < size, -np.inf, nobody))


def _log_choose(total: np.ndarray, chosen: int) -> np.ndarray:
    rest = np.maximum(total - chosen, 0)
    return gammaln(total + 1) - gammaln(chosen + 1) - gammaln(rest + 1)


def _crowded_out(others: int, size: int, top: int) -> np.ndarray:
    """Return the probability that `size` − 1 of the `others` include at least `top` of r people; [others + 2].

    The values are for r = 0..others + 1.
    """
    r = np.minimum(np.arange(others + 2), others)
    return hypergeom.sf(top - 1, others, r, size - 1)
