"""Define the options of the training images: data, aux, degradation and augment.

options.py has the other options, and reads and checks all of them.
"""

import dataclasses

from .errors import InputError
from .option import Pair, option


@dataclasses.dataclass(frozen=True)
class Data:
    """The training images, which also name the test images unless eval.data is set."""

    name: str = option(
        "night600",
        "The layout of the data set; separate several data sets by commas: market1501,msmt17. bright has training "
        "images only, folders has one folder per identity, manifest is a CSV file, and crops (for pretraining) is any "
        "folders or lists of crops without labels.",
    )
    # The folder may move between two calls. Other images are noticed by the hash of their names and labels.
    root: str = option(
        "data/Night600",
        "The folder of the data set, or the CSV file of a manifest. Give one per data set, separated by commas.",
        resumable=True,
    )
    protocol: str = option(
        "",
        "Which test to use of a data set that has several: 528, 528-no-distractors, 1000, … of nightreid; 1-2, 1-3, "
        "2-3 of knight.",
    )
    exclude: str = option(
        "", "A text file of image paths to leave out, as nrsrd check --fix-list writes it.", resumable=True
    )
    include: str = option(
        "",
        "For pretraining: a list of crops (.csv with a column path), as nrsrd select writes it. Only the crops in the "
        "list are used.",
        resumable=True,
    )
    holdout: float = option(
        0.0,
        "The share of the training identities to hold out of training. Evaluations during training then use only these "
        "identities, so that the best checkpoint is not chosen on the test data. 0: choose it on the test data, as the "
        "official code does.",
        low=0,
        below=1,
    )
    cache: str = option(
        "disk",
        "Where to keep decoded images: device (in device memory), disk (in a memory-mapped file) or none (decode again "
        "at each use).",
        choices=("device", "disk", "none"),
        resumable=True,
    )
    cache_dir: str = option("", "The folder to keep decoded images in; empty: ~/.cache/nrsrd_jax.", resumable=True)
    mean: str = option(
        "half",
        "The mean to subtract from each channel, with pixels in 0..1: half (0.5), dataset (the mean of the training "
        "images) or three numbers in 0..1, like 0.1,0.1,0.1.",
    )
    std: str = option(
        "half", "The value to divide each channel by after that: half, dataset or three numbers, as data.mean."
    )
    train_filter: str = option(
        "bicubic",
        "The filter that resizes training images. Test images are always resized bilinearly.",
        choices=("bicubic", "bilinear"),
    )
    brighten: float = option(
        0.0,
        "Brighten each image that has a lower mean to about this mean (0..1) by gamma correction, before "
        "normalisation, in training and at test time. The correction depends on the image alone. 0: do not brighten.",
        low=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class Aux:
    """The auxiliary domain: well-lit images and their dark versions."""

    enabled: bool = option(True, "Also train on dark versions of a bright auxiliary domain.")
    bright_root: str = option(
        "data/Syn_Dark/bright", "The folder of the bright images, named <pid>_c<camera>_*.jpg.", resumable=True
    )
    dark_root: str = option(
        "",
        "The folder of the dark versions of the bright images, with the same file names. Empty: the training step "
        "darkens the bright images (degradation.*).",
        resumable=True,
    )
    curriculum_epochs: int = option(
        0,
        "How long the training step darkens the bright images less than degradation.* says: from full light in the "
        "first epoch, by equal factors an epoch. 0: not at all.",
        unit="epochs",
        low=0,
    )


@dataclasses.dataclass(frozen=True)
class Degradation:
    """How to darken a bright image. The preset (lowlight.PRESETS) decides every option without a value."""

    preset: str = option(
        "maet", "The sensor and light to imitate: maet or low_noise. It decides the options below that have no value."
    )
    inverse_tone: bool | None = option(None, "Undo a smoothstep tone curve before darkening.")
    gamma: Pair | None = option(None, "Lowest and highest exponent g in linear light = sRGB^g, 0 < low <= high.")
    gain: Pair | None = option(None, "Mean and standard deviation of the sensor's gain, which is drawn for each image.")
    red_gain: Pair | None = option(None, "Lowest and highest white-balance gain of red, 0 < low <= high.")
    blue_gain: Pair | None = option(None, "Lowest and highest white-balance gain of blue, 0 < low <= high.")
    light_unit: str | None = option(
        None, "What the light intensity multiplies: linear (linear light) or srgb (sRGB values)."
    )
    light_distribution: str | None = option(None, "How the light intensity is drawn: normal or uniform.")
    light_moments: Pair | None = option(None, "Mean and standard deviation of a normal light intensity.")
    light: Pair | None = option(None, "Lowest and highest light intensity; 1 is full light.")
    shot: Pair | None = option(None, "Lowest and highest variance of the shot noise per unit of light; 0,0: no noise.")
    read_line: Pair | None = option(
        None, "Slope and offset of the line from the shot noise's log-variance to the read noise's."
    )
    read_spread: float | None = option(None, "Standard deviation of the read noise's log-variance around that line.")
    row: Pair | None = option(
        None, "Lowest and highest noise that a row shares, in standard deviations of the read noise."
    )
    cast: float | None = option(None, "Standard deviation of the logarithm of a smooth colour cast; 0: no cast.")
    bits: tuple[int, ...] | None = option(None, "Bit depths of the sensor's converter; one is drawn for each image.")


@dataclasses.dataclass(frozen=True)
class Augment:
    """How to augment training images."""

    flip: float = option(0.5, "The probability of mirroring an image.", low=0, high=1)
    pad: int = option(
        10, "The width of the black border that is added on each side before the random crop.", unit="pixels", low=0
    )
    erasing: float = option(0.5, "The probability of erasing a rectangle from an image.", low=0, high=1)
    erasing_area: Pair = option(
        (0.02, 1 / 3), "The smallest and largest area of the erased rectangle, as a part of the image."
    )
    erasing_aspect: str = option(
        "log",
        "How the erased rectangle's height/width is drawn from 0.3 to 3.3: log (log-uniform) or uniform.",
        choices=("log", "uniform"),
    )
    erasing_fill: str = option(
        "",
        "The colour to fill the erased rectangle with, in normalised pixels, like 0.485,0.456,0.406 as in BoT; empty: "
        "noise.",
    )


def check_curriculum(aux: Aux, epochs: int) -> None:
    """Raise InputError if aux.curriculum_epochs has no effect, or does not end in a training of `epochs`."""
    if aux.curriculum_epochs and (not aux.enabled or aux.dark_root):
        raise InputError(
            "aux.curriculum_epochs would have no effect "
            + ("with aux.dark_root, whose images are already dark" if aux.enabled else "without aux.enabled")
            + "; set it to 0"
        )
    if aux.curriculum_epochs >= epochs:
        raise InputError(
            f"aux.curriculum_epochs is {aux.curriculum_epochs}, but train.epochs is {epochs}; lower it, so that the "
            "last epochs are as dark as degradation.* says"
        )


def fixed_statistic(value: str, name: str) -> tuple[float, ...] | None:
    """Return the numbers that data.mean or data.std stands for, or None if they must be measured ("dataset")."""
    if value in ("half", "dataset"):
        return (0.5, 0.5, 0.5) if value == "half" else None
    return three_numbers(value, name, 1e-6 if name.endswith("std") else 0, "half, dataset or ")


def three_numbers(value: str, name: str, low: float = 0, others: str = "") -> tuple[float, ...]:
    """Return an option's numbers for red, green and blue. Raise InputError unless they are three in `low`..1."""
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(low <= number <= 1 for number in numbers):
        raise InputError(f"{name} is {value!r}; choose {others}three numbers in {low:g}..1 like 0.13,0.13,0.12")
    return numbers
