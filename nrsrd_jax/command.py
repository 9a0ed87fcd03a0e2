"""What train.py and eval.py share: one line for a mistake of the user's, and names of runs."""

import functools
import sys
from pathlib import Path

from ml_collections import config_flags

from .errors import InputError


def entry_point(main):
    """Prints an InputError as one line and exits with status 2; anything else is a fault of ours and is shown whole."""

    @functools.wraps(main)
    def wrapped(argv):
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument {argv[1]!r}; options begin with --")
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def config_name(holder) -> str:
    """"night600-nrsrd" of a config flag that holds configs/night600.py."""
    stem = Path(config_flags.get_config_filename(holder).partition(":")[0]).stem
    variant = holder.value.variant
    return stem if stem == variant else f"{stem}-{variant}"
