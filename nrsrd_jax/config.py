"""Make the ConfigDict that the command line and `configs/` set options on, and read and write it as config.json.

options.py defines the options. `configs/` holds the runs of the paper as changes to the defaults.
"""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from .errors import InputError, printable
from .files import read_bounded, write_whole
from .options import OPTIONS, Options, flatten

# A ConfigDict checks names and types when options are set. The type is Any because pyright cannot know its fields;
# `options.read_options` turns it into typed Options.
Config = Any

# The modules that each row of the paper's table 2 switches on. `nrsrd_plus` is this project's own variant.
VARIANTS = {
    "baseline": (),
    "nra": ("norm_ratio",),
    "mdl": ("aux",),
    "nra_mdl": ("norm_ratio", "aux"),
    "srd": ("aux", "teacher"),
    "nrsrd": ("norm_ratio", "aux", "teacher"),
    "nrsrd_plus": (),
}
# The options of nrsrd_plus, which scored best on held-out identities (docs/evidence.md): images as bright as in the
# pretraining, features averaged with those of mirrored images, and a loss that keeps features from becoming parallel.
# With these options, the paper's modules gave no further gain.
PLUS = {"data.brighten": 0.4, "eval.flip": True, "loss.spread_real": 5.0}


def get_config(variant: str = "nrsrd") -> Config:
    """Return the default config, the paper's run on Night600, in one of VARIANTS. InputError for an unknown variant."""
    if variant not in VARIANTS:
        raise InputError(f"there is no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config: Config = ConfigDict()
    for name, option in OPTIONS.items():
        *groups, last = name.split(".")
        group = config
        for each in groups:
            if each not in group:
                group[each] = ConfigDict()
            group = group[each]
        unset = config_dict.placeholder(typing.get_origin(option.kind) or option.kind)
        group[last] = unset if option.default is None else option.default
    config.variant = variant
    config.model.norm_ratio = "norm_ratio" in VARIANTS[variant]
    config.aux.enabled = "aux" in VARIANTS[variant]
    config.teacher.enabled = "teacher" in VARIANTS[variant]
    if variant == "nrsrd_plus":
        config.update_from_flattened_dict(PLUS)
    return config.lock()


def save_config(options: Options, path: Path) -> None:
    """Write the options as JSON, for `load_config`."""
    write_whole(path, json.dumps(dataclasses.asdict(options), indent=1) + "\n")


def load_config(path: Path) -> Config:
    """Return the config that `save_config` wrote. Raise InputError if the file does not hold a config."""
    config = get_config()
    try:
        config.update(json.loads(read_bounded(path, 2**20)))
        values = flatten(config)
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not the config of a run of this version: {printable(error, 200)}") from error
    for name, option in OPTIONS.items():
        try:
            option.check(values.get(name))
        except InputError as error:
            raise InputError(f"{path} is not the config of a run: {error}") from error
    return config


def config_of(run: Path | None) -> Config:
    """Return the config of a run, or the default config if `run` is None. Raises as `load_config` does."""
    return load_config(run / "config.json") if run else get_config()


def differences(old: Options, new: Options) -> list[str]:
    """Return each difference in an option that a resumed run must not change, as "name: old -> new"."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name, option in OPTIONS.items()
        if before[name] != after[name] and not option.resumable
    ]
