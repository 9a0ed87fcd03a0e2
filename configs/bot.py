"""BoT, the strong baseline: a ResNet-50 with a BNNeck, smoothed labels, triplet and centre loss, on Night600.

  python train.py --config configs/bot.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/resnet50

mAP / Rank-1 in the paper's table 1: 5.4 / 11.2. The official code starts from ImageNet weights (nrsrd convert);
without init.checkpoint, training starts from random weights. The backbone bot_resnet50_relu adds the ReLU after the
stem, with which the ImageNet weights were trained. The backbone bot_resnet50_ibn_a uses IBN-a.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["bot"].config()
