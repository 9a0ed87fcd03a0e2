"""Pretrain a backbone on person crops without labels, by DINO. The same command continues an interrupted run.

  nrsrd pretrain --config.data.root=DIR [--workdir runs/x] [--config.KEY=VALUE ...]

DIR is any folder of crops, or a list of crops (a .csv file with a column `path`); separate several by commas. The
default --config is dino; dino:small is for a CPU. --config.init.checkpoint=MODEL starts from existing weights. To train
from the result, give its work directory to nrsrd train: --config.init.checkpoint=runs/x. `nrsrd train --options` prints
every option; those of pretraining begin with dino.
"""

from . import train


def command() -> None:
    """Run `nrsrd pretrain` with the arguments of the process."""
    train.command(__doc__, default="dino")


if __name__ == "__main__":
    command()
