"""The paper's four statements about the norms in the last block, each tested on a checkpoint and images."""

import dataclasses

import numpy as np

from .statistics import VECTORS, Interval, centre_distance, correlation, interval, patch_norms, region_mean
from .study import Study

WEAK = 0.1  # a correlation nearer to 0, or a change by a smaller share, counts as none


@dataclasses.dataclass(frozen=True)
class Statement:
    """`holds`: whether the statistic's mean lies beyond WEAK and its 95 % interval on the same side of 0.

    None with fewer than two images that have a number.
    """

    claim: str
    statistic: str
    value: Interval
    holds: bool | None

    @property
    def verdict(self) -> str:
        return "not tested" if self.holds is None else "yes" if self.holds else "no"


def check(study: Study) -> list[Statement]:
    """The statements on the images as given, and as light falls on all of them."""
    q, k, v = (patch_norms(study.given, vector) for vector in VECTORS)
    distance = centre_distance(study.grid)
    towards, like = (correlation(q, distance), correlation(k, distance)), correlation(v, q)
    statements = [
        _state("Q norms are high in the centre", "correlation of ‖Q‖ with distance from it", towards[0], -1),
        _state("K norms are high at the border", "correlation of ‖K‖ with distance from the centre", towards[1], 1),
        _state("V norms are like Q norms", "correlation of ‖V‖ with ‖Q‖ over the patches", like, 1),
    ]
    lights = [light for light in study.maps if light is not None]
    change, statistic = np.zeros(0), "needs two lights"
    if len(lights) > 1:
        region = np.ones(len(distance), bool) if study.person is None else study.person
        bright, dark = (region_mean(patch_norms(study.maps[f(lights)], "q"), region) for f in (max, min))
        change = dark / bright - 1
        where = "all patches" if study.person is None else "the person"
        statistic = f"change of the mean ‖Q‖ of {where}, light {max(lights):g} to {min(lights):g}"
    return [*statements, _state("Q norms fall as light falls", statistic, change, -1)]


def _state(claim: str, statistic: str, values: np.ndarray, sign: int) -> Statement:
    value = interval(values)
    nearest = value.low if sign > 0 else -value.high
    holds = bool(sign * value.mean >= WEAK and nearest > 0) if value.images > 1 else None
    return Statement(claim, statistic, value, holds)


def sentence(statement: Statement) -> str:
    value, verdict = statement.value, f"{statement.claim}: {statement.verdict}"
    if not value.images:
        return f"{verdict} ({statement.statistic})"
    numbers = f"{value.mean:+.3f}, 95 % interval {value.low:+.3f} to {value.high:+.3f}, {value.images} images"
    return f"{verdict} ({statement.statistic}: {numbers})"
