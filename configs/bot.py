"""BoT, the strong baseline: a ResNet-50 with a BNNeck, smoothed labels, triplet and centre loss, on Night600.

  python train.py --config configs/bot.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/resnet50

mAP / Rank-1 in the paper's table 1: 5.4 / 11.2. The official code starts from ImageNet's weights (nrsrd convert);
without init.checkpoint training starts from random ones. The backbone bot_resnet50_relu has the ReLU behind the stem
that ImageNet's weights were trained with, and bot_resnet50_ibn_a IBN-a.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["bot"].config()
