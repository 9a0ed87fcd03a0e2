"""Error rates of pairs and searches are right on planted similarities, and their intervals contain the truth."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from crowd import WIDTH, draw
from scipy.special import betainc

from nrsrd_jax.errors import InputError
from nrsrd_jax.retrieval import pairs, searches
from nrsrd_jax.retrieval.calibration import Calibration, load_calibration
from nrsrd_jax.retrieval.error_rates import calibrate
from nrsrd_jax.retrieval.pairs import Crops, Histograms, blocks, count_by_person, people_needed

pytestmark = pytest.mark.slow

LEVELS = [int(pairs.bin_of(np.array(x))) for x in (0.5, 0.7, 0.85)]
THRESHOLDS = [pairs.edge(level) for level in LEVELS]


def measure(features, who):
    """Return the false-non-match and the false-match rates of pairs at THRESHOLDS, with their intervals."""
    crops = Crops.of(features, who, np.arange(len(who)))
    ((genuine, impostor),) = count_by_person(
        crops, who.max() + 1, LEVELS, np.zeros(len(who), int), [np.zeros((1, 1), int)]
    )[0]
    return [genuine.rate(k, missed=True) for k in range(3)], [impostor.rate(k) for k in range(3)]


def test_the_false_match_rates_of_random_directions_follow_the_formula():
    """For uniform directions in 8 dimensions, P(cosine ≥ t) = I(1 − t²; 7/2, 1/2)/2."""
    rng = np.random.default_rng(0)
    features, who = draw(rng, 400)
    found = calibrate(features, who, None, rng.random(len(who)))
    assert [row["fmr_wanted"] for row in found["pairs"]] == [0.1, 0.01, 0.001, 0.0001]
    for row in found["pairs"]:
        expected = betainc((WIDTH - 1) / 2, 1 / 2, 1 - row["threshold"] ** 2) / 2
        assert row["fmr"] == pytest.approx(expected, rel=0.25)
        assert row["fmr_interval"][0] <= expected <= row["fmr_interval"][1]
        assert row["fmr_wanted"] / 1.1 < row["fmr"] <= row["fmr_wanted"]


@pytest.mark.parametrize(("same_camera", "dark_camera"), [(False, False), (True, False), (False, True)])
def test_rates_and_groups_equal_those_of_a_plain_loop(monkeypatch, same_camera, dark_camera):
    # Small blocks, so that there are many.
    monkeypatch.setattr(pairs, "BLOCK_PAIRS", 1000)
    rng = np.random.default_rng(1)
    features, who = draw(rng, 26, crops=(3, 9))
    camera, light = rng.integers(5, 8, len(who)), rng.random(len(who))
    light *= np.where((camera == 7) & dark_camera, 0.1, 1)
    found = calibrate(features, who + 70, camera, light, same_camera=same_camera)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    edges = np.array([group["from"] for group in found["groups"]["brightness"]])
    similarity, genuine, impostor, darker, seen = [], [], [], [], []
    for i, j in itertools.combinations(range(len(who)), 2):
        similarity.append(units[i] @ units[j])
        genuine.append(who[i] == who[j] and (same_camera or camera[i] != camera[j]))
        impostor.append(who[i] != who[j])
        darker.append(np.sum(min(light[i], light[j]) >= edges - 1e-6) - 1)
        seen.append(sorted([camera[i], camera[j]]))
    similarity, genuine, impostor, darker, seen = map(np.array, (similarity, genuine, impostor, darker, seen))
    assert (found["genuine_pairs"], found["impostor_pairs"]) == (genuine.sum(), impostor.sum())

    def is_share(rate, values, threshold):
        """Return whether `rate` is the share of values at or above the threshold, except for rounding."""
        high, low = ((values >= threshold + shift).mean() for shift in (-1e-6, 1e-6))
        return low * (1 - 1e-5) <= rate <= high * (1 + 1e-5)

    def check(row, mask):
        if row["fmr"] is not None:
            assert is_share(row["fmr"], similarity[mask & impostor], row["threshold"])
        if row["fnmr"] is not None:
            assert is_share(row["fnmr"], -similarity[mask & genuine], -row["threshold"])

    for row in found["pairs"]:
        check(row, np.ones(len(seen), bool))
    checked = 0
    for number, group in enumerate(found["groups"]["brightness"]):
        for row in group["pairs"]:
            check(row, darker == number)
            checked += row["fnmr"] is not None
    assert len(found["groups"]["cameras"]) == 6
    for group in found["groups"]["cameras"]:
        for row in group["pairs"]:
            check(row, (seen == group["cameras"]).all(1))
            checked += row["fmr"] is not None
    assert checked > 10
    curve = {name: np.array(values) for name, values in found["curve"].items()}
    for threshold, fmr, fnmr in zip(*curve.values(), strict=True):
        assert is_share(fmr, similarity[impostor], threshold)
        assert is_share(fnmr, -similarity[genuine], -threshold)


@pytest.mark.parametrize("common", [0.0, 0.8])
def test_intervals_of_pairs_contain_the_truth_and_are_not_too_wide(common):
    """Simulate 25 people 200 times, also with people who resemble each other. The nominal coverage is 95 %."""
    rng = np.random.default_rng(2)
    truth = np.mean([[[rate[0] for rate in kind] for kind in measure(*draw(rng, 500, common))] for _ in range(4)], 0)
    # [trial, kind, threshold, (rate, low, high)]
    trials = np.array([measure(*draw(rng, 25, common)) for _ in range(200)])
    rate, low, high = np.moveaxis(trials, -1, 0)
    holds = ((low <= truth) & (truth <= high)).mean(0)
    # The standard error of a coverage of 95 % in 200 simulations is 1.5 %.
    assert (holds[0] > 0.9).all()
    assert (holds[0] < 0.99).all()
    # The jackknife over pairs of people is known to give intervals that are too wide.
    assert (holds[1] > 0.93).all()
    # At the highest threshold some simulations have no false match at all.
    middle = slice(0, 2)
    assert ((high - low)[:, :, middle].mean(0) < 8 * rate[:, :, middle].std(0)).all()


def test_intervals_depend_on_the_number_of_people_and_not_of_crops():
    """Ten times as many crops of the same people hardly narrow the interval."""
    rng = np.random.default_rng(3)
    who = np.repeat(np.arange(30), 60)
    spread = rng.choice([0.3, 0.9], 30)[who, None]
    features = rng.normal(size=(30, WIDTH))[who] + spread * rng.normal(size=(len(who), WIDTH))
    few = np.arange(len(who)) % 60 < 6
    widths = [np.diff(measure(features[rows], who[rows])[0][1][1:])[0] for rows in (few, np.full(len(who), True))]
    assert widths[1] > 0.75 * widths[0]


def test_without_errors_the_interval_ends_at_three_divided_by_the_number_of_people():
    features, who = np.eye(20).repeat(2, axis=0), np.arange(20).repeat(2)
    (row,) = calibrate(features, who, None, np.zeros(40))["pairs"]
    assert (row["fnmr"], row["fnmr_interval"]) == (0, [0, 3 / 20])
    assert (row["fmr"], row["fmr_interval"]) == (0, [0, pytest.approx(3 / 190, rel=1e-5)])


def test_search_rates_equal_those_of_all_galleries(monkeypatch):
    """Compute FPIR and FNIR, also without each person, by enrolling every choice of 3 and of 5 of 8 people."""
    monkeypatch.setattr(pairs, "BLOCK_PAIRS", 100)
    monkeypatch.setattr(searches, "GALLERIES", (3, 5))
    monkeypatch.setattr(searches, "TOPS", (1, 2))
    rng = np.random.default_rng(4)
    features, who = draw(rng, 8, crops=(3, 6))
    crops = Crops.of(features, who, rng.integers(0, 2, len(who)))
    view = np.random.default_rng(0)
    enrolled = np.array([view.choice(np.unique(crops.views[who == person])) for person in range(8)])[who] == crops.views
    similarity = crops.features @ crops.features.T
    best = np.stack([similarity[:, enrolled & (who == person)].max(1) for person in range(8)], axis=1)
    own = best[np.arange(len(who)), who]

    def plain(size, top, threshold, left_out=None):
        present = [person for person in range(8) if person != left_out]
        false, missed = [], []
        for crop in np.flatnonzero(who != left_out):
            others = [person for person in present if person != who[crop]]
            galleries = [list(chosen) for chosen in itertools.combinations(others, size)]
            false.append(np.mean([(best[crop, chosen] >= threshold).any() for chosen in galleries]))
            if not enrolled[crop]:
                beside = [list(chosen) for chosen in itertools.combinations(others, size - 1)]
                crowded = [(best[crop, chosen] >= own[crop]).sum() >= top for chosen in beside]
                missed.append(np.mean(crowded) if own[crop] >= threshold else 1)
        return np.mean(false), np.mean(missed)

    rows = searches.measure_searches(crops, 8, THRESHOLDS)
    assert len(rows) == 12
    for row in rows:
        case = row.gallery_people, row.top, THRESHOLDS[row.threshold]
        expected = plain(*case)
        np.testing.assert_allclose((row.fpir, row.fnir), expected, atol=1e-12)
        without = np.array([plain(*case, left_out=person) for person in range(8)])
        for measured, rate, each in zip((row.fpir_interval, row.fnir_interval), expected, without.T, strict=True):
            # Without errors the rule of three gives the interval, which another test checks.
            if 0 < rate < 1:
                np.testing.assert_allclose(measured, pairs.interval(rate, each, 8), atol=1e-5)


def test_fpir_grows_with_the_gallery_as_predicted():
    """FPIR is 1 − (1 − p)^N if similarities are independent, and lower if some strangers resemble many people."""
    rng = np.random.default_rng(5)

    def rows(common):
        features, who = draw(rng, 600, common, crops=(2, 4))
        return searches.measure_searches(Crops.of(features, who, np.arange(len(who))), 600, THRESHOLDS[1:2])

    independent = {row.gallery_people: row for row in rows(0.0)}
    assert set(independent) == {5, 10, 20, 50, 100, 200, 500}
    rates = [row.fpir for row in independent.values()]
    assert rates == sorted(rates)
    assert rates[0] < 0.15
    assert rates[-1] > 0.95
    for row in independent.values():
        assert row.fpir == pytest.approx(row.fpir_predicted, abs=0.01)
    for row in rows(1.5):
        if row.gallery_people == 50:
            assert row.fpir < row.fpir_predicted - 0.03


def test_intervals_of_searches_contain_the_truth(monkeypatch):
    monkeypatch.setattr(searches, "GALLERIES", (10,))
    monkeypatch.setattr(searches, "TOPS", (1,))
    rng = np.random.default_rng(6)

    def trial(people, seed):
        features, who = draw(rng, people, 0.5)
        crops = Crops.of(features, who, np.arange(len(who)))
        return searches.measure_searches(crops, people, THRESHOLDS[1:2], seed)[0]

    large = [trial(800, seed) for seed in range(4)]
    fpir, fnir = (np.mean([getattr(row, name) for row in large]) for name in ("fpir", "fnir"))
    small = [trial(30, seed) for seed in range(150)]
    assert np.mean([row.fpir_interval[0] <= fpir <= row.fpir_interval[1] for row in small]) > 0.9
    assert 0.9 < np.mean([row.fnir_interval[0] <= fnir <= row.fnir_interval[1] for row in small]) < 0.995


def test_a_rate_needs_three_divided_by_the_rate_pairs_of_people():
    for rate in (0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-6):
        people = people_needed(rate)
        assert people * (people - 1) / 2 >= 3 / rate > (people - 1) * (people - 2) / 2


def test_a_rate_that_needs_more_people_is_refused_with_their_number():
    rng = np.random.default_rng(7)
    features, who = draw(rng, 30)
    found = calibrate(features, who, None, np.zeros(len(who)))
    assert [row["fmr_wanted"] for row in found["pairs"]] == [0.1, 0.01]
    assert found["refused"][0] == {"fmr": 0.001, "people_needed": 78}
    with pytest.raises(InputError, match=r"30 people are too few for a false-match rate of 0\.001: it needs 78"):
        calibrate(features, who, None, np.zeros(len(who)), rates=(0.1, 0.001))
    with pytest.raises(InputError, match=r"8 people are too few for a false-match rate of 0\.1: it needs 9"):
        calibrate(features[who < 8], who[who < 8], None, np.zeros(sum(who < 8)))


def test_features_that_are_equal_for_all_people_are_refused():
    with pytest.raises(InputError, match="100 % of the pairs of two people have the same features"):
        calibrate(np.ones((40, 4)), np.arange(20).repeat(2), None, np.zeros(40))


def planted(rng):
    """Return the calibration of 400 random people, as the content of its file."""
    features, who = draw(rng, 400)
    return calibrate(features, who, None, np.zeros(len(who)))


def calibration(content) -> Calibration:
    """Make a Calibration from the content of its file."""
    curve, points = (np.array(list(content[name].values())[-2:]) for name in ("curve", "probability"))
    threshold = np.array(content["curve"]["threshold"])
    return Calibration(Path("c.json"), {}, content["people"], threshold, curve[0], points)


def test_probability_is_the_share_of_genuine_pairs_at_a_similarity():
    rng = np.random.default_rng(8)
    found = calibration(planted(rng))
    # The shares are counted on other people than those of the calibration.
    features, who = draw(rng, 400)
    crops = Crops.of(features, who, np.arange(len(who)))
    counts = Histograms()
    for block in blocks(crops, crops):
        counts.add(block)
    grid = np.array([int(pairs.bin_of(np.array(x))) for x in np.linspace(-0.2, 0.95, 24)])
    genuine, impostor = (np.add.reduceat(x / x.sum(), grid)[:-1] for x in (counts.genuine, counts.impostor))
    share = genuine / (genuine + impostor)
    middle = (grid[:-1] + grid[1:]) / 2 * pairs.RESOLUTION - 1
    assert np.abs(found.probability(middle) - share).max() < 0.06
    assert share.min() < 0.1
    assert share.max() > 0.9
    steps = found.probability(np.linspace(-1, 1, 999))
    assert (np.diff(steps) >= 0).all()
    assert 0 < steps[0] < steps[-1] < 1
    # With one genuine pair among 101, p = odds / (1 + odds), where odds = share / (1 − share) / 100.
    odds = found.probability(0.6) / (1 - found.probability(0.6)) / 100
    assert found.probability(0.6, prior=1 / 101) == pytest.approx(odds / (1 + odds))


def test_strangers_and_thresholds_follow_the_false_match_rate_as_far_as_the_data():
    rng = np.random.default_rng(9)
    found = calibration(planted(rng))
    for rate in (0.3, 0.1, 0.01, 0.003, 0.0001):
        threshold = found.threshold_at(rate)
        assert betainc((WIDTH - 1) / 2, 1 / 2, 1 - threshold**2) / 2 == pytest.approx(rate, rel=0.3)
        assert found.strangers(threshold) == pytest.approx(1 / rate, rel=0.3)
    most = 400 * 399 / 6
    assert found.strangers(1.0) == found.most == most
    assert found.statement(1.0) == "fewer than one stranger in 26,600 is this near"
    assert found.strangers(-1.0) == 1
    with pytest.raises(InputError, match=r"400 people, too few for a false-match rate of 1e-05: it needs 776"):
        found.threshold_at(1e-5)
    # For such a rate the formula gives infinity, of which math.ceil raises an OverflowError.
    with pytest.raises(InputError, match="it needs 1,000,000,000,000,000"):
        found.threshold_at(1e-320)
    with pytest.raises(InputError, match="give a number above 0"):
        found.threshold_at(0)


@pytest.mark.parametrize(("other", "words"), [
    ({"weights_sha256": "b"}, r"weights_sha256 a\) than this one \(weights_sha256 b"),
    ({"feature": "neck"}, "feature cls"), ({"flip": True}, "flip False"),
])  # fmt: skip
def test_a_calibration_of_another_model_or_feature_is_refused(other, words):
    found = Calibration(
        Path("c.json"), {"weights_sha256": "a", "feature": "cls", "flip": False}, 9, *np.ones((2, 1)), np.ones((2, 1))
    )
    found.check_model(found.model)
    with pytest.raises(InputError, match=rf"c\.json calibrates another model .*{words}"):
        found.check_model(found.model | other)


def test_a_calibration_is_loaded_and_a_damaged_file_is_named(tmp_path):
    content = planted(np.random.default_rng(10)) | {"model": {"feature": "cls"}}
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(content))
    for place in (file, tmp_path):
        found = load_calibration(place)
        assert (found.people, found.model) == (400, {"feature": "cls"})
        assert found.threshold_at(0.01) == content["pairs"][1]["threshold"]
    no_curve = {name: value for name, value in content.items() if name != "curve"}
    falling = content | {"curve": {name: values[::-1] for name, values in content["curve"].items()}}
    empty = content | {"probability": {"similarity": [], "probability": []}}
    wild = content | {"probability": {"similarity": [0, 1], "probability": [float("nan"), 1]}}
    crowds = [content | {"people": people} for people in (float("inf"), 0, 10**400)]
    square = content | {"probability": {"similarity": [[0]], "probability": [[1]]}}
    damaged = no_curve, falling, empty, wild, square, *crowds, {"model": 1}
    # Json raises a RecursionError for a hundred thousand brackets, and 10**400 does not fit a float.
    for text in ("", "[]", "[" * 100_000, *map(json.dumps, damaged)):
        file.write_text(text)
        with pytest.raises(InputError, match=r"calibration\.json is not a calibration of this version"):
            load_calibration(file)
    with pytest.raises(InputError, match=r"absent\.json: No such file.*nrsrd calibrate writes it"):
        load_calibration(tmp_path / "absent.json")
