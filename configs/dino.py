"""DINO pretraining without labels on person crops, as TransReID-SSL pretrained its backbones.

  nrsrd pretrain --config dino --config.data.root=DIR
  nrsrd pretrain --config dino --config.data.root=DIR --config.init.checkpoint=weights/lup --config.train.epochs=5
  nrsrd pretrain --config dino:small --config.data.root=DIR

DIR is a folder of crops, or a list of them (a .csv file with a column `path`); separate several with commas. The
second command continues from existing weights on crops of your own cameras. Set eval.data.name and eval.data.root to
evaluate the teacher on a labelled data set every eval.every epochs.

The variant `small` fits a CPU and few crops: a vit_tiny on images of 64×32, with a small head. Its views show a person
in the surroundings of another crop (dino.swap), because a short run otherwise learns the surroundings, not the person.
On 9,000 crops and 2 cores it takes about 40 minutes (docs/pretraining.md).

The official run had 512 images in a batch. For another batch size, change optim.lr in proportion.
"""

from nrsrd_jax import config
from nrsrd_jax.errors import InputError


def get_config(variant: str = "official"):
    if variant not in ("official", "small"):
        raise InputError(f"there is no variant {variant!r}; choose official or small")
    c = config.get_config("baseline")
    c.variant = "dino" if variant == "official" else variant
    c.dino.enabled = True
    c.data.name, c.data.root = "crops", "data/crops"
    c.data.mean, c.data.std = "0.485,0.456,0.406", "0.229,0.224,0.225"
    c.model.backbone, c.model.drop_path = "vit_small_ics", 0.1
    c.optim.name, c.optim.lr, c.optim.weight_decay = "adamw", 1e-3, 0.04
    c.optim.warmup_epochs, c.optim.final_factor = 10, 1e-3
    c.train.epochs, c.train.batch_size, c.train.save_every = 100, 512, 1
    if variant == "small":
        c.image_size, c.dino.local_size, c.data.cache = (64, 32), (32, 16), "device"
        c.model.backbone, c.model.depth, c.model.drop_path = "vit_tiny", 6, 0.0
        c.data.brighten = 0.4
        c.dino.ratio, c.dino.swap, c.dino.local_views = (0.375, 0.667), 1.0, 2
        c.dino.prototypes, c.dino.hidden, c.dino.bottleneck = 4096, 512, 128
        # A short run never gets as far as to need trained prototypes.
        c.dino.koleo, c.dino.frozen_epochs = 1.0, 100
        c.dino.momentum, c.dino.weight_decay_end = 0.99, 0.04
        c.train.batch_size, c.train.epochs, c.optim.warmup_epochs = 32, 80, 1
        c.optim.lr = 2.5e-4
        c.degradation.preset = "low_noise"
    return c
