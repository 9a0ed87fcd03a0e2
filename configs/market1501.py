"""TransReID-SSL on Market-1501 at 384×128, with or without NRA. The paper's table 4: mAP 93.1 in both cases.

  python train.py --config configs/market1501.py:nra --config.data.root=data/Market-1501 \\
      --config.init.checkpoint=weights/vit_base_ics
"""

from nrsrd_jax import config


def get_config(variant: str = "baseline"):
    c = config.get_config(variant)
    c.data.name, c.data.root = "market1501", "data/Market-1501"
    c.image_size = (384, 128)
    # The weights of the official code.
    c.loss.id_real = c.loss.triplet_real = 1.0
    return c
