"""Tests of the paper's four statements about the norms in the last block, and a sentence on how much NRA can change."""

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

# A correlation closer to 0, or a relative change smaller than this, counts as no effect.
WEAK = 0.1
# A mean luminance in 0..255. Images darker than this cannot be dimmed further in a meaningful way.
DARK = 60
# A share of the attention. Moving less than this changed the demo's mAP by less than 0.001 (docs/method.md).
FEW = 0.05


@dataclasses.dataclass(frozen=True)
class Statement:
    """A claim and its test.

    Attributes:
        claim: the claim in words.
        statistic: the name of the number, one per image, that tests the claim.
        value: its mean over images with the 95 % interval.
        sign: 1 or -1, the sign that the claim expects.
    """

    claim: str
    statistic: str
    value: Interval
    sign: int

    @property
    def verdict(self) -> str:
        """Return "yes" if the interval excludes 0, and the mean has the claimed sign and a size of at least WEAK."""
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
    """Test the statements: the first three on the images as given, the fourth on the degraded ones.

    If the study has person regions, "centre" means the person and "border" the background.
    """
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
        statistic = f"these images are dark, mean luminance {luminance:.0f} of 255; choose bright ones"
    elif len(lights) > 1:
        # The mean norm is fitted to log light, so that all lights count, and not only the first and the last.
        patches = np.ones(len(centre_distance(study.grid)), bool) if study.person is None else study.person
        norms = np.stack([region_mean(patch_norms(study.maps[light], "q"), patches) for light in lights])
        # The brightest light is at 0, so that the intercept is the fitted norm in that light.
        slope, brightest = np.polyfit(np.log(lights) - np.log(max(lights)), norms, 1)
        change = slope * np.log(min(lights) / max(lights)) / brightest
        of = "all patches" if study.person is None else "the person"
        statistic = f"change of the mean ‖Q‖ of {of} from light {max(lights):g} to {min(lights):g}, fitted to log light"
    return Statement("Q norms fall as light falls", statistic, interval(change), -1)


def leverage_sentence(study: Study) -> str:
    """Return a sentence on NRA in the last block: the spread of γ, that of the plain logits, the attention it moves."""
    leverage, spread = np.median(study.with_nra.leverage), np.median(study.with_nra.logit_spread[:, -1])
    moved = moved_attention(study.with_nra, study.without_nra)
    verdict = "too small to matter" if moved < FEW else "enough to change what the model sees"
    untrained = "" if study.trained else " (untrained: the model was trained without NRA)"
    return (
        f"NRA at λ = {study.strength:.4g}{untrained}: γ spreads over the keys by {leverage:.3g} nats, the logits by "
        f"{spread:.3g} (medians over heads and images), which moves {100 * moved:.1f} % of the attention: {verdict}."
    )
