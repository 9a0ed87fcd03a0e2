"""TransReID-SSL on MSMT17 at 384×128, with or without NRA. The paper's table 4: mAP 75.1 without NRA, 73.4 with it.

  python train.py --config configs/msmt17.py:nra --config.data.root=data/MSMT17 \\
      --config.init.checkpoint=weights/vit_base_ics
"""

from nrsrd_jax import config


def get_config(variant: str = "baseline"):
    c = config.get_config(variant)
    c.data.name, c.data.root = "msmt17", "data/MSMT17"
    c.image_size = (384, 128)
    # The weights of the official code.
    c.loss.id_real = c.loss.triplet_real = 1.0
    return c
