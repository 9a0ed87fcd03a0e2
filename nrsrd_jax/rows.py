"""The rows of an ablation: those of the paper's tables 1 to 3, and your own."""

import dataclasses
import re
import runpy
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from .command import nearest_option
from .config import VARIANTS, Config
from .data.lists import quoted, read_lines
from .errors import InputError
from .files import expanded
from .option import TYPES
from .options import OPTIONS
from .recipes import RECIPES


@dataclasses.dataclass(frozen=True)
class Row:
    """One training of an ablation.

    Attributes:
        name: the name of the row in tables and of its folders.
        variant: the variant of the config file, such as "nra".
        paper: mAP, Rank-1 and Rank-5 on Night600 in per cent, if the paper has this row.
        backbone: the backbone to use instead of the config's; "" for the config's.
        options: options that the row sets, as pairs such as ("optim.lr", "1e-4").
        recipe: the key in RECIPES of the method to train; "" to train the variant itself.
    """

    name: str
    variant: str
    paper: tuple[float | None, ...] | None = None
    backbone: str = ""
    options: tuple[tuple[str, str], ...] = ()
    recipe: str = ""

    @property
    def is_baseline(self) -> bool:
        """Return whether this row is a baseline that the rows below it are compared with."""
        return self.variant == "baseline" and not (self.options or self.recipe)


TABLES = {
    "1": (
        Row("ide", "baseline", (3.3, 7.8, None), recipe="ide"),
        Row("pcb", "baseline", (6.0, 12.8, None), recipe="pcb"),
        Row("bot", "baseline", (5.4, 11.2, None), recipe="bot"),
        Row("agw", "baseline", (6.1, 12.5, None), recipe="agw"),
        # The paper's 9.2 and 17.2 belong to another form of IDF, on a ViT.
        Row("idf", "baseline", None, recipe="idf"),
        Row("transreid", "baseline", (8.4, 16.0, None), recipe="transreid"),
        Row("transreid_ssl", "baseline", (9.5, 20.0, 36.1)),
        Row("nrsrd", "nrsrd", (12.5, 27.2, 43.9)),
    ),
    "2": (
        Row("baseline", "baseline", (9.5, 20.0, 36.1)),
        Row("nra", "nra", (10.4, 21.8, 39.0)),
        Row("mdl", "mdl", (10.9, 24.2, 41.8)),
        Row("nra_mdl", "nra_mdl", (12.2, 27.1, 41.8)),
        Row("srd", "srd", (11.4, 25.3, 41.4)),
        Row("nrsrd", "nrsrd", (12.5, 27.2, 43.9)),
    ),
    "3": (
        Row("vit_small", "baseline", (8.5, 18.8, 34.2), "vit_small"),
        Row("vit_small-nra", "nra", (8.2, 18.1, 33.2), "vit_small"),
        Row("vit_small_ics", "baseline", (8.3, 17.4, 34.5), "vit_small_ics"),
        Row("vit_small_ics-nra", "nra", (8.7, 18.5, 34.8), "vit_small_ics"),
        Row("vit_base_ics", "baseline", (9.5, 20.0, 36.1), "vit_base_ics"),
        Row("vit_base_ics-nra", "nra", (10.4, 21.8, 39.0), "vit_base_ics"),
    ),
    "none": (),
}
SYNTAX = "write a row as NAME=VARIANT,KEY=VALUE,…"


def parse_row(text: str) -> Row:
    """Parse a row written as NAME=VARIANT,KEY=VALUE,…

    A comma begins an option only if KEY= follows it, so values may contain commas: "image_size=384,128".

    Raises:
        InputError: the text is not such a row, or it sets an option twice.
    """
    head, *options = re.split(r",\s*(?=[\w.]+=)", text.strip())
    name, _, variant = (part.strip() for part in head.partition("="))
    if not re.fullmatch(r"\w[\w.+-]*", name) or not re.fullmatch(r"\w+", variant):
        raise InputError(
            f"{quoted(text)} is not a row; {SYNTAX}, with a NAME of letters, digits and _.+- because it names a folder"
        )
    pairs = [option.partition("=")[::2] for option in options]
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"row {name} sets {twice[0]} twice; set it once")
    return Row(name, variant, options=tuple((key, value.strip()) for key, value in pairs))


def read_rows(file: str | Path) -> list[Row]:
    """Read rows from a text file with one row a line. Empty lines and lines that begin with # are skipped.

    Raises:
        InputError: a line is not a row. The message has the number of the line.
    """
    rows = []
    for number, line in read_lines(expanded(file)):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rows.append(parse_row(line))
            except InputError as error:
                raise InputError(f"{file}, line {number}: {error}") from error
    return rows


def choose_rows(table: str, own: Sequence[str], file: str = "", only: Sequence[str] = ()) -> tuple[Row, ...]:
    """Return the rows of a table, then those of a file, then those given as text.

    Args:
        table: a key of TABLES.
        own: rows written as NAME=VARIANT,KEY=VALUE,…
        file: a text file of rows; "" for none.
        only: the names of the rows to return; empty for all rows.

    Raises:
        InputError: a row is wrong, two rows have the same name, `only` names an unknown row, or no row is left.
    """
    rows = (*TABLES[table], *(read_rows(file) if file else ()), *map(parse_row, own))
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two rows are called {twice[0]}; give one of them another name")
    if not rows:
        raise InputError(f"--table none leaves no rows; give some with --row or --rows ({SYNTAX})")
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"--only: there is no row {unknown[0]}; the rows are {', '.join(names)}")
    return tuple(row for row in rows if row.name in only) if only else rows


def variant_config(file: str, row: Row) -> Config:
    """Return the config that a config file makes for a row's variant.

    Raises:
        InputError: the file has no variants, or not this variant.
    """
    get_config = runpy.run_path(file)["get_config"]
    if not signature(get_config).parameters:
        raise InputError(f"{file} has no variants ({', '.join(VARIANTS)}); an ablation needs a file with variants")
    return get_config(row.variant)


def row_config(file: str, row: Row, seed: int, overrides: dict[str, Any], same_start: bool = False) -> Config:
    """Return the config of one training: the file's variant, changed by the recipe, the overrides and the row.

    If the config has a vit_tiny, the ResNets of the recipes are small too, and TransReID trains the config's vit_tiny;
    this does not depend on `same_start`. An override of model.backbone is for the rows on the config's ViT.
    `{backbone}` in init.checkpoint is replaced by the name of the backbone.

    Args:
        file: the config file.
        row: the row to train.
        seed: is added to train.seed.
        overrides: options by name, for all rows.
        same_start: whether to use only the method of the recipe, and not how its official code trains.

    Raises:
        InputError: as `variant_config`, the row sets an unknown option or an invalid value, or model.backbone is
            overridden in a row that has its own or, without `same_start`, in a row whose recipe sets it.
    """
    config = variant_config(file, row)
    if row.recipe:
        recipe, backbone = RECIPES[row.recipe], overrides.get("model.backbone", config.model.backbone)
        options = ({} if same_start else recipe.training) | recipe.method
        if "model.backbone" in options and "model.backbone" in overrides:
            if not same_start:
                raise InputError(
                    f"model.backbone={backbone}: its official code trains {options['model.backbone']}; leave it out, "
                    "or add --same-start, with which it applies to the rows on the config's ViT"
                )
            overrides = {name: value for name, value in overrides.items() if name != "model.backbone"}
        config.update_from_flattened_dict(options)
        if backbone.startswith("vit_tiny"):
            config.model.backbone = recipe.small or backbone
    # The user's options override those of the recipe; the row's own options, below, override both.
    config.update_from_flattened_dict(overrides)
    if row.recipe and "resnet" in config.model.backbone:
        # A value for all rows is for their ViTs: a ResNet refuses it.
        config.model.depth, config.model.drop_path = 0, OPTIONS["model.drop_path"].default
        # A checkpoint that is named for all rows has the weights of a ViT, which cannot start a ResNet.
        if "{backbone}" not in config.init.checkpoint:
            config.init.checkpoint = ""
    if row.backbone:
        if "model.backbone" in overrides:
            raise InputError(
                f"model.backbone={overrides['model.backbone']}: this row trains {row.backbone}; leave it out, or give "
                "your own --row"
            )
        config.model.backbone = row.backbone
    for key, text in row.options:
        config.update_from_flattened_dict({key: _read(config, key, text)})
    # All methods on a ResNet start from the same weights, so {backbone} is resnet50 for bot_resnet50.
    family = re.sub(r"^.+_(?=resnet)", "", config.model.backbone)
    config.init.checkpoint = config.init.checkpoint.replace("{backbone}", family)
    config.train.seed += seed
    return config


def _read(config: Config, key: str, text: str) -> Any:
    """Return the value that --config.KEY=TEXT would set. Raises InputError if KEY is unknown or TEXT does not fit."""
    if key not in OPTIONS:
        raise InputError(f"{key} is not an option; {nearest_option(key)}")
    # The flags of ml_collections parse the text, so that a row reads values exactly as the command line does.
    values = flags.FlagValues()
    argv = ["", f"--config.{key}={text}"]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except flags.Error as error:
        raise InputError(f"{key} is {quoted(text)}; it must be {TYPES[OPTIONS[key].kind][0]}") from error
    return config_flags.get_override_values(values["config"])[key]
