"""IDF in its released form, with two ResNet-50, on Night600.

  python train.py --config configs/idf.py --config.data.root=data/Night600 --config.init.checkpoint=weights/resnet50

VARIANT    input of the network
unit       pixels in 0..1, the default
over255    pixels in 0..1/255, as the official code does

This is the recipe of the official code (https://github.com/Alexadlu/IDF), which starts both ResNets from ImageNet
weights. Without init.checkpoint they start from random weights. The result of the official code is not published; the
9.2 / 17.2 of table 1 is IDF with a ViT. There is one difference from the official code: test images are resized
bilinearly (data.train_filter), while the official code resizes them bicubically.
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
