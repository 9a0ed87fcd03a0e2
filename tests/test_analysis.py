"""The analysis finds planted norms, and its command writes figures and tables."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from people import run, small_model, write_images
from PIL import Image

from nrsrd_jax.analysis import plots, statistics, tables
from nrsrd_jax.analysis.__main__ import main
from nrsrd_jax.analysis.maps import Maps, Probe, token_norm
from nrsrd_jax.analysis.statements import check, leverage_sentence
from nrsrd_jax.analysis.study import Study
from nrsrd_jax.checkpoint import load, save_weights
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.sharding import make_mesh

pytestmark = pytest.mark.slow

GRID = 8, 4
DISTANCE = statistics.centre_distance(GRID)
IMAGES = 5


def planted(q=1.0, k=1.0, v=1.0, attention=None, leverage=0.0) -> Maps:
    """Make the maps of two blocks, of which the second has the given norms and attention: numbers, [P] or [N, P].

    Its two heads share each vector 3:4. The first block has the opposite values. The CLS token's values are 0. Each
    image has a random factor.
    """
    rng = np.random.default_rng(0)

    def every(values):
        tokens = np.zeros((IMAGES, 2, 2, 1 + len(DISTANCE)), np.float32)
        values = np.broadcast_to(values, (IMAGES, len(DISTANCE))) * rng.uniform(0.9, 1.1, (IMAGES, 1))
        tokens[:, 1, 0, 1:], tokens[:, 1, 1, 1:] = 0.6 * values, 0.8 * values
        tokens[:, 0, :, 1:] = (values.max(1, keepdims=True) + 1 - values)[:, None]
        return tokens

    weights = every(1.0 if attention is None else attention)
    weights /= weights.sum(-1, keepdims=True)
    spreads = np.full((IMAGES, 2, 2), 1.0), np.full((IMAGES, 2), leverage)
    return Maps(every(q), every(k), every(v), weights, *spreads)


def study(maps: dict, person=None, brightness=128, **fields) -> Study:
    """Make a study with these maps by light, on images of one brightness."""
    given = maps[None]
    pixels = {light: np.full((IMAGES, 128, 64, 3), brightness, np.uint8) for light in maps}
    paths = [Path(f'{i}, "x".jpg') for i in range(IMAGES)]
    parts = {"with_nra": given, "without_nra": given, "strength": 1.0, "trained": True} | fields
    return Study("name", paths, "maet", GRID, pixels, maps, person=person, **parts)


def test_distances_of_patch_centres_are_in_half_diagonals():
    np.testing.assert_allclose(statistics.centre_distance((2, 2)), 0.5)
    np.testing.assert_allclose(statistics.centre_distance((1, 3)), np.array([1, 0, 1]) / (np.sqrt(10) / 2))
    assert statistics.centre_distance((16, 8)).max() < 1


def test_the_trend_finds_a_planted_line():
    fit = statistics.trend(DISTANCE, np.stack([3 - 2 * DISTANCE, 3 - 2 * DISTANCE]))
    np.testing.assert_allclose(fit, (-2, 3, -1), rtol=1e-6)
    np.testing.assert_allclose(statistics.correlation(np.stack([DISTANCE, -DISTANCE]), DISTANCE), [1, -1])
    assert np.isnan(statistics.correlation(np.ones((1, 32)), DISTANCE)).all()


def test_the_interval_matches_a_hand_calculation():
    value = statistics.interval(np.array([1.0, 3.0, np.nan]))
    # 12.706 is Student's t for one degree of freedom.
    np.testing.assert_allclose(value[:3], (2, 2 - 12.706, 2 + 12.706), rtol=1e-4)
    assert value.images == 2
    assert statistics.interval(np.array([np.nan])).images == 0


@pytest.mark.parametrize(("light_falls", "centre", "border", "like", "expected"), [
    (0.5, -1, 1, -1, ["yes", "yes", "yes", "yes"]),
    (1.0, 1, -1, -1, ["no, the opposite", "no, the opposite", "no, the opposite", "no"]),
    # Constant norms have no correlation.
    (2.0, 0, 0, 1, ["not tested", "not tested", "not tested", "no, the opposite"]),
    # A change by less than a tenth counts as no change.
    (0.95, -1, 1, 1, ["yes", "yes", "no, the opposite", "no"]),
])  # fmt: skip
def test_the_verdicts_on_planted_norms(light_falls, centre, border, like, expected):
    q, k, v = (10 + slope * DISTANCE for slope in (centre, border, like))
    lights = {None: planted(q, k, v), 1.0: planted(q, k, v), 0.1: planted(q * light_falls, k, v)}
    verdicts = [statement.verdict for statement in check(study(lights))]
    assert [verdict.removesuffix(", under 0.1") for verdict in verdicts] == expected
    assert light_falls != 0.95 or verdicts[-1] == "no, under 0.1"


def test_disagreeing_images_support_no_statement():
    """Correlations of −1, −1, +1, −1, +1 have a mean of −0.2, but their interval contains 0."""
    q = 10 + np.array([-1, -1, 1, -1, 1])[:, None] * DISTANCE
    first = check(study({None: planted(q)}))[0]
    assert (round(first.value.mean, 3), first.verdict) == (-0.2, "no")
    # Only one image has a correlation, which is not enough for an interval.
    assert (
        check(study({None: planted(q * 0 + np.where(np.arange(IMAGES) == 0, 1, 0)[:, None] * DISTANCE)}))[0].verdict
        == "not tested"
    )


def test_person_regions_replace_the_centre():
    person = statistics.centre_region(GRID)
    dark = np.where(person, 1.0, 20.0)
    lights = {None: planted(np.where(person, 10.0, 9.0), np.where(person, 9.0, 10.0)), 1.0: planted(10.0)}
    q, k, _, falls = check(study(lights | {0.1: planted(dark)}, person))
    assert (q.value.mean, k.value.mean) == (pytest.approx(-1), pytest.approx(1))
    assert "with being background" in q.statistic
    assert falls.value.mean == pytest.approx(-0.9)
    assert "of the person from light 1 to 0.1" in falls.statistic


def test_the_change_with_light_uses_all_lights():
    """The line fitted to norms of 10, 4 and 10 at lights of 1, 0.1 and 0.01 is level at 8."""
    lights = {1.0: planted(10.0), 0.1: planted(4.0), 0.01: planted(10.0)}
    falls = check(study({None: planted(10.0)} | lights))[-1]
    assert (falls.value.mean, falls.verdict[:2]) == (pytest.approx(0, abs=1e-6), "no")


def test_a_statement_that_cannot_be_tested_says_why():
    lights = {None: planted(), 1.0: planted(10.0), 0.1: planted(1.0)}
    assert str(check(study({None: planted()}))[-1]) == "Q norms fall as light falls: not tested (needs two lights)"
    dark = check(study(lights, brightness=33))[-1]
    assert str(dark).endswith("not tested (these images are dark, mean luminance 33 of 255; choose bright ones)")


def test_region_means_and_the_centre_region():
    values = np.stack([np.arange(4.0), np.arange(4.0) * 10])
    np.testing.assert_array_equal(statistics.region_mean(values, np.array([True, False, True, False])), [1, 10])
    each = np.array([[True, False, False, False], [False, False, True, True]])
    np.testing.assert_array_equal(statistics.region_mean(values, each), [0, 25])
    centre = statistics.centre_region((16, 8)).reshape(16, 8)
    assert (centre == centre[::-1, ::-1]).all()
    assert 0.3 < centre.mean() < 0.4


def test_masks_are_read_by_patch(tmp_path):
    mask = np.zeros((64, 32), np.uint8)
    mask[:32] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(statistics.read_masks(tmp_path, [Path("else/a.jpg")], GRID)[0], np.arange(32) < 16)
    with pytest.raises(InputError, match=r"no mask for b\.jpg"):
        statistics.read_masks(tmp_path, [Path("b.jpg")], GRID)
    Image.fromarray(0 * mask).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no patch of the person"):
        statistics.read_masks(tmp_path, [Path("a.jpg")], GRID)


def test_the_leverage_sentence_says_how_much_attention_moves():
    left, right = np.arange(32) < 16, np.arange(32) >= 16
    without = planted(attention=left)
    few = study({None: without}, with_nra=planted(attention=left + 0.02 * right, leverage=0.01), without_nra=without)
    assert "by 0.01 nats, the logits by 1 (" in leverage_sentence(few)
    assert leverage_sentence(few).endswith("moves 2.0 % of the attention: too small to matter.")
    all_of_it = study({None: without}, with_nra=planted(attention=right), without_nra=without, trained=False)
    assert "untrained: the model was trained without NRA" in leverage_sentence(all_of_it)
    assert "moves 100.0 % of the attention: enough to change" in leverage_sentence(all_of_it)


def test_the_tables_contain_the_planted_numbers(tmp_path):
    person = statistics.centre_region(GRID)
    light = {None: planted(np.where(person, 4.0, 2.0), 10 - DISTANCE), 0.1: planted(np.where(person, 3.0, 2.0), 5.0)}
    made = study(light, person)
    tables.write_all(made, check(made), tmp_path)
    rows = {path.stem: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.glob("*.csv")}
    assert rows.keys() == {"blocks", "heads", "images", "maps", "leverage", "joint", "statements"}
    last = {(row["light"], row["block"], row["vector"]): row for row in rows["blocks"]}
    assert float(last["", "2", "q"]["person"]) / float(last["", "2", "q"]["background"]) == pytest.approx(2, rel=1e-5)
    assert float(last["0.1", "2", "q"]["person"]) / float(last["0.1", "2", "q"]["background"]) == pytest.approx(
        1.5, rel=1e-5
    )
    assert float(last["", "2", "k"]["mean_correlation_of_images"]) == pytest.approx(-1)
    assert float(last["", "1", "k"]["mean_correlation_of_images"]) == pytest.approx(1)
    assert float(rows["images"][0]["cls_q_norm"]) == 0
    head = [float(row["k_norm"]) for row in rows["heads"] if (row["light"], row["block"]) == ("", "2")]
    assert head[1] / head[0] == pytest.approx(8 / 6, rel=1e-5)
    assert rows["images"][0]["image"] == '0, "x".jpg'
    assert float(rows["images"][0]["attention_entropy"]) == pytest.approx(np.log(32), rel=1e-5)
    assert float(rows["images"][0]["attention_share_of_person"]) == pytest.approx(person.mean(), rel=1e-5)
    assert sum(int(row["patches"]) for row in rows["joint"] if row["light"] == "0.1") == IMAGES * 32
    assert len(rows["maps"]) == 2 * 2 * 2 * 32
    assert all(row["logit_spread"] == "1" for row in rows["leverage"])


def test_every_figure_can_be_drawn_for_constant_norms():
    """Constant norms give colour scales of width 0 and undefined correlations."""
    made = study({None: planted(), 1.0: planted(), 0.1: planted()})
    names = [name for name, _ in plots.figures(made)]
    assert len(names) == len(set(names)) == 11


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the checkpoint of a small model with NRA and λ = 2."""
    description, variables = small_model(2, size=(64, 32), norm_ratio=NormRatio())
    variables["params"]["base"]["blocks_1"]["attn"]["norm_ratio"] = np.float32(2)
    path = tmp_path_factory.mktemp("weights") / "c"
    save_weights(path, description, variables, {})
    return path


def pixels(count=3):
    return np.random.default_rng(1).integers(0, 256, (count, 64, 32, 3), np.uint8)


def test_maps_match_a_hand_calculation(checkpoint):
    """Compute the norms of block 1 from its weights, and attention with NRA as attention without it times exp(−γ)."""
    probe = Probe.load(checkpoint)
    assert (probe.strength, probe.grid) == (2, (4, 2))
    maps, without = probe(pixels()), probe(pixels(), 0.0)
    base = load(checkpoint, make_mesh())[1]["params"]["base"]
    patches = (pixels() / 127.5 - 1).reshape(3, 4, 16, 2, 16, 3).swapaxes(2, 3).reshape(3, 8, -1)
    tokens = patches @ np.asarray(base["patch_embed"]["proj"]["kernel"]).reshape(-1, 192)
    tokens = tokens + np.asarray(base["patch_embed"]["proj"]["bias"]) + np.asarray(base["pos_embed"])[:, 1:]
    tokens -= tokens.mean(-1, keepdims=True)
    tokens /= np.sqrt(np.square(tokens).mean(-1, keepdims=True) + 1e-6)
    qkv = tokens @ np.asarray(base["blocks_0"]["attn"]["qkv"]["kernel"])
    for index, vector in enumerate("qkv"):
        expected = np.linalg.norm(qkv[..., 192 * index : 192 * (index + 1)], axis=-1)
        np.testing.assert_allclose(token_norm(getattr(maps, f"{vector}_norm")[:, 0])[:, 1:], expected, rtol=1e-4)
    penalty = 2 * maps.k_norm[:, 1] / maps.q_norm[:, 1, :, :1]
    weighted = without.attention[:, 1] * np.exp(-penalty)
    np.testing.assert_allclose(maps.attention[:, 1], weighted / weighted.sum(-1, keepdims=True), rtol=1e-4)
    np.testing.assert_allclose(maps.leverage, penalty.std(-1), rtol=1e-3)
    assert without.leverage.max() == 0


def test_nra_can_be_added_to_a_model_trained_without_it(checkpoint, tmp_path):
    _, variables = load(checkpoint, make_mesh())
    del variables["params"]["base"]["blocks_1"]["attn"]["norm_ratio"]
    plain = Description("vit_tiny", 2, (64, 32), (0.5,) * 3, (0.5,) * 3)
    save_weights(tmp_path / "plain", plain, variables, {})
    probe = Probe.load(tmp_path / "plain")
    assert probe.strength == 0
    np.testing.assert_allclose(probe(pixels(), 2.0).attention, Probe.load(checkpoint)(pixels()).attention, atol=1e-6)


def test_the_command_writes_figures_and_tables_from_any_folder(checkpoint, tmp_path):
    write_images(tmp_path / "images", range(3))
    done = run("-m", "nrsrd_jax.analysis", "--checkpoint", checkpoint, "--images", "images", "--lights", "1,0.1",
               "--centre", "--compare", checkpoint, "--output", "out", cwd=tmp_path)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "figures (PNG, SVG) and tables (CSV) are in out"
    assert "Q norms are high in the centre: " in done.stdout
    assert "NRA at λ = 2: γ spreads" in done.stdout
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    # There are eleven figures in two formats, and seven tables.
    assert len(made) == 2 * 11 + 7
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image)) > 0, path
    assert all(path.read_text().rstrip().endswith("</svg>") for path in (tmp_path / "out").glob("*.svg"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--images", "nowhere.jpg"], "--images nowhere.jpg: no such file or folder"),
    (["--images", "."], "no images"),
    (["--images", "cut.png"], r"cannot read the image cut\.png: .*; fix or remove it$"),
    ([], "does not belong to a run; name the images with --images"),
    (["--images", "a.png", "--lights", "2"], "--lights 2: give intensities above 0"),
    (["--images", "a.png", "--limit", "0"], "take 1 to 500 images"),
    (["--images", "a.png", "--masks", "lost"], "--masks lost is not a folder"),
    (["--images", "a.png", "--output", "a.png"], "--output a.png is a file; name a folder"),
    (["--images", "a.png", "--compare", "lost"], "lost does not exist"),
])  # fmt: skip
# ml_collections loads config files with a deprecated function.
@pytest.mark.filterwarnings("ignore:the load_module")
def test_a_wrong_argument_is_named(checkpoint, tmp_path, monkeypatch, arguments, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if "." in arguments else tmp_path)
    monkeypatch.setattr(sys, "argv", ["analysis", "--checkpoint", str(checkpoint), *arguments])
    with pytest.raises(InputError, match=message):
        main()


def test_a_wrong_argument_ends_with_a_one_line_message(tmp_path):
    done = run("-m", "nrsrd_jax.analysis", "--checkpoint", "lost", "--images", "lost.jpg", cwd=tmp_path, status=2)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
