"""Physics-based low-light degradation: a well-lit image as a small sensor would see it in the dark.

The light of the scene is recovered from the image (unprocessing, Brooks et al. 2019), dimmed (MAET, Cui et al. 2021),
given the noise of a sensor (ELD, Wei et al. 2020), quantised and rendered again. Linear light is 1 at full scale.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

Range = tuple[float, float]

# The matrices of the code of Brooks et al.: from XYZ to the colours of four cameras, and from linear sRGB to XYZ (D65).
_XYZ_TO_CAMERA = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.613, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.838, -0.263, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.097, 0.1581, 0.5181]],
    ]
)
_SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
_PRODUCT = _XYZ_TO_CAMERA @ _SRGB_TO_XYZ
# The rows are scaled to the sum 1, so that white stays white.
SRGB_TO_CAMERA = _PRODUCT / _PRODUCT.sum(axis=2, keepdims=True)
CAMERA_TO_SRGB = np.linalg.inv(SRGB_TO_CAMERA)


@dataclasses.dataclass(frozen=True)
class Degradation:
    """The ranges that a degradation draws from for each image. The defaults are those of MAET (Cui et al. 2021).

    Attributes:
        inverse_tone: whether to undo a smoothstep tone curve first.
        gamma: (low, high) of the exponent g in linear light = sRGB^g, which is uniform.
        gain: (mean, standard deviation) of the sensor's gain, which is normal.
        red_gain, blue_gain: (low, high) of the gains of the white balance, which are uniform.
        light_unit: what the intensity k multiplies: "linear" light or "srgb" values.
        light_distribution: the distribution of k: "normal" (truncated to `light`) or "uniform" in `light`.
        light_moments: (mean, standard deviation) of a normal k before truncation.
        light: (low, high) of k in 0..1.
        shot: (low, high) of a in the noise variance a·x + b, where x is linear light. a is log-uniform.
        read_line: (slope, offset) in log b = slope·log a + offset + N(0, read_spread²).
        read_spread: see `read_line`.
        row: (low, high) of the standard deviation, in units of √b, of the noise that all pixels of a row share. It is
            uniform.
        cast: the standard deviation, in log units, of a smooth colour cast; 0 for no cast.
        bits: the bit depths of the sensor's converter, equally likely.
    """

    inverse_tone: bool = False
    gamma: Range = (2.0, 3.5)
    gain: Range = (0.8, 0.1)
    red_gain: Range = (1.9, 2.4)
    blue_gain: Range = (1.5, 1.9)
    light_unit: str = "linear"
    light_distribution: str = "normal"
    light_moments: Range = (0.1, 0.08)
    light: Range = (0.01, 1.0)
    shot: Range = (1e-4, 0.012)
    read_line: Range = (2.18, 1.20)
    read_spread: float = 0.26
    row: Range = (0.3, 1.0)
    cast: float = 0.0
    bits: tuple[int, ...] = (10, 12, 14)


PRESETS = {
    "maet": Degradation(),
    # This preset is darker and has less noise: a figure of CENet (Lu et al. 2025) shows sRGB values × 0.1–0.6 and
    # noise of 1.5–7 grey levels.
    "low_noise": Degradation(
        light_unit="srgb", light_distribution="uniform", light=(0.1, 0.6), shot=(2e-5, 2e-4), cast=0.08, bits=(14,)
    ),
}


def resolve(preset: str = "maet", **overrides) -> Degradation:
    """Return a preset with some of its ranges replaced, after checking them.

    Args:
        preset: "maet" or "low_noise".
        **overrides: ranges by their names in `Degradation`.

    Returns:
        The complete settings.

    Raises:
        ValueError: the preset or a name is unknown, or a value is out of its range.

    Source:
        Cui et al. 2021 for "maet"; Lu et al. 2025 for "low_noise".

    Example:
        >>> from nrsrd_jax.lowlight import resolve
        >>> settings = resolve("maet", gamma=(2.2, 2.2))
        >>> settings.gamma, settings.light
        ((2.2, 2.2), (0.01, 1.0))
    """
    if preset not in PRESETS:
        raise ValueError(f"degradation preset is {preset!r}; choose one of {', '.join(PRESETS)}")
    names = [field.name for field in dataclasses.fields(Degradation)]
    for name in overrides:
        if name not in names:
            raise ValueError(f"unknown degradation range {name!r}; choose from {', '.join(names)}")
    settings = dataclasses.replace(PRESETS[preset], **overrides)
    for name, holds, need in _RULES:
        value = getattr(settings, name)
        try:
            fits = holds(value)
        except (TypeError, ValueError, IndexError):
            fits = False
        if not fits:
            raise ValueError(f"degradation.{name} is {value!r}; it takes {need}")
    return settings


def _rises(value: Range, above: float = -math.inf) -> bool:
    low, high = value
    return above < low <= high < math.inf


_RULES = (
    *((name, lambda v: _rises(v, 0), "two numbers, 0 < low <= high") for name in ("gamma", "red_gain", "blue_gain")),
    *((name, lambda v: _rises(v, -1e-9), "two numbers, 0 <= low <= high") for name in ("light", "row")),
    ("shot", lambda v: _rises(v, 0) or tuple(v) == (0, 0), "two numbers, 0 < low <= high, or 0,0 for no noise"),
    ("gain", lambda v: len(v) == 2 and v[0] > 0 and v[1] >= 0, "a mean and a standard deviation"),
    ("light_moments", lambda v: len(v) == 2 and v[1] > 0, "a mean and a positive standard deviation"),
    ("read_line", lambda v: len(v) == 2 and math.isfinite(sum(v)), "a slope and an offset"),
    *((name, lambda v: 0 <= v < math.inf, "a number, at least 0") for name in ("read_spread", "cast")),
    ("bits", lambda v: len(v) > 0 and all(isinstance(n, int) and 1 <= n <= 24 for n in v), "whole numbers in 1..24"),
    ("light_unit", lambda v: v in ("linear", "srgb"), "linear or srgb"),
    ("light_distribution", lambda v: v in ("normal", "uniform"), "normal or uniform"),
)


def degrade(
    key: jax.Array, images: jax.Array, *, strength: jax.Array | None = None, preset: str = "maet", **overrides
) -> jax.Array:
    """Degrade well-lit images to what a small sensor would record in low light.

    x = M·image^g / w · s·k,   y = x + √(a·x + b)·n + row noise,   dark = (M⁻¹·(quantise(y)·w))^(1/g)

    M is the colour matrix of a camera, w its white balance, s its gain, k the intensity of the light, and n is N(0, 1).
    They are drawn for each image from the ranges of a `Degradation`. The same key gives the same result. With a
    strength, k^strength stands in place of k.

    Args:
        key: a JAX random key.
        images: float [B, H, W, 3], sRGB in 0..1.
        strength: a scalar in 0..1, from full light (0) to the drawn light (1); None for the drawn light.
        preset: "maet" (the ranges of MAET) or "low_noise" (darker, with less noise).
        **overrides: ranges that replace those of the preset, by their names in `Degradation`.

    Returns:
        [B, H, W, 3], sRGB in 0..1, rounded to multiples of 1/255.

    Raises:
        ValueError: as `resolve`.

    Source:
        Brooks et al. 2019 (M, w, g), Cui et al. 2021 (k, s, a, b) and Wei et al. 2020 (row noise).

    Example:
        >>> import jax
        >>> from nrsrd_jax.lowlight import degrade
        >>> images = jax.numpy.full((2, 8, 4, 3), 0.5)
        >>> dark = jax.jit(degrade)(jax.random.key(0), images)
        >>> dark.shape, bool(dark.mean() < images.mean())
        ((2, 8, 4, 3), True)
    """
    settings = resolve(preset, **overrides)
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(lambda k, image: _degrade_one(k, image, settings, strength=strength))(keys, images)


def degrade_to(light: jax.Array, keys: jax.Array, images: jax.Array, *, preset: str = "maet", **overrides) -> jax.Array:
    """Degrade images as `degrade` does, but all of them with the same intensity and a sensor gain of 1.

    Args:
        light: the intensity k in 0..1, a scalar; 1 for full light.
        keys: a JAX random key for each image, [B].
        images: float [B, H, W, 3], sRGB in 0..1.
        preset: as in `degrade`.
        **overrides: as in `degrade`. `gain`, `light` and its distribution have no effect.

    Returns:
        [B, H, W, 3], sRGB in 0..1, rounded to multiples of 1/255.

    Raises:
        ValueError: as `resolve`.

    Source:
        As `degrade`.

    Example:
        >>> import functools, jax
        >>> from nrsrd_jax.lowlight import degrade_to
        >>> keys, images = jax.random.split(jax.random.key(0), 2), jax.numpy.full((2, 8, 4, 3), 0.5)
        >>> without_noise = jax.jit(functools.partial(degrade_to, shot=(0, 0)))
        >>> bool(without_noise(0.1, keys, images).mean() < 0.7 * without_noise(1.0, keys, images).mean())
        True
    """
    settings = resolve(preset, **overrides | {"gain": (1.0, 0.0)})
    return jax.vmap(lambda k, image: _degrade_one(k, image, settings, light))(keys, images)


def _degrade_one(
    key: jax.Array,
    image: jax.Array,
    d: Degradation,
    light: jax.Array | None = None,
    strength: jax.Array | None = None,
) -> jax.Array:
    """Degrade one image [H, W, 3] with the intensity `light`, which is drawn if it is None.

    With a strength s, the intensity k becomes k^s.
    """
    keys = iter(jax.random.split(key, 16))

    def uniform(low_high: Range) -> jax.Array:
        return jax.random.uniform(next(keys), minval=low_high[0], maxval=low_high[1])

    camera = jax.random.randint(next(keys), (), 0, len(SRGB_TO_CAMERA))
    to_camera, to_srgb = (jnp.asarray(m, image.dtype)[camera] for m in (SRGB_TO_CAMERA, CAMERA_TO_SRGB))
    balance = jnp.stack([uniform(d.red_gain), jnp.ones(()), uniform(d.blue_gain)])
    gain = d.gain[0] + d.gain[1] * jax.random.normal(next(keys))
    gamma = uniform(d.gamma)
    # The draw takes its key even if `light` is given, so that all later draws are those of `degrade`.
    drawn = _light(next(keys), d)
    light = drawn if light is None else light
    if strength is not None:
        light = light**strength
    if d.light_unit == "srgb":
        light = light**gamma

    # From the image to the light that reaches the sensor.
    x = jnp.clip(image, 0, 1)
    if d.inverse_tone:
        # This inverts the tone curve y = 3x² − 2x³.
        x = 0.5 - jnp.sin(jnp.arcsin(1 - 2 * x) / 3)
    x = jnp.matmul(x**gamma, to_camera.T, precision="highest")
    x = x / balance * gain * light * _colour_cast(next(keys), image.shape, d.cast)

    # The noise of the sensor.
    a = jnp.exp(uniform((math.log(d.shot[0]), math.log(d.shot[1])))) if d.shot[1] > 0 else jnp.zeros(())
    slope, offset = d.read_line
    log_b = slope * jnp.log(a) + offset + d.read_spread * jax.random.normal(next(keys))
    b = jnp.where(a > 0, jnp.exp(log_b), 0.0)
    x = x + jnp.sqrt(jnp.maximum(a * x, 0) + b) * jax.random.normal(next(keys), image.shape)
    x = x + jnp.sqrt(b) * uniform(d.row) * jax.random.normal(next(keys), (image.shape[0], 1, 1))

    # From the sensor back to an sRGB image.
    levels = 2.0 ** jnp.asarray(d.bits)[jax.random.randint(next(keys), (), 0, len(d.bits))] - 1
    x = jnp.round(x * levels) / levels
    x = jnp.matmul(x * balance, to_srgb.T, precision="highest")
    x = jnp.clip(x, 0, 1) ** (1 / gamma)
    return jnp.round(x * 255) / 255


def _light(key: jax.Array, d: Degradation) -> jax.Array:
    """Draw the intensity k, a scalar."""
    low, high = d.light
    if d.light_distribution == "uniform":
        return jax.random.uniform(key, minval=low, maxval=high)
    mean, std = d.light_moments
    return mean + std * jax.random.truncated_normal(key, (low - mean) / std, (high - mean) / std)


def _colour_cast(key: jax.Array, shape: tuple[int, ...], strength: float) -> jax.Array | float:
    """Draw gains [H, W, 3] that vary smoothly over the image, as under one coloured lamp; 1.0 without a cast."""
    if not strength:
        return 1.0
    height, width, channels = shape
    plane = strength * jax.random.normal(key, (3, channels))
    y, x = jnp.linspace(-1, 1, height)[:, None, None], jnp.linspace(-1, 1, width)[None, :, None]
    return jnp.exp(plane[0] + y * plane[1] + x * plane[2])
