"""Pretraining of the demo's backbones on many rendered, well-lit people.

  python train.py --config configs/pretrain.py:bright --config.data.root=DIR
  python train.py --config configs/pretrain.py:bright_and_dark --config.data.root=DIR --config.aux.bright_root=DIR

bright           the images as they are; the paper's backbone was pretrained so. Gave demo/backbone.pth
bright_and_dark  the images and as many darkened versions, made in the step. Gave demo/backbone-bright-and-dark.pth

DIR has images named <pid>_c<camera>_*.jpg. There are no queries, so the last checkpoint is the result. The spread loss
prevents nearly parallel features, on which the triplet loss has no effect (measured in demo/backbone.md).
"""

from nrsrd_jax import config
from nrsrd_jax.errors import InputError


def get_config(variant: str = "bright"):
    # In the paper's row MDL, the auxiliary domain is also darkened. Here both domains have the same images.
    rows = {"bright": "baseline", "bright_and_dark": "mdl"}
    if variant not in rows:
        raise InputError(f"there is no variant {variant!r}; choose one of {', '.join(rows)}")
    c = config.get_config(rows[variant])
    c.variant = f"pretrain_{variant}"
    c.image_size = (128, 64)
    c.data.name, c.data.cache = "bright", "device"
    c.data.root = c.aux.bright_root = "data/pretrain"
    c.degradation.preset = "low_noise"
    c.model.backbone, c.model.depth, c.model.drop_path = "vit_tiny", 6, 0.0
    c.augment.pad, c.augment.erasing = 5, 0.0
    c.loss.spread_real = c.loss.spread_syn = 5.0
    c.optim.name, c.optim.lr, c.optim.bias_factor, c.optim.weight_decay = "adamw", 1e-3, 1.0, 0.05
    c.optim.warmup_epochs = 2
    c.train.epochs = 20
    c.train.save_every = 2
    return c
