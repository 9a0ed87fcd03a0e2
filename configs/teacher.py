"""The teacher of Semantic Recovery Distillation: TransReID-SSL on the bright images of the auxiliary identities.

  python train.py --config configs/teacher.py --config.data.root=data/Syn_Dark/bright --workdir runs/teacher

The folder has no queries, so the last checkpoint is kept; the last line of metrics.jsonl shows its training accuracy.
Both loss weights are 1, as in the official code.
"""

from nrsrd_jax import config


def get_config():
    c = config.get_config("baseline")
    c.variant = "teacher"
    c.data.name, c.data.root = "bright", "data/Syn_Dark/bright"
    c.loss.id_real = c.loss.triplet_real = 1.0
    return c
