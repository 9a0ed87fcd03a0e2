"""Pretraining of the demo's backbone, demo/backbone.pth, on many rendered, well-lit people and their dark versions.

  python train.py --config configs/pretrain.py --config.data.root=DIR --config.aux.bright_root=DIR

40 minutes on 2 CPU cores, to 35 % mAP on demo/night before any training there (demo/backbone.md).
DIR holds images named <pid>_c<camera>_*.jpg. Both domains are these images, as they are and darkened in the step;
there are no queries, and the last checkpoint is the result.
"""

from nrsrd_jax import config


def get_config():
    c = config.get_config("mdl")
    c.variant = "pretrain"
    c.image_size = (128, 64)
    c.data.name, c.data.cache = "bright", "device"
    c.data.root = c.aux.bright_root = "data/pretrain"
    c.degradation.preset = "low_noise"
    c.model.backbone, c.model.depth, c.model.drop_path = "vit_tiny", 6, 0.0
    c.augment.pad, c.augment.erasing = 5, 0.0
    c.optim.name, c.optim.lr, c.optim.bias_factor, c.optim.weight_decay = "adamw", 1e-3, 1.0, 0.05
    c.optim.warmup_epochs = 2
    c.train.epochs = 20
    c.train.save_every = 2
    return c
