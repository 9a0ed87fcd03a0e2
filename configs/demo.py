"""The runs of `make demo` on the shipped rendered pedestrians, small enough for two CPU cores.

  python convert/from_torch.py demo/backbone.pth --output runs/demo-backbone
  python train.py --config configs/demo.py:teacher
  python train.py --config configs/demo.py:baseline
  python train.py --config configs/demo.py:nrsrd
  python train.py --config configs/demo.py:nrsrd_plus

The variants are those of night600.py, and `teacher`. Images, network and schedule are smaller than in the paper.
demo/backbone.md describes how the backbone was pretrained.
"""

from pathlib import Path

from nrsrd_jax import config
from nrsrd_jax.errors import InputError

DEMO = Path(__file__).parent.parent / "demo"


def get_config(variant: str = "nrsrd"):
    if not DEMO.is_dir():
        raise InputError("the demo's images are not part of the installed package; use a clone of the repository")
    teacher = variant == "teacher"
    c = config.get_config("baseline" if teacher else variant)
    c.variant = variant
    c.image_size = (128, 64)
    c.data.root, c.aux.bright_root = str(DEMO / "night"), str(DEMO / "aux")
    c.data.cache = "device"
    c.teacher.checkpoint = "runs/demo-teacher"
    c.degradation.preset = "low_noise"
    c.model.backbone, c.model.depth, c.model.drop_path = "vit_tiny", 6, 0.0
    c.init.checkpoint = str(DEMO.parent / "runs" / "demo-backbone")
    # Random erasing fills with noise of N(0, 1), far brighter than a night image. It lowered the scores when measured.
    c.augment.pad, c.augment.erasing = 5, 0.0
    # Without this the batch-hard triplet loss makes the features parallel (docs/evidence.md).
    c.loss.spread_real = c.loss.spread_syn = 5.0
    c.optim.name, c.optim.lr, c.optim.bias_factor, c.optim.weight_decay = "adamw", 3e-4, 1.0, 0.05
    c.optim.warmup_epochs = 2
    c.train.epochs = 10 if teacher else 15
    # Without evaluations the last checkpoint is used, so no checkpoint is selected on the test data.
    c.train.save_every, c.eval.every = 5, 0
    if teacher:
        c.data.name, c.data.root = "bright", c.aux.bright_root
    return c
