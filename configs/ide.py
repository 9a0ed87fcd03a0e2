"""IDE, the baseline of layumi's Person_reID_baseline_pytorch: a ResNet-50 with cross-entropy alone, on Night600.

  python train.py --config configs/ide.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/resnet50

mAP / Rank-1 in the paper's table 1: 3.3 / 7.8 (IDE+). The official code starts from ImageNet's weights (nrsrd
convert); without init.checkpoint training starts from random ones. Two things differ from the official code: a batch
shows 32 different people, where it draws images at random; and test images are resized bilinearly, where it resizes
them bicubically. The backbone ide_resnet50_stride1 has the last stride of 1 that it calls one of its tricks.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["ide"].config()
