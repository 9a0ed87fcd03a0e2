"""IDE, the baseline of layumi's Person_reID_baseline_pytorch: a ResNet-50 with cross-entropy alone, on Night600.

  python train.py --config configs/ide.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/resnet50

mAP / Rank-1 in the paper's table 1: 3.3 / 7.8 (IDE+). The official code starts from ImageNet weights (nrsrd
convert); without init.checkpoint, training starts from random weights. There is one difference from the official code:
test images are resized bilinearly, while the official code resizes them bicubically. The backbone ide_resnet50_stride1
has a last stride of 1, which the official code offers as one of its tricks.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["ide"].config()
