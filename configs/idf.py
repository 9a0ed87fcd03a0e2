"""IDF in its released form, on two ResNet-50, on Night600.

  python train.py --config configs/idf.py --config.data.root=data/Night600 --config.init.checkpoint=weights/resnet50

VARIANT    what the network is given
unit       pixels in 0..1, the default
over255    pixels in 0..1/255, as the official code does

The recipe of the official code (https://github.com/Alexadlu/IDF), which starts both ResNets from ImageNet's weights.
Without init.checkpoint they start from random ones. The code's own result is nowhere published: table 1's 9.2 / 17.2 is
of IDF on a ViT. Two things differ here: a batch shows 32 different people, where the official code draws images at
random; and test images are resized bilinearly (data.train_filter), where it resizes them bicubically.
"""

from nrsrd_jax.errors import InputError
from nrsrd_jax.recipes import RECIPES

BACKBONES = {"unit": "idf_resnet50", "over255": "idf_resnet50_over255"}


def get_config(variant: str = "unit"):
    if variant not in BACKBONES:
        raise InputError(f"there is no variant {variant!r}; choose one of {', '.join(BACKBONES)}")
    c = RECIPES["idf"].config()
    c.variant = f"idf_{variant}"
    c.model.backbone = BACKBONES[variant]
    return c
