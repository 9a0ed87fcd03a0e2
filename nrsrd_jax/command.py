"""What all commands share: flags are parsed, and a mistake of the user's ends in one line."""

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from absl import app, flags, logging
from ml_collections import config_flags

from .errors import InputError, Stopped, printable

CONFIGS = Path(__file__).parent.parent / "configs"


def define_config(help_text: str) -> flags.FlagHolder:
    """The flag --config FILE[:VARIANT], with --config.KEY=VALUE for every option; configs/night600.py by default."""
    with _one_line_errors():
        holder = config_flags.DEFINE_config_file("config", str(CONFIGS / "night600.py"), help_text)
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])  # so that --help shows it
    return holder


def run(main: Callable[[], None], interrupted: str = "interrupted") -> NoReturn:
    """Parses the flags and calls `main()` as `one_line` does. InputError, also of the flags: one line, status 2."""
    logging.set_verbosity(logging.WARNING)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}; options begin with --")
        one_line(main, interrupted)

    app.run(guarded, flags_parser=_parse)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows a docstring as it stands, and ends with one line where a flag is wrong."""

    def __init__(self, doc: str | None, prog: str | None = None):
        super().__init__(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; see --help")


def positive(text: str) -> int:
    """A flag's value that is a whole number from 1 on; ValueError if it is none."""
    number = int(text)
    if number < 1:
        raise ValueError(f"{number} is less than 1")
    return number


def one_line(main: Callable[[], None], interrupted: str = "interrupted") -> None:
    """Calls `main()`; an InputError, or what the file system refuses, is printed as one line, and the exit status is 2.

    Ctrl-C prints `interrupted`; the status is 130. `Stopped` is no error.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of odd pictures: what matters about them is an error of ours
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to fail
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _leave(f"error: {error}", 2)
    except Stopped as end:
        _leave(str(end), 0, sys.stdout)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        _leave(f"error: {error.filename}: {error.strerror}", 2)
    except RuntimeError as error:  # of JAX, which is not imported here, so that --help is quick
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _leave(
            "error: the device has too little memory: lower train.batch_size or eval.batch_size, show the program more "
            f"devices, or set data.cache=disk ({str(error).partition(chr(10))[0][:200]})",
            2,
        )
    except KeyboardInterrupt:
        _leave(f"\n{interrupted}", 130)


def _parse(argv: list[str]) -> list[str]:
    with _one_line_errors():
        try:
            rest = flags.FLAGS(argv)
        except SystemExit as end:
            sys.exit(0 if end.code == 1 else end.code)  # absl ends with 1 after --help
        _ = flags.FLAGS.config.to_dict  # a config file that cannot be read shows only when it is used
        return rest


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except flags.Error as error:  # a traceback of the config file's is part of its message
        text = str(error)
        if "takes 0 positional arguments" in text:
            _fail(text.partition("--config=")[2].partition(":")[0] + " has no variants: leave out the colon")
        if "InputError: " in text:
            _fail(text.rpartition("InputError: ")[2].strip().splitlines()[0])
        lines = text.strip().splitlines()
        _fail(lines[0] + (f" {lines[-1].strip()}" if len(lines) > 1 else ""))
    except (AttributeError, KeyError) as error:
        cause = error.args[0]
        text = cause.args[0] if isinstance(cause, KeyError) else cause
        _fail("unknown option: " + " ".join(str(text).replace("'", "").split()))
    except OSError as error:
        _fail("cannot read the config file: " + " ".join(str(error).rpartition("path]:")[2].split()))
    except Exception as error:  # whatever a config file does
        _fail(f"the config file fails: {type(error).__name__}: {error}")


def _leave(message: str, status: int, stream: TextIO | None = None) -> NoReturn:
    """Prints the message (to stderr) and ends the process at once.

    In an orderly exit threads of XLA and Orbax go on talking, or crash where a signal came in the middle of JAX.
    """
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        print(printable(message), file=stream or sys.stderr, flush=True)
    os._exit(status)


def _fail(message: str) -> NoReturn:
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def config_name() -> str:
    """The name of a run: "night600-nrsrd" for configs/night600.py:nrsrd."""
    stem = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]).stem
    variant = flags.FLAGS.config.variant
    return stem if stem == variant else f"{stem}-{variant}"


def config_overrides() -> dict:
    """The --config.KEY=VALUE of the command line, {"data.root": …}."""
    return config_flags.get_override_values(flags.FLAGS["config"])
