"""TransReID: a ViT-B with local features of shuffled patches (JPM) and the cameras' vectors (SIE), on Night600.

  python train.py --config configs/transreid.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/vit_base

mAP / Rank-1 in the paper's table 1: 8.4 / 16.0. The official code starts from ImageNet's weights (nrsrd convert);
without init.checkpoint training starts from random ones. --config.model.stride=12 lets patches overlap; table 1 does
not say which stride its row has. --config.model.sie=False leaves the cameras out, for data without them.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["transreid"].config()
