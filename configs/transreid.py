"""TransReID: a ViT-B with local features of shuffled patches (JPM) and camera embeddings (SIE), on Night600.

  python train.py --config configs/transreid.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/vit_base

mAP / Rank-1 in the paper's table 1: 8.4 / 16.0. The official code starts from ImageNet weights (nrsrd convert);
without init.checkpoint, training starts from random weights. --config.model.stride=12 makes patches overlap; table 1
does not state its stride. --config.model.sie=False omits the camera embeddings, for data without cameras.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["transreid"].config()
