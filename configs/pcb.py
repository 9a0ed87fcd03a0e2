"""PCB: a ResNet-50 with a classifier for each of six horizontal strips, on Night600.

  python train.py --config configs/pcb.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/resnet50

mAP / Rank-1 in the paper's table 1: 6.0 / 12.8. The official code starts from ImageNet weights (nrsrd convert);
without init.checkpoint, training starts from random weights.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["pcb"].config()
