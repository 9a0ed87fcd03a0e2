"""The teacher of Semantic Recovery Distillation: TransReID-SSL on the bright images of the auxiliary identities.

  python train.py --config configs/teacher.py --config.data.root=data/Syn_Dark/bright --workdir runs/teacher

There are no queries in such a folder: the last line of metrics.jsonl shows the training accuracy, and the last
checkpoint is kept. The official loss weights, 1 and 1.
"""

from nrsrd_jax import config


def get_config():
    c = config.get_config("baseline")
    c.variant = "teacher"
    c.data.name, c.data.root = "bright", "data/Syn_Dark/bright"
    c.loss.id_real = c.loss.triplet_real = 1.0
    return c
