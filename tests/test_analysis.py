"""The analysis tells what is in the norms: planted ones come out again, and the command writes figures and tables."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from people import write_images
from PIL import Image

from nrsrd_jax.analysis import plots, statistics, tables
from nrsrd_jax.analysis.maps import Maps, Probe, token_norm
from nrsrd_jax.analysis.statements import check, sentence
from nrsrd_jax.analysis.study import Study
from nrsrd_jax.checkpoint import Description, load, save_weights
from nrsrd_jax.errors import InputError
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.models.reid import initialise
from nrsrd_jax.sharding import make_mesh

GRID = 8, 4
DISTANCE = statistics.centre_distance(GRID)
IMAGES = 5


def planted(q=1.0, k=1.0, v=1.0, attention=None, leverage=0.0) -> Maps:
    """Maps of two blocks and one head: norms of the patches [P] or a number, the CLS token's 0."""
    rng = np.random.default_rng(0)

    def every(values):
        tokens = np.zeros((IMAGES, 2, 1, 1 + len(DISTANCE)), np.float32)
        tokens[..., 1:] = values
        return tokens * rng.uniform(0.9, 1.1, (IMAGES, 1, 1, 1)).astype(np.float32)

    weights = every(1.0) if attention is None else every(attention)
    weights /= weights.sum(-1, keepdims=True)
    spreads = np.full((IMAGES, 2, 1), 1.0), np.full((IMAGES, 1), leverage)
    return Maps(every(q), every(k), every(v), weights, *spreads)


def study(maps: dict, person=None, with_nra=None) -> Study:
    given = maps[None]
    pixels = {light: np.zeros((IMAGES, 128, 64, 3), np.uint8) for light in maps}
    paths = [Path(f'{i}, "x".jpg') for i in range(IMAGES)]
    return Study("name", paths, "maet", GRID, pixels, maps, with_nra or given, given, 1.0, True, person)


def test_distance_is_of_patch_centres_in_half_diagonals():
    np.testing.assert_allclose(statistics.centre_distance((2, 2)), 0.5)
    np.testing.assert_allclose(statistics.centre_distance((1, 3)), np.array([1, 0, 1]) / (np.sqrt(10) / 2))
    assert statistics.centre_distance((16, 8)).max() < 1


def test_a_planted_line_is_found():
    fit = statistics.trend(DISTANCE, np.stack([3 - 2 * DISTANCE, 3 - 2 * DISTANCE]))
    np.testing.assert_allclose(fit, (-2, 3, -1), rtol=1e-6)
    np.testing.assert_allclose(statistics.correlation(np.stack([DISTANCE, -DISTANCE]), DISTANCE), [1, -1])
    assert np.isnan(statistics.correlation(np.ones((1, 32)), DISTANCE)).all()


def test_interval_by_hand():
    value = statistics.interval(np.array([1.0, 3.0, np.nan]))
    np.testing.assert_allclose(value[:3], (2, 2 - 1.96, 2 + 1.96))
    assert value.images == 2
    assert statistics.interval(np.array([np.nan])).images == 0


@pytest.mark.parametrize(("light_falls", "centre", "border", "like", "expected"), [
    (0.5, -1, 1, -1, ["yes", "yes", "yes", "yes"]),
    (1.0, 1, -1, -1, ["no", "no", "no", "no"]),  # the opposite of what the paper says, and no change
    (2.0, 0, 0, 1, ["not tested", "not tested", "not tested", "no"]),  # constant norms have no correlation
    (0.95, -1, 1, 1, ["yes", "yes", "no", "no"]),  # a change by less than a tenth counts as none
])  # fmt: skip
def test_statements_on_planted_norms(light_falls, centre, border, like, expected):
    q, k, v = (10 + slope * DISTANCE for slope in (centre, border, like))
    lights = {None: planted(q, k, v), 1.0: planted(q, k, v), 0.1: planted(q * light_falls, k, v)}
    assert [statement.verdict for statement in check(study(lights))] == expected


def test_the_person_is_where_the_query_norm_is_looked_at():
    person = statistics.centre_region(GRID)
    dark = np.where(person, 1.0, 10.0)
    falls = check(study({None: planted(10.0), 1.0: planted(10.0), 0.1: planted(dark)}, person))[-1]
    assert falls.value.mean == pytest.approx(-0.9)
    assert "of the person, light 1 to 0.1" in falls.statistic


def test_without_lights_the_fourth_statement_is_not_tested():
    fourth = check(study({None: planted()}))[-1]
    assert fourth.holds is None
    assert sentence(fourth) == "Q norms fall as light falls: not tested (needs two lights)"


def test_regions():
    values = np.stack([np.arange(4.0), np.arange(4.0) * 10])
    np.testing.assert_array_equal(statistics.region_mean(values, np.array([True, False, True, False])), [1, 10])
    each = np.array([[True, False, False, False], [False, False, True, True]])
    np.testing.assert_array_equal(statistics.region_mean(values, each), [0, 25])
    centre = statistics.centre_region((16, 8)).reshape(16, 8)
    assert (centre == centre[::-1, ::-1]).all()
    assert 0.3 < centre.mean() < 0.4


def test_masks_are_read_by_patch(tmp_path):
    mask = np.zeros((64, 32), np.uint8)
    mask[:32] = 255  # the upper half
    Image.fromarray(mask).save(tmp_path / "a.png")
    np.testing.assert_array_equal(statistics.read_masks(tmp_path, [Path("else/a.jpg")], GRID)[0], np.arange(32) < 16)
    with pytest.raises(InputError, match=r"no mask for b\.jpg"):
        statistics.read_masks(tmp_path, [Path("b.jpg")], GRID)
    Image.fromarray(0 * mask).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no patch for the person"):
        statistics.read_masks(tmp_path, [Path("a.jpg")], GRID)


@pytest.mark.parametrize(("leverage", "verdict"), [(0.01, "too small to matter"), (0.5, "NRA changes where")])
def test_leverage_is_told_in_a_sentence(leverage, verdict):
    moved = statistics.leverage_sentence(planted(leverage=leverage), planted(), 1.0)
    assert verdict in moved
    assert f"by {leverage:.3g} nats, the logits by 1 " in moved
    left, right = np.arange(32) < 16, np.arange(32) >= 16
    assert "100.0 % of the attention" in statistics.leverage_sentence(
        planted(attention=left), planted(attention=right), 1
    )


def test_tables_hold_the_planted_numbers(tmp_path):
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
    assert float(last["", "1", "k"]["mean_correlation_of_images"]) == pytest.approx(-1)
    assert rows["images"][0]["image"] == '0, "x".jpg'
    assert float(rows["images"][0]["attention_entropy"]) == pytest.approx(np.log(32), rel=1e-5)
    assert float(rows["images"][0]["attention_share_of_person"]) == pytest.approx(person.mean(), rel=1e-5)
    assert sum(int(row["patches"]) for row in rows["joint"] if row["light"] == "0.1") == IMAGES * 32
    assert len(rows["maps"]) == 2 * 2 * 1 * 32
    assert all(row["logit_spread"] == "1" for row in rows["leverage"])


def test_every_figure_is_drawn_of_constant_norms_too():
    """A scale from a value to itself, and no correlation at all."""
    made = study({None: planted(), 1.0: planted(), 0.1: planted()})
    names = [name for name, _ in plots.figures(made)]
    assert len(names) == len(set(names)) == 11


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model with NRA whose λ was trained to 2."""
    description = Description("vit_tiny", 2, (64, 32), (0.5,) * 3, (0.5,) * 3, norm_ratio=NormRatio())
    variables = jax.jit(lambda key: initialise(description.create_model(), key, (64, 32)))(jax.random.key(0))
    variables["params"]["base"]["blocks_1"]["attn"]["norm_ratio"] = np.float32(2)
    path = tmp_path_factory.mktemp("weights") / "c"
    save_weights(path, description, variables, {})
    return path


def pixels(count=3):
    return np.random.default_rng(1).integers(0, 256, (count, 64, 32, 3), np.uint8)


def test_maps_are_of_the_model(checkpoint):
    """Norms of block 1 by hand from its weights; attention with NRA is that without, weighted by exp(−γ)."""
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


def test_a_model_without_nra_is_shown_what_it_would_do(checkpoint, tmp_path):
    _, variables = load(checkpoint, make_mesh())
    del variables["params"]["base"]["blocks_1"]["attn"]["norm_ratio"]
    plain = Description("vit_tiny", 2, (64, 32), (0.5,) * 3, (0.5,) * 3)
    save_weights(tmp_path / "plain", plain, variables, {})
    probe = Probe.load(tmp_path / "plain")
    assert probe.strength == 0
    np.testing.assert_allclose(probe(pixels(), 2.0).attention, Probe.load(checkpoint)(pixels()).attention, atol=1e-6)


def analysis(*arguments, cwd):
    command = [sys.executable, "-m", "nrsrd_jax.analysis", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_writes_figures_and_tables_from_any_folder(checkpoint, tmp_path):
    write_images(tmp_path / "images", range(3))
    done = analysis("--checkpoint", checkpoint, "--images", "images", "--lights", "1,0.1", "--centre", "--compare",
                    checkpoint, "--output", "out", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "figures (PNG, SVG) and tables (CSV) are in out"
    assert "Q norms are high in the centre: " in done.stdout
    assert "NRA at λ = 2: γ spreads" in done.stdout
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(made) == 2 * 11 + 7
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image)) > 0, path
    assert all(path.read_text().rstrip().endswith("</svg>") for path in (tmp_path / "out").glob("*.svg"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--images", "nowhere.jpg"], "cannot read the image nowhere.jpg"),
    (["--images", "."], "no pictures"),
    ([], "is no work directory of a run: name the images with --images"),
    (["--images", ".", "--lights", "2"], "give intensities in 0..1"),
    (["--images", ".", "--limit", "0"], "at least 1 image"),
    (["--images", "a.png", "--masks", "lost"], "--masks lost is no folder"),
    (["--images", "a.png", "--output", "a.png"], "is a file; name a folder"),
    (["--images", "a.png", "--compare", "lost"], "lost holds no checkpoint"),
])  # fmt: skip
def test_a_mistake_is_one_line(checkpoint, tmp_path, arguments, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    if "." in arguments:
        (tmp_path / "a.png").unlink()
    done = analysis("--checkpoint", checkpoint, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
