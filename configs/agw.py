"""AGW: BoT with non-local blocks, generalised-mean pooling and the weighted regularised triplet loss, on Night600.

  python train.py --config configs/agw.py --config.data.root=data/Night600 \\
      --config.init.checkpoint=weights/resnet50

mAP / Rank-1 in the paper's table 1: 6.1 / 12.5. The official code starts from ImageNet weights (nrsrd convert);
without init.checkpoint, training starts from random weights. The triplet loss weighs pairs as the official code does:
the weights of negatives vanish if the features are far apart (losses.weighted_triplet_loss). With
--config.loss.weighted_form=exact they are a softmax. The backbone agw_resnet50_wide has wider non-local blocks.
"""

from nrsrd_jax.recipes import RECIPES


def get_config():
    return RECIPES["agw"].config()
