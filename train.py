"""Trains a Re-ID model; a rerun of the same command goes on where it stopped.

  python train.py --config configs/night600.py:nrsrd --config.data.root=DIR [--workdir runs/x] [--config.KEY=VALUE ...]

Variants (after the colon) and every option: see configs/ and nrsrd_jax/config.py.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from nrsrd_jax.command import config_name, entry_point

CONFIG = config_flags.DEFINE_config_file("config", "configs/night600.py", "A file of configs/, with :VARIANT if any.")
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run is kept; default runs/CONFIG-VARIANT.")


@entry_point
def main(_):
    from nrsrd_jax.training import train  # after the flags: --help is quick

    workdir = Path(WORKDIR.value or Path("runs") / config_name(CONFIG))
    scores = train(CONFIG.value, workdir)
    score = f"mAP {scores['mAP']:.3f} Rank-1 {scores['rank1']:.3f}; " if scores else ""
    print(f"done: {score}the run is in {workdir}")


if __name__ == "__main__":
    app.run(main)
