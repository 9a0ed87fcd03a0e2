"""The rows of an ablation: those of the paper's tables 2 and 3, and your own."""

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
    """One training.

    Attributes:
        name: names the row in tables, and its folders.
        variant: of the config file.
        paper: mAP, Rank-1 and Rank-5 on Night600 in per cent, for a row of the paper.
        backbone: replaces the config's, if not empty.
        options: of your own row, ("optim.lr", "1e-4") and so on.
        recipe: of the method that the row trains, in RECIPES; "" for the variant itself.
    """

    name: str
    variant: str
    paper: tuple[float | None, ...] | None = None
    backbone: str = ""
    options: tuple[tuple[str, str], ...] = ()
    recipe: str = ""

    @property
    def is_baseline(self) -> bool:
        """Return whether the rows below are compared with this one."""
        return self.variant == "baseline" and not (self.options or self.recipe)


TABLES = {
    "1": (
        Row("ide", "baseline", (3.3, 7.8, None), recipe="ide"),
        Row("pcb", "baseline", (6.0, 12.8, None), recipe="pcb"),
        Row("bot", "baseline", (5.4, 11.2, None), recipe="bot"),
        Row("agw", "baseline", (6.1, 12.5, None), recipe="agw"),
        Row("idf", "baseline", None, recipe="idf"),  # The paper's 9.2 / 17.2 are those of another form, on a ViT.
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
    """Return the row that NAME=VARIANT,KEY=VALUE,… stands for. InputError for other text.

    A comma begins an option only where KEY= follows it, so that values may hold commas: "image_size=384,128".
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
        raise InputError(f"row {name} sets {twice[0]} twice")
    return Row(name, variant, options=tuple((key, value.strip()) for key, value in pairs))


def read_rows(file: str | Path) -> list[Row]:
    """Return the rows of a text file, one a line; a line that is empty or begins with # is a comment.

    InputError, with the line's number, if one is wrong.
    """
    rows = []
    for number, line in read_lines(expanded(file)):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                rows.append(parse_row(line))
            except InputError as error:
                raise InputError(f"{file}, line {number}: {error}") from error
    return rows


def choose_rows(table: str, own: Sequence[str], file: str = "") -> tuple[Row, ...]:
    """Return the rows of a table, then those of the file and those given as text. InputError if names repeat."""
    rows = (*TABLES[table], *(read_rows(file) if file else ()), *map(parse_row, own))
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two rows are called {twice[0]}; give one of them another name")
    if not rows:
        raise InputError(f"--table none leaves no rows; give some with --row or --rows ({SYNTAX})")
    return rows


def variant_config(file: str, row: Row) -> Config:
    """Return what a config file says for a row's variant. InputError if the file has no variants, or not this one."""
    get_config = runpy.run_path(file)["get_config"]
    if not signature(get_config).parameters:
        raise InputError(f"{file} has no variants ({', '.join(VARIANTS)}); an ablation needs a file with variants")
    return get_config(row.variant)


def row_config(file: str, row: Row, seed: int, overrides: dict[str, Any], same_start: bool = False) -> Config:
    """Return the config of one training: the file's variant, its recipe, the overrides, and the row's own options.

    `{backbone}` in init.checkpoint is filled in, and `seed` added to train.seed. With `same_start` the method alone is
    taken of the recipe, not how its official code trains; in its small form if the file's backbone is a small one.
    InputError as `variant_config`, and if the row sets an unknown option or an invalid value.
    """
    config = variant_config(file, row)
    if row.recipe:
        recipe, small = RECIPES[row.recipe], config.model.backbone.startswith("vit_tiny")
        config.update_from_flattened_dict(({} if same_start else recipe.training) | recipe.method)
        if small and recipe.small:
            config.model.backbone = recipe.small
    config.update_from_flattened_dict(overrides)
    if row.recipe and "resnet" in config.model.backbone:
        config.model.depth = 0
        if "{backbone}" not in config.init.checkpoint:  # A ViT's weights cannot start a ResNet.
            config.init.checkpoint = ""
    if row.backbone:
        config.model.backbone = row.backbone
    for key, text in row.options:
        config.update_from_flattened_dict({key: _read(config, key, text)})
    # The methods on a ResNet start from the same weights: {backbone} is resnet50 for bot_resnet50.
    family = re.sub(r"^.+_(?=resnet)", "", config.model.backbone)
    config.init.checkpoint = config.init.checkpoint.replace("{backbone}", family)
    config.train.seed += seed
    return config


def _read(config: Config, key: str, text: str) -> Any:
    """Return the value that --config.KEY=TEXT would set. InputError for an unknown option or a wrong type."""
    if key not in OPTIONS:
        raise InputError(f"{key} is not an option; {nearest_option(key)}")
    values = flags.FlagValues()
    argv = ["", f"--config.{key}={text}"]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except flags.Error as error:
        raise InputError(f"{key} is {quoted(text)}; it must be {TYPES[OPTIONS[key].kind][0]}") from error
    return config_flags.get_override_values(values["config"])[key]
