"""Pretrain a backbone on person crops without labels, by DINO; a rerun of the same command continues.

  nrsrd pretrain --config.data.root=DIR [--workdir runs/x] [--config.KEY=VALUE ...]

DIR is any folder of crops, or a list of them (a .csv with a column `path`); separate several by commas. --config is
dino unless you give another; dino:small is for a CPU. --config.init.checkpoint=MODEL starts from existing weights.
The work directory is then a checkpoint to start a training from: --config.init.checkpoint=runs/x. `nrsrd train
--options` prints every option; those of pretraining begin with dino.
"""

from . import train


def command() -> None:
    """Run `nrsrd pretrain` with the arguments of the process."""
    train.command(__doc__, default="dino")


if __name__ == "__main__":
    command()
