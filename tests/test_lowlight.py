"""The low-light degradation obeys the physics of light and noise, and its published ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from people import run
from PIL import Image

from nrsrd_jax.lowlight import PRESETS, degrade
from nrsrd_jax.lowlight.__main__ import noise_level

pytestmark = pytest.mark.slow

NO_NOISE = {"shot": (0.0, 0.0)}
FULL_LIGHT = {"light": (1.0, 1.0), "light_distribution": "uniform", "gain": (1.0, 0.0)}
ONE_CAMERA = {"gamma": (2.2, 2.2), "red_gain": (2.0, 2.0), "blue_gain": (1.6, 1.6), "bits": (14,)}


def picture(count=1, height=16, width=8):
    return jax.random.uniform(jax.random.key(1), (count, height, width, 3), minval=0.15, maxval=0.9)


def grey(value, count=8, height=64, width=64):
    return jnp.full((count, height, width, 3), value)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_full_light_without_noise_returns_the_picture(preset):
    settings = NO_NOISE | FULL_LIGHT | {"bits": (14,), "gamma": (2.0, 2.4), "cast": 0.0}
    out = degrade(jax.random.key(0), picture(8), preset=preset, **settings)
    # The picture is quantised to 14 bits of linear light and to 8 bits of sRGB.
    assert np.abs(out - picture(8)).max() < 2 / 255


def test_less_light_is_darker():
    def mean(k):
        light = FULL_LIGHT | {"light": (k, k)}
        return float(degrade(jax.random.key(0), picture(8), **NO_NOISE, **light).mean())

    means = [mean(k) for k in (1.0, 0.4, 0.1, 0.02)]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("k", [0.1, 0.4])
def test_light_scales_the_linear_picture_or_the_srgb_picture(k):
    settings = NO_NOISE | ONE_CAMERA | FULL_LIGHT
    full = degrade(jax.random.key(0), grey(0.5), **settings)
    dark = degrade(jax.random.key(0), grey(0.5), **settings | {"light": (k, k)})
    # Rounding to 8 bits changes the darker picture by about 1 %, and its light by twice that.
    np.testing.assert_allclose(dark.mean() ** 2.2 / full.mean() ** 2.2, k, rtol=0.05)
    srgb = degrade(jax.random.key(0), grey(0.5), **settings | {"light": (k, k), "light_unit": "srgb"})
    np.testing.assert_allclose(srgb.mean() / full.mean(), k, rtol=0.05)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_strength_leads_from_full_light_to_the_drawn_light(preset):
    def dark(strength=None, **options):
        strength = None if strength is None else jnp.float32(strength)
        return np.asarray(degrade(jax.random.key(0), picture(8), preset=preset, strength=strength, **options))

    np.testing.assert_allclose(dark(1), dark(), atol=1.1 / 255)
    np.testing.assert_allclose(dark(0), dark(light=(1, 1), light_distribution="uniform"), atol=1.1 / 255)
    means = [dark(strength).mean() for strength in (0, 0.25, 0.5, 0.75, 1)]
    assert means == sorted(means, reverse=True)
    # Half the strength is the square root of the intensity.
    fixed = {"light_distribution": "uniform", **NO_NOISE, **ONE_CAMERA}
    half = dark(0.5, light=(0.16, 0.16), **fixed)
    np.testing.assert_allclose(half, dark(light=(0.4, 0.4), **fixed), atol=1.1 / 255)


def test_noise_variance_is_linear_in_the_signal():
    """Fit slope · signal + intercept to the variance of the green channel, with gamma and white balance off."""
    a, log_b = 0.004, np.log(2e-5)
    noise = {"shot": (a, a), "read_line": (0.0, log_b), "read_spread": 0.0, "row": (0.0, 0.0)}
    unbalanced = {"red_gain": (1.0, 1.0), "blue_gain": (1.0, 1.0), "gamma": (1.0, 1.0), "bits": (14,)}
    signals = np.array([0.2, 0.3, 0.4, 0.5, 0.6])
    variances = []
    for signal in signals:
        out = degrade(jax.random.key(0), grey(signal, 16, 128, 128), **noise, **unbalanced, **FULL_LIGHT)
        # The colour matrix mixes the channels. It keeps the mean of grey and scales the variance by a factor that is
        # the same for every signal, so the test compares only the ratio of intercept and slope.
        variances.append(float(np.var(np.asarray(out)[..., 1], axis=(1, 2)).mean()))
    slope, intercept = np.polyfit(signals, variances, 1)
    np.testing.assert_allclose(intercept / slope, np.exp(log_b) / a, atol=0.012)
    np.testing.assert_allclose(np.polyval([slope, intercept], signals), variances, rtol=0.05)


def test_row_noise_is_constant_along_rows():
    noise = {"shot": (1e-4, 1e-4), "read_line": (0.0, np.log(1e-4)), "read_spread": 0.0}
    rows = {}
    for strength in (0.0, 20.0):
        out = degrade(jax.random.key(0), grey(0.6), **noise, **FULL_LIGHT, **ONE_CAMERA, row=(strength, strength))
        rows[strength] = float(np.asarray(out).mean(2).std(1).mean())
    assert rows[20.0] > 20 * rows[0.0]


def test_a_key_gives_the_same_pictures_and_each_picture_has_its_own_draw():
    same = jnp.repeat(picture(), 4, axis=0)
    out = np.asarray(degrade(jax.random.key(5), same))
    np.testing.assert_array_equal(out, degrade(jax.random.key(5), same))
    assert len({image.tobytes() for image in out}) == 4
    assert not np.array_equal(out, degrade(jax.random.key(6), same))


def test_mid_grey_becomes_as_dark_and_noisy_as_published():
    """MAET's ranges give mid-grey a mean near 47 of 255 and a noise near 16."""
    out = 255 * np.asarray(degrade(jax.random.key(0), grey(0.5, 128, 32, 32)))
    assert 42 < out.mean() < 54
    assert 13 < out.std((1, 2)).mean() < 20


def test_low_noise_is_cleaner_than_maet():
    noise = {
        p: 255 * np.asarray(degrade(jax.random.key(0), grey(0.5, 64, 32, 32), preset=p)).std((1, 2)).mean()
        for p in PRESETS
    }
    assert noise["low_noise"] < noise["maet"] / 2


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_stay_in_range(preset, value):
    out = np.asarray(degrade(jax.random.key(0), grey(value, 16, 8, 8), preset=preset, inverse_tone=True))
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1
    np.testing.assert_allclose(out * 255, np.round(out * 255), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "dusk"}, "'dusk'; choose one of maet, low_noise"),
        ({"fog": 1.0}, "unknown degradation range 'fog'"),
        ({"light": (0.5, 0.1)}, "degradation.light"),
        ({"light": (0.5,)}, "degradation.light"),
        ({"shot": (0.0, 0.1)}, "degradation.shot"),
        ({"light_unit": "lux"}, "light_unit is 'lux'"),
        ({"light_moments": (0.1, 0)}, "degradation.light_moments"),
        ({"red_gain": (0, 0)}, "degradation.red_gain"),
        ({"bits": ()}, "degradation.bits"),
        ({"light": (0.1, "a")}, "degradation.light"),
    ],
)
def test_a_wrong_range_is_named(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        degrade(jax.random.key(0), picture(), **options)


@pytest.mark.parametrize("sigma", [0, 2, 10])
def test_the_noise_level_of_a_shaded_picture_is_estimated(sigma):
    y, x = np.mgrid[:128, :64]
    picture = 40 + 0.5 * y + x + np.random.default_rng(0).normal(0, sigma, (128, 64))
    assert noise_level(picture) == pytest.approx(sigma, rel=0.1, abs=1e-9)


def test_the_sheet_shows_every_preset_and_prints_how_dark_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((60, 30, 3), 128, np.uint8)).save(tmp_path / name)
    command = ["-m", "nrsrd_jax.lowlight", "a.png", "b.png", "--output"]
    lines = run(*command, "~/new/sheet.png", cwd=tmp_path).stdout.splitlines()
    assert lines[0] == "as given  luminance mean 128.0, standard deviation   0.0; noise  0.0"
    assert [line.split()[0] for line in lines[1:-1]] == list(PRESETS)
    with Image.open(tmp_path / "new/sheet.png") as sheet:
        assert sheet.height > 6 * 128
    refused = run(*command, "x.txt", cwd=tmp_path, status=2)
    assert refused.stderr == "error: --output x.txt: name a .png, .jpg or .webp file\n"
