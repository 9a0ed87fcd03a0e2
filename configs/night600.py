"""NRSRD on Night600: the paper's table 2, one variant per row.

  python train.py --config configs/night600.py:VARIANT --config.data.root=data/Night600 \\
      --config.aux.bright_root=data/Syn_Dark/bright --config.teacher.checkpoint=runs/teacher \\
      --config.init.checkpoint=weights/vit_base_ics

VARIANT      mAP / Rank-1 / Rank-5 in the paper
baseline      9.5 / 20.0 / 36.1   TransReID-SSL on the night images
nra          10.4 / 21.8 / 39.0   + Norm-Ratio Attention
mdl          10.9 / 24.2 / 41.8   + dark versions of the auxiliary domain
nra_mdl      12.2 / 27.1 / 41.8
srd          11.4 / 25.3 / 41.4   + a teacher that sees the bright versions
nrsrd        12.5 / 27.2 / 43.9   the default
nrsrd_plus                        an addition of this project (docs/evidence.md), not run on this data yet

The paper starts from LUPerson-pretrained weights. Without init.checkpoint, training starts from random weights. All
variants keep λ1 = λ2 = 0.5, so that two rows differ only in their modules.
"""

from nrsrd_jax.config import get_config

__all__ = ["get_config"]
