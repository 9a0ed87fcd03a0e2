"""PCB: a ResNet-50, and a classifier for each of six horizontal strips, on Night600.

  python train.py --config configs/pcb.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/resnet50

mAP / Rank-1 in the paper's table 1: 6.0 / 12.8. The official code starts from ImageNet's weights (nrsrd convert);
without init.checkpoint training starts from random ones. A batch shows 64 different people, where the official code
draws images at random.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["pcb"].config()
