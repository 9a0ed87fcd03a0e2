"""Parse the flags of a command, and print one line instead of a traceback if the user made a mistake."""

import argparse
import contextlib
import difflib
import io
import math
import os
import re
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from .config import Config
from .errors import InputError, Stopped, say
from .options import OPTIONS

PACKAGE = Path(__file__).parent
# The shipped configs lie inside an installed package, and beside the package in a clone.
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"


def define_config(help_text: str, default: str = "night600") -> flags.FlagHolder:
    """Define --config FILE[:VARIANT], by default the shipped `default`, and --config.KEY=VALUE for all options."""
    with _one_line_errors():
        holder = config_flags.DEFINE_config_file("config", str(CONFIGS / f"{default}.py"), help_text)
    return holder


def define_preempted_status() -> flags.FlagHolder:
    """Define --preempted_status, for the commands that train."""
    text = "The exit status after SIGTERM, on which the command saves a checkpoint and stops."
    return flags.DEFINE_integer("preempted_status", 143, text, 0, 255)


def run(main: Callable[[], None], doc: str | None, interrupted: str = "interrupted") -> None:
    """Parse the flags, and call `main()` as `one_line` does. A wrong flag also gives one line and status 2.

    --help prints `doc` and the flags that this package defines. Ctrl-C prints `interrupted`.
    """
    logging.set_verbosity(logging.WARNING)
    # absl's --help shows only the docstring and the flags of the script that was started, so make ours look like them.
    sys.modules["__main__"].__doc__ = doc
    ours = [
        each
        for name, found in flags.FLAGS.flags_by_module_dict().items()
        if name.startswith("nrsrd_jax.")
        for each in found
    ]
    for flag in (*ours, flags.FLAGS["config"]):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; options begin with --")
        main()

    one_line(lambda: app.run(guarded, flags_parser=_parse), interrupted)


class Parser(argparse.ArgumentParser):
    """Parse arguments: show a docstring unchanged as the help, and end with one line if a flag is wrong."""

    def __init__(self, doc: str | None, prog: str | None = None):
        layout = argparse.RawDescriptionHelpFormatter
        # `split_config_arguments` would not find a shortened --config.
        super().__init__(prog, description=doc, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; see --help")


def positive(text: str) -> int:
    """Return a flag's value as a whole number. Raise ArgumentTypeError if it is not a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def number(text: str) -> float:
    """Return a flag's value as a number, or NaN if it is not a number; NaN fails every check of a range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_embedding_flags(parser: Parser) -> None:
    """Add the flags of a command that embeds crops: --feature, --flip, --batch-size and --precision."""
    add_model_flags(parser)
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N", help="crops per batch; default: 256")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="the data type of matrix products; default: auto, which is bfloat16 on a GPU and float32 on a CPU",
    )


def add_model_flags(parser: Parser) -> None:
    """Add the flags that choose the features of a model: --feature and --flip."""
    parser.add_argument(
        "--feature",
        choices=("auto", "cls", "centred", "neck"),
        default="auto",
        help="the feature to use, as eval.feature; auto: centred for a trained ViT, else cls; default: %(default)s",
    )
    parser.add_argument("--flip", action="store_true", help="average the features of a crop and its mirror image")


def one_line(main: Callable[[], None], interrupted: str = "interrupted") -> None:
    """Call `main()`; if the user or the machine is at fault, end the process with one line instead of a traceback.

    The exit status is 2 after an InputError, a file system error or too little memory, the status of `Stopped` after a
    signal, and 130 after Ctrl-C, which prints `interrupted`.
    """
    # Pillow warns about unusual images. If an image cannot be used, this package raises its own error.
    warnings.filterwarnings("ignore", module="PIL")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode must not stop the command.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        except SystemExit:
            # The end of the process would flush too, but too late to catch a BrokenPipeError of --help.
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except InputError as error:
        _leave(f"error: {error}", 2)
    except Stopped as end:
        _leave(str(end), end.status, error=False)
    except BrokenPipeError:
        # The reader of the output, such as `| head`, has stopped reading.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        _leave(f"error: {error.filename}: {error.strerror}", 2)
    except MemoryError:
        _leave("error: there is too little free memory; free some, or give the command less data", 2)
    except RecursionError:
        # This package does not recurse deeply, so a file that was read must be nested too deeply.
        _leave("error: a file is nested too deeply to be one that this program wrote", 2)
    except RuntimeError as error:
        # JAX's own error class is not used here, because importing JAX would make --help slow.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _leave(
            "error: the device has too little memory: lower train.batch_size or eval.batch_size, show the program more "
            f"devices, or set data.cache=disk ({str(error).partition(chr(10))[0][:200]})",
            2,
        )
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        _leave(interrupted, 130)


def _parse(argv: list[str]) -> list[str]:
    _refuse_repeated(argv)
    argv = _with_our_configs(argv)
    with _one_line_errors():
        try:
            rest = flags.FLAGS(argv)
        except SystemExit as end:
            # absl exits with status 1 after --help.
            sys.exit(0 if end.code == 1 else end.code)
        # absl reads the config file only when it is used; use it here, so that its errors are caught.
        _ = flags.FLAGS.config.to_dict
        return rest


def _refuse_repeated(argv: list[str]) -> None:
    """End the process if an option of several numbers is given twice: absl would join both lists."""
    names = _option_names(argv)
    for name in names:
        if names.count(name) > 1 and name in OPTIONS and typing.get_origin(OPTIONS[name].kind) is tuple:
            _fail(f"--config.{name} is given {names.count(name)} times; give it once, with commas between its numbers")


def _option_names(argv: list[str]) -> list[str]:
    """Return the KEY of each --config.KEY."""
    named = [argument.lstrip("-") for argument in argv if argument.startswith(("--config.", "-config."))]
    return [argument.partition("=")[0].removeprefix("config.") for argument in named]


def _with_our_configs(argv: list[str]) -> list[str]:
    """Replace `--config NAME` and `--config configs/NAME.py` by the path of the shipped config of that name.

    A file of that name in the current folder takes precedence.
    """

    def found(value: str) -> str:
        name, colon, variant = value.partition(":")
        if os.path.isfile(name):
            return value
        for own in (f"{name}.py", f"configs/{name}.py"):
            if os.path.isfile(own):
                return f"{own}{colon}{variant}"
        named = re.fullmatch(r"(?:configs/)?(\w+)(?:\.py)?", name)
        ours = CONFIGS / f"{named[1]}.py" if named else CONFIGS
        if name.isidentifier() and not ours.is_file():
            known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.py")))
            _fail(f"there is no config {name}; choose one of {known}, or give a file")
        return f"{ours}{colon}{variant}" if ours.is_file() else value

    def replaced(before: str, argument: str) -> str:
        if argument.startswith(("--config=", "-config=")):
            return f"--config={found(argument.partition('=')[2])}"
        return found(argument) if before in ("--config", "-config") else argument

    return [replaced(before, argument) for before, argument in zip(["", *argv], argv, strict=False)]


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except flags.Error as error:
        # The message may include the traceback of the config file, so take the useful line from it.
        text = str(error)
        if "takes 0 positional arguments" in text:
            _fail(text.partition("--config=")[2].partition(":")[0] + " has no variants; leave out the colon")
        if "InputError: " in text:
            _fail(text.rpartition("InputError: ")[2].strip().splitlines()[0])
        if text.endswith("is not a dict."):
            group = text.partition("--")[2].partition("=")[0]
            _fail(f"--{group} is a group of options; give one of them: {_options_of(group.partition('.')[2])}")
        lines = text.strip().splitlines()
        _fail(lines[0] + (f" {lines[-1].strip()}" if len(lines) > 1 else ""))
    except (AttributeError, KeyError) as error:
        _fail(_unknown_option(error))
    except BrokenPipeError:
        # The reader of --help has stopped reading.
        raise
    except OSError as error:
        _fail("cannot read the config file: " + " ".join(str(error).rpartition("path]:")[2].split()))
    except Exception as error:
        # A config file is Python code, so it can raise anything.
        _fail(f"the config file fails{_place(error)}: {type(error).__name__}: {error}")


def _unknown_option(error: Exception) -> str:
    """Return the message about an unknown option on the command line or in a config file."""
    for name in _option_names(sys.argv[1:]):
        if name not in OPTIONS:
            return f"there is no option --config.{name}; {nearest_option(name)}"
    cause = error.args[0] if error.args else ""
    text = str(cause.args[0] if isinstance(cause, KeyError) and cause.args else cause)
    # ml_collections quotes the key first, and appends all of its neighbours' values.
    name = text.split('"')[1] if text.count('"') > 1 else text.strip("'\"")
    return f"the config file{_place(error)} sets {name}, which is not an option; {nearest_option(name)}"


def nearest_option(name: str) -> str:
    """Return a hint for an unknown option: similar names, or otherwise the options of its group."""
    names, last = sorted(OPTIONS), name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, 3, 0.75)
    close += [option for option in names if difflib.get_close_matches(last, [option.rpartition(".")[2]], 1, 0.75)]
    if close:
        return "did you mean " + " or ".join(dict.fromkeys(close[:3])) + "?"
    return f"choose one of {_options_of(name.rpartition('.')[0])}"


def _options_of(group: str) -> str:
    """Return the names of a group's options, or of all groups if the group is unknown."""
    names = [name for name in sorted(OPTIONS) if name.startswith(f"{group}.")]
    return ", ".join(names or sorted({name.partition(".")[0] for name in OPTIONS}))


def _place(error: BaseException) -> str:
    """Return where in the config file an error was raised, as " (FILE, line N)", or "" if it was raised elsewhere."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "get_config"]
    named = [frame for frame in frames if PACKAGE not in Path(frame.filename).parents]
    return f" ({named[-1].filename}, line {named[-1].lineno})" if named else ""


def _leave(message: str, status: int, error: bool = True) -> NoReturn:
    """Print the message and end the process immediately, also if stdout cannot be written."""
    for step in (sys.stdout.flush, lambda: say(message, error=error)):
        with contextlib.suppress(OSError):
            step()
    # In a normal exit, threads of XLA and Orbax would continue to write, or crash if a signal interrupted JAX.
    os._exit(status)


def _fail(message: str) -> NoReturn:
    say(f"error: {message}", error=True)
    sys.exit(2)


def split_config_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the --config and --config.KEY arguments with their values, and the other arguments."""
    ours, rest = list[str](), list[str]()
    for before, argument in zip(["", *arguments], arguments, strict=False):
        # The argument after a Boolean option is not its value.
        option = OPTIONS.get(before.removeprefix("--config."))
        takes_value = before.startswith("--config") and "=" not in before and not (option and option.kind is bool)
        value_of_ours = takes_value and before in ours and not argument.startswith("--")
        (ours if argument.startswith("--config") or value_of_ours else rest).append(argument)
    return ours, rest


def read_config(arguments: list[str]) -> Config:
    """Return the config of --config FILE[:VARIANT] and --config.KEY=VALUE, for a command that parses its other flags.

    Without FILE it is the baseline on Night600. A wrong option ends the process with one line and status 2.
    """
    return _config_values(arguments).config


def read_overrides(arguments: list[str]) -> tuple[Config | None, dict]:
    """Return the config as `read_config` does, or None without FILE, and the overrides as {"data.root": …}."""
    values = _config_values(arguments)
    return values.config if values["config"].present else None, config_flags.get_override_values(values["config"])


def _config_values(arguments: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    _refuse_repeated(arguments)
    argv = _with_our_configs(["", *arguments])
    with _one_line_errors():
        baseline = f"{CONFIGS / 'night600.py'}:baseline"
        config_flags.DEFINE_config_file("config", baseline, flag_values=values, sys_argv=argv)
        if rest := values(argv)[1:]:
            _fail(f"unexpected argument {rest[0]!r}; options are --config.KEY=VALUE")
        _ = values.config.to_dict
        return values


def config_name() -> str:
    """Return the name of a run, such as "night600-nrsrd" for configs/night600.py:nrsrd."""
    stem = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]).stem
    variant = flags.FLAGS.config.variant
    return stem if stem == variant else f"{stem}-{variant}"


def config_overrides() -> dict:
    """Return the overrides --config.KEY=VALUE of the command line as {"data.root": …}."""
    return config_flags.get_override_values(flags.FLAGS["config"])
