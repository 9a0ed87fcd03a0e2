"""The paper's four statements about the norms in the last block, and what NRA can do, for a checkpoint and images."""

import dataclasses

import numpy as np

from ..data.images import mean_luminance
from .statistics import (
    VECTORS,
    Interval,
    centre_distance,
    correlation,
    interval,
    moved_attention,
    patch_norms,
    region_mean,
)
from .study import Study

WEAK = 0.1  # a correlation nearer to 0, or a change by a smaller share, counts as none
DARK = 60  # mean luminance in 0..255: of darker images there is no light to take
FEW = 0.05  # of the attention: moving less changed the demo's mAP by less than 0.001 (docs/method.md)


@dataclasses.dataclass(frozen=True)
class Statement:
    """A claim, a number per image that tells, and the `sign` that the claim expects of it."""

    claim: str
    statistic: str
    value: Interval
    sign: int

    @property
    def verdict(self) -> str:
        """yes: the mean lies beyond WEAK on the claimed side, and the 95 % interval on one side of 0."""
        value = self.value
        if value.images < 2:
            return "not tested"
        if value.low <= 0 <= value.high:
            return "no"
        if abs(value.mean) < WEAK:
            return f"no, under {WEAK:g}"
        return "yes" if value.mean * self.sign > 0 else "no, the opposite"

    def __str__(self) -> str:
        value, text = self.value, f"{self.claim}: {self.verdict} ({self.statistic}"
        if not value.images:
            return f"{text})"
        return f"{text}: {value.mean:+.3f}, 95 % interval {value.low:+.3f} to {value.high:+.3f}, {value.images} images)"


def check(study: Study) -> list[Statement]:
    """The statements, of the images as given; with a region of the person it stands for the centre."""
    q, k, v = (patch_norms(study.given, vector) for vector in VECTORS)
    if study.person is None:
        where, outwards = "distance from the centre", centre_distance(study.grid)
    else:
        where, outwards = "being background", ~study.person
    return [
        Statement("Q norms are high in the centre", f"correlation of ‖Q‖ with {where}", _correlation(q, outwards), -1),
        Statement("K norms are high at the border", f"correlation of ‖K‖ with {where}", _correlation(k, outwards), 1),
        Statement("V norms are like Q norms", "correlation of ‖V‖ with ‖Q‖ over the patches", _correlation(v, q), 1),
        _falls_with_light(study),
    ]


def _correlation(norms: np.ndarray, other: np.ndarray) -> Interval:
    return interval(correlation(norms, other.astype(np.float64)))


def _falls_with_light(study: Study) -> Statement:
    lights = [light for light in study.maps if light is not None]
    luminance = mean_luminance(study.images[None]).mean()
    change, statistic = np.zeros(0), "needs two lights"
    if luminance < DARK:
        statistic = f"these images are dark, mean luminance {luminance:.0f} of 255: give bright ones"
    elif len(lights) > 1:
        patches = np.ones(len(centre_distance(study.grid)), bool) if study.person is None else study.person
        norms = np.stack([region_mean(patch_norms(study.maps[light], "q"), patches) for light in lights])
        slope, brightest = np.polyfit(np.log(lights) - np.log(max(lights)), norms, 1)
        change = slope * np.log(min(lights) / max(lights)) / brightest
        of = "all patches" if study.person is None else "the person"
        statistic = f"change of the mean ‖Q‖ of {of} from light {max(lights):g} to {min(lights):g}, fitted to log light"
    return Statement("Q norms fall as light falls", statistic, interval(change), -1)


def leverage_sentence(study: Study) -> str:
    """What NRA does in the last block: the spreads over keys of γ and of the plain logits, the attention it moves."""
    leverage, spread = np.median(study.with_nra.leverage), np.median(study.with_nra.logit_spread[:, -1])
    moved = moved_attention(study.with_nra, study.without_nra)
    verdict = "too small to matter" if moved < FEW else "enough to change what the model sees"
    untrained = "" if study.trained else " (untrained: the model has none)"
    return (
        f"NRA at λ = {study.strength:.4g}{untrained}: γ spreads over the keys by {leverage:.3g} nats, the logits by "
        f"{spread:.3g} (medians over heads and images), which moves {100 * moved:.1f} % of the attention: {verdict}."
    )
