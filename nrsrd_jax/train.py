"""Train a Re-ID model. The same command continues an interrupted run.

  nrsrd train --config night600:nrsrd --config.data.root=DIR [--workdir runs/x] [--config.KEY=VALUE ...]

--config names a config of the package, or your own file; the word after the colon is its variant. `nrsrd train
--options` prints every option with its default, unit, range and choices. In a clone, `python train.py --config
configs/night600.py:nrsrd` does the same, and `--config configs/demo.py` uses the images that come with the code.
"""

import textwrap
from pathlib import Path

from absl import flags

from .command import config_name, define_config, define_preempted_status, run
from .data.readers import LAYOUTS
from .errors import say
from .options import OPTIONS


def command(doc: str | None = __doc__, default: str = "night600") -> None:
    """Run `nrsrd train` with the arguments of the process.

    Args:
        doc: the text of --help.
        default: the name of the config without --config.
    """
    config = define_config("The config: a name such as night600, or a file; with :VARIANT if it has variants.", default)
    workdir = flags.DEFINE_string("workdir", "", "The folder of the run; default: runs/CONFIG-VARIANT.")
    status = define_preempted_status()
    show = flags.DEFINE_bool(
        "options", False, "Print every --config.KEY with its default, range and meaning, and exit."
    )

    def main() -> None:
        if show.value:
            say(*describe())
            return
        # Import these after parsing the flags, so that --help is quick.
        from . import processes

        processes.join()
        from .training import train

        folder = workdir.value or Path("runs") / config_name()
        scores = train(config.value, folder, preempted_status=status.value)
        names = {"mAP": "mAP", "rank1": "Rank-1", "training_accuracy": "training accuracy"}
        names |= {"loss": "loss", "teacher_information": "teacher's information"}
        score = " ".join(f"{title} {scores[name]:.3f}" for name, title in names.items() if name in scores)
        where = " on people held out of training" if config.value.data.holdout else ""
        say(f"done: {score or 'not evaluated'}{where}; the run is in {folder}")

    run(main, doc, "interrupted; saved checkpoints are kept, and the same command continues from the last one")


def describe() -> list[str]:
    """Return the lines of `nrsrd train --options`: each option with its default, unit, range, choices and meaning."""
    # Imported here because it imports JAX, which takes seconds and is not needed to read options.
    from .models import MODELS

    names = {"data.name": LAYOUTS, "model.backbone": MODELS}
    lines = []
    for each in OPTIONS.values():
        default = ",".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
        notes = ["no default" if default is None else f"default {'empty' if default == '' else default}"]
        notes += [f"in {each.unit}"] if each.unit else []
        notes += [each.range] if each.range else []
        notes += ["may change on resume"] if each.resumable else []
        lines.append(f"--config.{each.name}  {'; '.join(notes)}")
        known = f" Known: {', '.join(names[each.name])}." if each.name in names else ""
        lines += textwrap.wrap(each.text + known, 100, initial_indent="    ", subsequent_indent="    ")
    return lines


if __name__ == "__main__":
    command()
