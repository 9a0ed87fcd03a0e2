"""Every option with its default, unit and choices. `configs/` holds the runs of the paper as changes to these."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from .data.protocol import PROTOCOLS
from .errors import InputError, printable
from .files import read_bounded, write_whole

Config = Any  # a ConfigDict; its own type knows nothing of the options in it

# What each row of the paper's table 2 switches on.
VARIANTS = {
    "baseline": (),
    "nra": ("norm_ratio",),
    "mdl": ("aux",),
    "nra_mdl": ("norm_ratio", "aux"),
    "srd": ("aux", "teacher"),
    "nrsrd": ("norm_ratio", "aux", "teacher"),
}


def get_config(variant: str = "nrsrd") -> Config:
    """Return the defaults: the paper's run on Night600, as one of the variants of its table 2."""
    if variant not in VARIANTS:
        raise InputError(f"there is no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    switches = VARIANTS[variant]
    unset = config_dict.placeholder  # each call makes its own: two options must not share one
    return ConfigDict(
        {
            "variant": variant,  # a label for tables and plots; it switches nothing
            "image_size": (256, 128),  # height, width in pixels, multiples of what the backbone asks for (a ViT: 16)
            "data": {
                "name": "night600",  # night600 | market1501 | msmt17 | rgbnt201 | nightreid | knight | bright (training
                # images only) | folders (one per identity) | manifest (a CSV file); or several, "market1501,msmt17"
                "root": "data/Night600",  # its folder (of a manifest the CSV file); of several sources as many, "a,b"
                "protocol": "",  # which test: nightreid 528 | 528-no-distractors | 1000 | …; knight 1-2 | 1-3 | 2-3
                "exclude": "",  # a file of image paths to leave out: data.check --fix-list writes it
                "cache": "disk",  # device (decoded images in device memory) | disk (memory map) | none (decode always)
                "cache_dir": "",  # where decoded images are kept; empty: ~/.cache/nrsrd_jax
                "mean": "half",  # half (.5) | dataset (of the training images) | three numbers in 0..1, "0.1,0.1,0.1"
                "std": "half",  # likewise
            },
            "aux": {
                "enabled": "aux" in switches,  # also learn from dark versions of a bright auxiliary domain
                "bright_root": "data/Syn_Dark/bright",  # folder of <pid>_c<camera>_*.jpg
                "dark_root": "",  # dark twins of the same file names; empty: they are synthesised in the step
            },
            "degradation": {  # how a bright image is darkened; what is None comes from the preset
                "preset": "maet",  # maet | low_noise (lowlight.PRESETS)
                "inverse_tone": unset(bool),  # undo a tone curve first
                "gamma": unset(tuple),  # (low, high) of the exponent to linear light
                "gain": unset(tuple),  # (mean, std) of the sensor gain
                "red_gain": unset(tuple),  # (low, high) of the white balance
                "blue_gain": unset(tuple),
                "light_unit": unset(str),  # linear | srgb: what the light intensity scales
                "light_distribution": unset(str),  # normal | uniform
                "light_moments": unset(tuple),  # (mean, std) of the intensity, if normal
                "light": unset(tuple),  # (low, high) of the intensity, 1 is full light
                "shot": unset(tuple),  # (low, high) of the shot noise's variance per unit of light
                "read_line": unset(tuple),  # (slope, offset) of log read variance over log shot variance
                "read_spread": unset(float),  # standard deviation around that line
                "row": unset(tuple),  # (low, high) of the row noise, in read-noise standard deviations
                "cast": unset(float),  # log-std of a smooth colour cast
                "bits": unset(tuple),  # bit depths to draw from
            },
            "augment": {
                "flip": 0.5,  # probability
                "pad": 10,  # pixels on each side before the random crop
                "erasing": 0.5,  # probability
            },
            "model": {
                "backbone": "vit_base_ics",  # vit_tiny | vit_tiny_ics | vit_small | vit_small_ics | vit_base | …_ics
                "depth": 0,  # blocks of a vit_tiny; 0: the backbone's own (4, others 12)
                "norm_ratio": "norm_ratio" in switches,  # Norm-Ratio Attention in the last block
                "drop_path": 0.1,  # rate in the last block, rising from 0 in the first
            },
            "norm_ratio": {
                "init": 1.0,  # λ at the start
                "scope": "head",  # head | token: whose vectors the norms are of
                "epsilon": 1e-6,  # ε of eq. 2
            },
            "loss": {  # the λ of eq. 10, and each loss's own options
                "id_real": 0.5,
                "triplet_real": 0.5,
                "id_syn": 0.5,
                "triplet_syn": 0.5,
                "distill": 0.02,
                "label_smoothing": 0.0,  # 0..1
                "margin": unset(float),  # of the triplet loss; None: soft margin
                "normalize": False,  # triplet loss on features of length 1
                "alpha": 1.0,  # weight of TCKD
                "beta": 0.8,  # weight of NCKD
                "temperature": 1.0,
                "nckd_weight": "target",  # target (eq. 6) | none (DKD's code)
            },
            "optim": {
                "name": "sgd",  # sgd | adamw
                "lr": 4e-4,  # base rate at batch 64; it is not rescaled with the batch
                "bias_factor": 2.0,  # rate of parameters called bias, in base rates
                "momentum": 0.9,  # sgd's
                "weight_decay": 1e-4,
                "warmup_epochs": 20,
                "warmup_factor": 0.01,  # rate of the first epoch, in base rates
                "final_factor": 0.002,  # where the cosine ends, in base rates
            },
            "train": {
                "epochs": 120,
                "batch_size": 64,  # images per domain and step, over all devices
                "instances": 4,  # images per identity in a batch
                "seed": 0,
                "precision": "auto",  # auto (bfloat16 on an accelerator, float32 on CPU) | float32 | bfloat16
                "remat": False,  # compute each block again in the backward pass: less memory, a third more work
                "debug_nans": False,  # stop at the operation that gives the first NaN; slow
                "model_parallel": 1,  # devices that share each parameter; the others share the batch
                "log_every": 10,  # steps between lines of metrics.jsonl
                "save_every": 5,  # epochs between checkpoints
            },
            "eval": {
                "every": 20,  # epochs between evaluations; 0: only after the last
                "batch_size": 256,  # images
                "protocol": "cross-camera",  # cross-camera (Market-1501's) | all-cameras (for data without cameras)
                "flip": False,  # also embed each image mirrored; features are the mean of both
                "expand": 0,  # average each query with this many of its nearest gallery images
                "rerank": {  # k-reciprocal re-ranking
                    "enabled": False,
                    "k1": 20,  # neighbours of an image
                    "k2": 6,  # nearest whose sets of neighbours are averaged
                    "lambda_value": 0.3,  # share of the distance before, 0..1
                },
                "data": {  # what to evaluate on, if not on data.name; several are evaluated one by one
                    "name": "",
                    "root": "",
                    "protocol": "",
                },
            },
            "init": {"checkpoint": ""},  # a checkpoint or work directory whose backbone to start from; empty: random
            "teacher": {
                "enabled": "teacher" in switches,  # distil from a teacher that sees the bright images
                "checkpoint": "runs/teacher",  # its checkpoint or work directory
            },
        }
    ).lock()


# Options that may change between a run and its resumption: except for rounding, the same is learned.
FREE = (
    *("variant", "data.root", "data.exclude", "data.cache", "data.cache_dir", "aux.bright_root", "aux.dark_root"),
    "teacher.checkpoint",  # the path may change; the teacher itself is verified by its hash
    *("eval.every", "eval.batch_size", "eval.data.root"),
    *("train.log_every", "train.save_every", "train.model_parallel", "train.remat", "train.debug_nans"),
)
POSITIVE = (
    *("train.epochs", "train.batch_size", "train.instances", "train.log_every", "train.save_every"),
    *("train.model_parallel", "eval.batch_size", "optim.lr", "loss.temperature", "norm_ratio.epsilon"),
    *("eval.rerank.k1", "eval.rerank.k2"),
)
NOT_NEGATIVE = (
    *("optim.weight_decay", "optim.warmup_epochs", "eval.every", "eval.expand", "augment.pad", "train.seed"),
    "model.depth",
)
FRACTIONS = (
    *("augment.flip", "augment.erasing", "loss.label_smoothing", "model.drop_path", "optim.momentum"),
    "eval.rerank.lambda_value",
)
CHOICES = {
    "data.cache": ("device", "disk", "none"),
    "optim.name": ("sgd", "adamw"),
    "norm_ratio.scope": ("head", "token"),
    "loss.nckd_weight": ("target", "none"),
    "eval.protocol": tuple(PROTOCOLS),
    "train.precision": ("auto", "float32", "bfloat16"),
}


def validate(config: Config) -> None:
    """Raise InputError for a value out of range, before anything is read or compiled."""
    rules: list[tuple[tuple[str, ...], Callable[[float], bool], str]] = [
        (POSITIVE, lambda v: v > 0, "must be positive"),
        (NOT_NEGATIVE, lambda v: v >= 0, "must not be negative"),
        (FRACTIONS, lambda v: 0 <= v <= 1, "must lie in 0..1"),
        (("model.drop_path", "loss.label_smoothing"), lambda v: v < 1, "must be less than 1"),
    ]
    values = flatten(config)
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {value}; it must be a finite number")
    if config.train.seed >= 2**32:
        raise InputError(f"train.seed is {config.train.seed}; it must be less than 2^32")
    for names, holds, text in rules:
        for name in names:
            if not holds(values[name]):
                raise InputError(f"{name} is {values[name]}; it {text}")
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            raise InputError(f"{name} is {values[name]!r}; choose one of {', '.join(choices)}")
    if config.teacher.enabled and not config.aux.enabled:
        raise InputError("teacher.enabled needs aux.enabled: the teacher sees the auxiliary domain")
    if not config.eval.data.name and (config.eval.data.root or config.eval.data.protocol):
        raise InputError("eval.data.root and eval.data.protocol need eval.data.name: the kind of data set")
    for name in ("mean", "std"):
        fixed_statistic(config.data[name], f"data.{name}")


def fixed_statistic(value: str, name: str) -> tuple[float, ...] | None:
    """Return the numbers that data.mean or data.std stands for; None if they must be measured ("dataset")."""
    if value in ("half", "dataset"):
        return (0.5, 0.5, 0.5) if value == "half" else None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    low = 1e-6 if name.endswith("std") else 0
    if len(numbers) != 3 or not all(low <= number <= 1 for number in numbers):
        raise InputError(f"{name} is {value!r}; choose half, dataset or three numbers in 0..1 like 0.13,0.13,0.12")
    return numbers


def flatten(config: Config) -> dict:
    """Return the options by their full names, {"train.epochs": 120, …}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def save(config: Config, path: Path) -> None:
    write_whole(path, json.dumps(config.to_dict(), indent=1) + "\n")


def load(path: Path) -> Config:
    """Return the config that `save` wrote. InputError if the file is not such a config."""
    config = get_config()
    defaults = flatten(config)
    try:
        config.update(json.loads(read_bounded(path, 2**20)))
        wrong = [
            f"{name} is {value!r}" for name, value in flatten(config).items() if not _is_option(value, defaults[name])
        ]
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not the config of a run of this version: {printable(error, 200)}") from error
    if wrong:
        raise InputError(f"{path} is not the config of a run: {printable(wrong[0], 100)}")
    return config


def _is_option(value: Any, default: Any) -> bool:
    """Return whether a value can be passed on: ml_collections lets numbers of any size, and None, through."""
    if isinstance(value, tuple | list):
        return all(_is_option(part, 0.0) for part in value)
    if isinstance(value, bool) or value is None:
        return default is None or type(value) is type(default)
    if isinstance(value, str):
        return b"\0" not in os.fsencode(value)
    return isinstance(value, int | float) and abs(value) < 2**63


def differences(old: Config, new: Config) -> list[str]:
    """Return each option that differs and changes what is learned, as "name: old -> new"."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]} -> {after[name]}" for name in after if before[name] != after[name] and name not in FREE
    ]
