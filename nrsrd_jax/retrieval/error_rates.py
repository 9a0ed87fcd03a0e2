"""Measure the error rates of a model's similarities on labelled crops, for `nrsrd calibrate`.

N crops, D feature width, K thresholds. pairs.py counts pairs, searches.py measures searches.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from ..errors import InputError, counted
from .pairs import BINS, RESOLUTION, Crops, Histograms, PersonCounts, blocks, count_by_person, edge, people_needed
from .searches import measure_searches, predicted_fpir
from .standardize import BRIGHTNESS_GROUPS, quantile_groups

RATES = 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6
# The fewest people for the false-non-match rate of a group.
LEAST_GENUINE = 10
# With more cameras, the rates are not given for each pair of cameras.
MOST_CAMERAS = 20
# The sizes of galleries whose FPIR is only predicted.
LARGER = 1000, 10_000, 100_000
# The pairs are split by similarity into this many parts; the probability is constant within a part.
PARTS = 256
# How many points the stored curve has for each rate.
CURVE = 200
DEFINITIONS = {
    "match": "a pair matches if its cosine similarity is at least the threshold",
    "fmr": "share of impostor pairs (two people) that match",
    "fnmr": "share of genuine pairs (one person) that do not match",
    "fpir": "share of searches with a person who is not enrolled that report anybody, measured over all galleries of "
    "that many of the people",
    "fpir_predicted": "1 - (1 - p)^gallery_people; p is the measured rate at which a stranger reaches one of them",
    "fnir": "share of searches with an enrolled person that do not report this person among the top, at the threshold",
    "enrolled": "each person by the crops of one camera drawn at random, or by one crop if cameras do not count",
    "interval": "95 %, delete-one-person jackknife on the log-odds (Arvesen 1969); a person is left out of both sides "
    "of the pairs; without any error the rule of three",
    "people_needed": "rule of three on pairs of people: people * (people - 1) / 2 >= 3 / fmr (ISO/IEC 19795-1)",
    "probability": "probability that a pair shows one person, if half of all pairs do; isotonic regression",
    "brightness": "the mean luminance of a pair's darker crop, 0..1",
}


def calibrate(
    features: np.ndarray,
    people: np.ndarray,
    cameras: np.ndarray | None,
    brightness: np.ndarray,
    *,
    same_camera: bool = False,
    rates: Sequence[float] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the error rates of similarities, and how probable a genuine pair is at each similarity.

    Args:
        features: features of labelled crops [N, D], of any length.
        people: the person that each crop shows [N], any numbers.
        cameras: the camera of each crop [N], any numbers; None if they are unknown.
        brightness: the brightness of each crop [N], in 0..1.
        same_camera: whether two crops of a person from one camera are a genuine pair. Without cameras they always are.
        rates: the false-match rates to give thresholds for; () for those of RATES for which there are enough people.
        seed: the seed that draws the enrolled crops of the searches.

    Returns:
        "pairs", "searches" and the other fields of the file that `nrsrd calibrate` writes, DEFINITIONS among them.

    Raises:
        InputError: there are too few people for a rate, no genuine pairs, or too many pairs of two people with the
            same features.
        ValueError: a feature is not finite.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.error_rates import calibrate
        >>> rng = np.random.default_rng(0)
        >>> people = np.repeat(np.arange(40), 4)
        >>> features = rng.normal(size=(40, 32))[people] + 0.7 * rng.normal(size=(160, 32))
        >>> found = calibrate(features, people, None, np.zeros(160))
        >>> [(row["fmr_wanted"], round(row["fmr"], 3), round(row["fnmr"], 3)) for row in found["pairs"]]
        [(0.1, 0.1, 0.0), (0.01, 0.01, 0.025)]
    """
    wanted = check_labels(people, cameras, same_camera=same_camera, rates=rates)
    people = np.unique(people, return_inverse=True)[1]
    count = int(people.max()) + 1
    crops = Crops.of(features, people, _views(len(people), cameras, same_camera))
    histograms = Histograms()
    for block in blocks(crops, crops, "similarities"):
        histograms.add(block)
    if (same := float(histograms.rates()[0][-1])) > wanted[-1]:
        raise InputError(
            f"{100 * same:.3g} % of the pairs of two people have the same features: images or labels are mixed up, or "
            "the model cannot tell people apart"
        )
    # Two rates may have the same threshold, if there are few different similarities.
    bins = {rate: histograms.threshold(rate) for rate in wanted}
    levels = sorted(set(bins.values()))
    groups = _groups(crops, levels, cameras, brightness)
    ((_, genuine, impostor),) = groups["all"]
    pairs = [{"fmr_wanted": rate} | _row(genuine, impostor, levels.index(k), edge(k)) for rate, k in bins.items()]
    refused = [rate for rate in RATES if rate not in wanted and people_needed(rate) > count] if not rates else []
    searches = measure_searches(crops, count, [edge(k) for k in levels], seed)
    return {
        "crops": len(crops),
        "people": count,
        "cameras": None if cameras is None else len(np.unique(cameras)),
        "people_with_genuine_pairs": genuine.people,
        "people_pairs": count * (count - 1) // 2,
        # `blocks` compares all crops with all crops, so that each pair is counted twice.
        "genuine_pairs": int(histograms.genuine.sum()) // 2,
        "impostor_pairs": int(histograms.impostor.sum()) // 2,
        "same_camera": same_camera or cameras is None,
        "similarity_resolution": RESOLUTION,
        "definitions": DEFINITIONS,
        "pairs": pairs,
        "refused": [{"fmr": rate, "people_needed": people_needed(rate)} for rate in refused],
        "searches": [
            {"gallery_people": row.gallery_people, "top": row.top, "threshold": edge(levels[row.threshold])}
            | {"fpir": _short(row.fpir), "fpir_interval": _short(row.fpir_interval)}
            | {"fpir_predicted": _short(row.fpir_predicted)}
            | {"fnir": _short(row.fnir), "fnir_interval": _short(row.fnir_interval)}
            for row in searches
        ],
        "searches_predicted": [
            {"gallery_people": size, "threshold": edge(levels[k]), "fpir_predicted": _short(predicted_fpir(p, size))}
            for k, p in sorted({row.threshold: row.one_person for row in searches}.items())
            for size in LARGER
            if size > count
        ],
        "curve": _curve(histograms, levels),
        "probability": {"prior": 0.5} | _probability(histograms, genuine.people, count * (count - 1) // 2),
        "groups": {
            name: [_group_row(*group, levels) for group in of_kind if group[1].people or group[2].people]
            for name, of_kind in groups.items()
            if name != "all"
        },
    }


def check_labels(
    people: np.ndarray, cameras: np.ndarray | None, *, same_camera: bool, rates: Sequence[float]
) -> list[float]:
    """Return the false-match rates for which there are enough people, the highest first.

    Args:
        people, cameras, same_camera, rates: as in `calibrate`.

    Returns:
        All of `rates`, or those of RATES for which there are enough people.

    Raises:
        InputError: there are too few people for a given rate or for any, or there are no genuine pairs.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.retrieval.error_rates import check_labels
        >>> check_labels(np.repeat(np.arange(30), 2), None, same_camera=False, rates=())
        [0.1, 0.01]
    """
    count = len(np.unique(people))
    if count < 2:
        raise InputError(
            f"the crops show {counted(count, 'person', 'people')}: add crops of another, because pairs need two"
        )
    views = _views(len(people), cameras, same_camera)
    if len(np.unique(np.stack([people, views]), axis=1)[0]) == count:
        if same_camera or cameras is None:
            raise InputError("no person has more than one crop, so there are no genuine pairs; add more crops")
        raise InputError(
            "no person has crops of two cameras, so there are no genuine pairs; add crops of another camera, or "
            "count pairs of one camera with --same-camera"
        )
    permitted = {rate for rate in rates or RATES if people_needed(rate) <= count}
    if not permitted or (rates and len(permitted) < len(set(rates))):
        rate = max(set(rates or RATES) - permitted)
        raise InputError(
            f"{count} people are too few for a false-match rate of {rate:g}: it needs {people_needed(rate):,} (rule of "
            "three on pairs of people); add people, or ask for a higher rate"
        )
    return sorted(permitted, reverse=True)


def _views(count: int, cameras: np.ndarray | None, same_camera: bool) -> np.ndarray:
    """Return the view of each crop: its camera, or its own index if pairs of one camera count."""
    return np.arange(count) if same_camera or cameras is None else np.unique(cameras, return_inverse=True)[1]


def _groups(
    crops: Crops, levels: Sequence[int], cameras: np.ndarray | None, brightness: np.ndarray
) -> dict[str, list[tuple[dict[str, Any], PersonCounts, PersonCounts]]]:
    """Count all pairs, pairs by brightness, and pairs by their two cameras. Each group has a description."""
    light, edges = quantile_groups(brightness)
    names, camera = np.unique(np.zeros(len(crops)) if cameras is None else cameras, return_inverse=True)
    if len(names) > MOST_CAMERAS:
        names, camera = names[:1], np.zeros_like(camera)
    # One number stands for both the camera and the brightness group of a crop.
    kinds = np.arange(len(names) * BRIGHTNESS_GROUPS)
    darker = np.minimum.outer(kinds % BRIGHTNESS_GROUPS, kinds % BRIGHTNESS_GROUPS)
    low, high = (of.outer(kinds // BRIGHTNESS_GROUPS, kinds // BRIGHTNESS_GROUPS) for of in (np.minimum, np.maximum))
    # Number the unordered pairs of cameras: (0, 0), (1, 0), (1, 1), (2, 0), …
    pair = high * (high + 1) // 2 + low
    groupings = {"all": np.zeros_like(darker), "brightness": darker, "cameras": pair}
    about: dict[str, list[dict[str, Any]]] = {
        "all": [{}],
        "brightness": [{"from": _short(a), "to": _short(b)} for a, b in itertools.pairwise(edges)],
        "cameras": [{"cameras": [names[i].item(), each.item()]} for j, each in enumerate(names) for i in range(j + 1)],
    }
    if len(names) == 1:
        del groupings["cameras"], about["cameras"]
    found = count_by_person(
        crops, int(crops.people.max()) + 1, levels, camera * BRIGHTNESS_GROUPS + light, list(groupings.values())
    )
    return {
        name: [(words, *counts) for words, counts in zip(about[name], of_kind, strict=True)]
        for name, of_kind in zip(groupings, found, strict=True)
    }


def _row(genuine: PersonCounts, impostor: PersonCounts, k: int, threshold: float) -> dict[str, Any]:
    """Return both rates at a threshold. A rate without pairs is None."""
    row: dict[str, Any] = {"threshold": threshold}
    for name, found in (("fmr", impostor.rate(k)), ("fnmr", genuine.rate(k, missed=True))):
        row[name], row[f"{name}_interval"] = (_short(found[0]), _short(found[1:])) if found else (None, None)
    return row


def _group_row(
    about: dict[str, Any], genuine: PersonCounts, impostor: PersonCounts, levels: Sequence[int]
) -> dict[str, Any]:
    """Return a group with its rates. A rate is None if the group has too few people for it."""
    rows = [_row(genuine, impostor, k, edge(level)) for k, level in enumerate(levels)]
    pairs = impostor.people * (impostor.people - 1) // 2
    for row in rows:
        if genuine.people < LEAST_GENUINE:
            row["fnmr"] = row["fnmr_interval"] = None
        # By the rule of three, the true rate may be up to 3 / pairs even without an error.
        if not pairs or (row["fmr"] is not None and row["fmr"] < 3 / pairs):
            row["fmr"] = row["fmr_interval"] = None
    people = {"people_with_genuine_pairs": genuine.people, "people_with_impostor_pairs": impostor.people}
    return about | people | {"pairs": rows}


def _short(value: Any) -> Any:
    """Round a number, or each number of a tuple, to nine digits."""
    return [_short(each) for each in value] if isinstance(value, tuple) else float(f"{value:.9g}")


def _curve(histograms: Histograms, levels: Sequence[int]) -> dict[str, list[float]]:
    """Return ascending thresholds with both rates, enough to draw either rate on a logarithmic axis."""
    fmr, fnmr = histograms.rates()
    steps = np.geomspace(1, 1 / max(histograms.impostor.sum(), 2), CURVE)
    ends = np.flatnonzero(histograms.genuine + histograms.impostor)[[0, -1]]
    chosen = {*levels, *ends.tolist(), min(int(ends[1]) + 1, BINS - 1)}
    chosen |= set(np.searchsorted(-fmr, -steps).tolist()) | set(np.searchsorted(fnmr, steps).tolist())
    kept = np.array(sorted(k for k in chosen if k < BINS))
    columns = {"threshold": [edge(k) for k in kept.tolist()], "fmr": fmr[kept].tolist(), "fnmr": fnmr[kept].tolist()}
    return {"threshold": columns.pop("threshold")} | {name: _short(tuple(x)) for name, x in columns.items()}


def _probability(histograms: Histograms, genuine_people: int, people_pairs: int) -> dict[str, list[float]]:
    """Return points between which the probability of a genuine pair is linear in the similarity.

    All genuine pairs together weigh as much as all impostor pairs. The probabilities are fitted by isotonic regression
    on PARTS parts of the pairs. They are kept as far from 0 and 1 as the number of people requires.
    """
    weights = np.stack([counts / counts.sum() for counts in (histograms.genuine, histograms.impostor)])
    used = np.flatnonzero(weights.sum(0))
    genuine, impostor = weights[:, used]
    part = np.minimum((genuine + impostor).cumsum() / 2 * PARTS, PARTS - 1).astype(int)
    genuine, impostor, places = (np.bincount(part, x) for x in (genuine, impostor, (genuine + impostor) * (used + 0.5)))
    some = genuine + impostor > 0
    mass = (genuine + impostor)[some]
    fitted = isotonic_regression(genuine[some] / mass, weights=mass).x
    # Keep only the two ends of each flat stretch.
    ends = (np.diff(fitted, prepend=-1) != 0) | (np.diff(fitted, append=2) != 0)
    similarity = (places[some] / mass * RESOLUTION - 1)[ends]
    bounded = np.clip(fitted[ends], 1 / (people_pairs + 2), 1 - 1 / (genuine_people + 2))
    return {"similarity": _short(tuple(similarity)), "probability": _short(tuple(bounded))}
