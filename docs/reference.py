"""Markdown of the reference pages: the commands from their argument parsers, the options from options.py."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable

from absl import flags

from nrsrd_jax import command
from nrsrd_jax.cli import VERBS
from nrsrd_jax.data.readers import LAYOUTS
from nrsrd_jax.models import MODELS
from nrsrd_jax.options import OPTIONS


class _Captured(BaseException):
    """Carries what a command would parse its arguments with: an ArgumentParser, or the text of its help."""


def commands() -> str:
    """Return a section for each verb: what its help says, and a table of its flags."""
    sections = [_section(f"nrsrd {verb}", module, "command") for verb, (module, _) in VERBS.items()]
    return "\n".join([*sections, _section("python convert/to_torch.py", "weights.to_torch", "main")])


def options() -> str:
    """Return a table of options for each group."""
    groups: dict[str, list[str]] = {}
    known = {"data.name": LAYOUTS, "model.backbone": MODELS}
    for option in OPTIONS.values():
        notes = [option.text]
        notes += [f"Known: {', '.join(f'`{name}`' for name in known[option.name])}."] if option.name in known else []
        notes += [f"In {option.unit}."] if option.unit else []
        notes += [f"{option.range[:1].upper()}{option.range[1:]}."] if option.range else []
        notes += ["May change on resume."] if option.resumable else []
        default = ",".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        shown = "" if default in (None, "") else f"`{default}`"
        group = option.name.rpartition(".")[0] or "general"
        groups.setdefault(group, []).append(f"| `{option.name}` | {shown} | {_cell(' '.join(notes))} |")
    header = ["", "| option | default | meaning |", "|---|---|---|"]
    return "\n".join(line for group, rows in groups.items() for line in ("", f"## {group}", *header, *rows)) + "\n"


def _section(title: str, module: str, entry: str) -> str:
    doc, rows = _parsed(importlib.import_module(f"nrsrd_jax.{module}"), entry)
    table = ["| flag | meaning |", "|---|---|", *(f"| `{_bars(flag)}` | {_cell(text)} |" for flag, text in rows)]
    return "\n".join(["", f"## {title}", "", _prose(doc), "", *table, ""])


def _parsed(module, entry: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the help text of a command, and its flags with what they mean, without running it."""
    # absl's flags belong to the process, so those of one command must be removed before the next is read.
    before, defined, arguments = set(flags.FLAGS), [], sys.argv

    def stop_at_parser(parser: argparse.ArgumentParser, *_, **__) -> None:
        defined.append(
            (parser.description, [_argument(parser, each) for each in parser._actions if each.dest != "help"])
        )
        # The command must not run, and this leaves it from anywhere.
        raise _Captured

    def stop_at_flags(main: Callable, doc: str, *_) -> None:
        names = sorted(set(flags.FLAGS) - before - {"config_file_paths"})
        ours = [flags.FLAGS[name] for name in names if not name.startswith("config.")]
        defined.append((doc, [_flag(each) for each in {each.name: each for each in ours}.values()]))
        raise _Captured

    parse, run = command.Parser.parse_known_args, command.run
    sys.argv = ["nrsrd", "--help"]
    command.Parser.parse_known_args = stop_at_parser
    # `nrsrd pretrain` has no `run` of its own: nrsrd_jax.train reads its flags.
    train = importlib.import_module("nrsrd_jax.train")
    runs = [each for each in (module, train) if getattr(each, "run", None) is command.run]
    for each in runs:
        each.run = stop_at_flags
    try:
        getattr(module, entry)()
    except _Captured:
        pass
    finally:
        sys.argv = arguments
        command.Parser.parse_known_args = parse
        for each in runs:
            each.run = run
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
    return defined[0]


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    name = ", ".join(action.option_strings)
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if isinstance(value, tuple):
        value = " ".join(value)
    takes_value = action.nargs != 0
    return f"{name} {value}".strip() if takes_value else name, (action.help or "") % (
        vars(action) | {"prog": parser.prog}
    )


def _flag(flag: flags.Flag) -> tuple[str, str]:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = "" if flag.default in (None, "", [], False) or flag.name == "config" else f" Default: {flag.default}."
    return name, f"{flag.help}{default}"


def _prose(doc: str) -> str:
    """Return a docstring as Markdown: its indented lines as code blocks, the other lines as text."""
    blocks = re.split(r"\n\s*\n", doc.strip("\n"))
    return "\n\n".join(
        f"```text\n{block}\n```" if block.startswith("  ") else _text(block) for block in blocks if block.strip()
    )


def _text(text: str) -> str:
    """Return text with the characters escaped that mean something in Markdown, except in `code`."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([*_<>\[\]\\$])", r"\\\1", part) for part in parts)


def _cell(text: str) -> str:
    return _bars(_text(" ".join(text.split())))


def _bars(text: str) -> str:
    """Return text for a table's cell, where an unescaped bar would begin the next cell."""
    return text.replace("|", "\\|")
