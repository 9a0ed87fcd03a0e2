"""NRSRD on the RGB images of RGBNT201, with the variants of night600.py. The paper's nrsrd: mAP 58.9, Rank-1 58.9.

  python train.py --config configs/rgbnt201.py:nrsrd --config.data.root=data/RGBNT201 \\
      --config.aux.bright_root=data/Syn_Dark/bright --config.teacher.checkpoint=runs/teacher
"""

from nrsrd_jax import config


def get_config(variant: str = "nrsrd"):
    c = config.get_config(variant)
    c.data.name, c.data.root = "rgbnt201", "data/RGBNT201"
    return c
