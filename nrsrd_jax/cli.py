"""Run the command `nrsrd VERB …` of the installed package."""

import importlib
import sys

from . import interrupts
from .errors import say

# Each verb with the module whose `command()` runs it, and its line in `nrsrd --help`.
VERBS = {
    "train": ("train", "train a model, or continue a run"),
    "pretrain": ("pretrain", "pretrain a backbone on crops without labels"),
    "select": ("select", "choose crops for pretraining that resemble a target domain"),
    "eval": ("eval", "evaluate a run or a checkpoint; --report writes a page"),
    "compare": ("compare", "compare runs, with confidence intervals of the differences"),
    "convert": ("convert", "import PyTorch weights"),
    "export": ("export.__main__", "write a model as ONNX, StableHLO or PyTorch, and check the file"),
    "check": ("check", "check a data set before training"),
    "embed": ("embed", "embed your own crops into a gallery"),
    "search": ("search", "search a gallery for people"),
    "index": ("index", "make an index of a large gallery"),
    "cluster": ("cluster", "group the crops of a gallery into people, without labels"),
    "forget": ("forget", "delete crops from a gallery for good"),
    "calibrate": ("calibrate", "measure on labelled crops what similarities mean"),
    "ablation": ("ablation", "train the rows of a table of the paper and compare them"),
    "analysis": ("analysis.__main__", "show what attention does in a checkpoint"),
    "lowlight": ("lowlight.__main__", "show images as they would look in the dark"),
}


def usage() -> list[str]:
    """Return the lines of `nrsrd --help`."""
    lines = ["Re-identify people in the dark.", "", "  nrsrd VERB …", "  nrsrd VERB --help", ""]
    return lines + [f"{verb:<10}{text}" for verb, (_, text) in VERBS.items()]


def main() -> None:
    """Run the verb that the first argument names."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        # Imported here, because the command of a verb imports it itself.
        from .command import one_line

        one_line(lambda: say(*usage()))
    elif verb == "--version":
        from importlib.metadata import version

        say(f"nrsrd-jax {version('nrsrd-jax')}")
    elif verb in VERBS:
        # Each command parses sys.argv itself, as it does with python -m, so remove the verb from it.
        sys.argv = [f"nrsrd {verb}", *sys.argv[2:]]
        run(VERBS[verb][0])
    else:
        say(f"error: there is no verb {verb!r}; choose one of {', '.join(VERBS)}", error=True)
        sys.exit(2)


def run(module: str) -> None:
    """Run the command of a module of this package, such as "train". From here on, Ctrl-C gives one line."""
    with interrupts.handled():
        # Import only this module: some of them import JAX, which takes seconds.
        importlib.import_module(f".{module}", __package__).command()


if __name__ == "__main__":
    main()
