"""Train a Re-ID model. The same command continues an interrupted run.

  nrsrd train --config night600:nrsrd --config.data.root=DIR [--workdir runs/x] [--config.KEY=VALUE ...]

--config names a config of the package, or your own file; the word after the colon is its variant. `nrsrd train
--options` prints every option with its default, unit, range and choices. In a clone, `python train.py --config
configs/night600.py:nrsrd` does the same, and `--config configs/demo.py` uses the images that come with the code.
"""

from pathlib import Path

from absl import flags

from .command import config_name, define_config, define_preempted_status, run
from .errors import say
from .options import describe


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


if __name__ == "__main__":
    command()
