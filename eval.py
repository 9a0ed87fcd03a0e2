"""Evaluates a training run or a checkpoint on a data set's query and gallery, and writes result.json.

  python eval.py                                       the newest run under runs/
  python eval.py --workdir runs/x [--output r.json]    a run's best checkpoint, on its own data set
  python eval.py --checkpoint DIR --config configs/night600.py --config.data.root=DIR

--config.KEY=VALUE changes single options, for example --config.data.root of a run whose data has moved.
"""

import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from nrsrd_jax.command import entry_point

WORKDIR = flags.DEFINE_string("workdir", "", "A training run; default: the newest under runs/.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A checkpoint or run to take the weights from.")
OUTPUT = flags.DEFINE_string("output", "", "The result file; default: result.json in the run or checkpoint.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Says which data; default: the config of the run.")
flags.mark_flags_as_mutual_exclusive(["workdir", "checkpoint"])


@entry_point
def main(_):
    from nrsrd_jax.result import evaluate_run

    evaluate_run(WORKDIR.value, CHECKPOINT.value, OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
