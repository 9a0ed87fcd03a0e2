"""Train a Re-ID model; a rerun of the same command continues where it stopped.

  python train.py --config configs/night600.py:nrsrd --config.data.root=DIR [--workdir runs/x] [--config.KEY=VALUE ...]

The file after --config is the run, the word after its colon the variant. nrsrd_jax/config.py lists every option with
its unit and choices. It needs images on disk; `--config configs/demo.py` uses those that come with the code.
"""

from pathlib import Path

from absl import flags

from nrsrd_jax.command import config_name, define_config, run
from nrsrd_jax.errors import say

CONFIG = define_config("The run: a file of configs/, with :VARIANT if it has variants.")
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run is kept; default: runs/CONFIG-VARIANT.")
PREEMPTED = flags.DEFINE_integer(
    "preempted_status", 143, "Exit status after SIGTERM, once what was learned is saved.", 0, 255
)


def main() -> None:
    from nrsrd_jax import cluster  # not before the flags, so that --help is quick

    cluster.join()
    from nrsrd_jax.training import train

    workdir = WORKDIR.value or Path("runs") / config_name()
    scores = train(CONFIG.value, workdir, preempted_status=PREEMPTED.value)
    names = {"mAP": "mAP", "rank1": "Rank-1", "training_accuracy": "training accuracy"}
    score = " ".join(f"{title} {scores[name]:.3f}" for name, title in names.items() if name in scores)
    say(f"done: {score or 'not evaluated'}; the run is in {workdir}")


if __name__ == "__main__":
    run(main, "interrupted; saved checkpoints are kept, and the same train.py command goes on from the last")
