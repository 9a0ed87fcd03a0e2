"""Evaluates a training run or a checkpoint on a data set's query and gallery; prints a table, writes result.json.

  python eval.py                                       the newest run under runs/
  python eval.py --workdir runs/x [--output r.json]    a run's best checkpoint, on its own data set
  python eval.py --checkpoint DIR --config configs/night600.py --config.data.root=DIR

--config.KEY=VALUE changes single options, for example --config.data.root of a run whose data has moved.
"""

from absl import flags

from nrsrd_jax.command import config_overrides, define_config, run

WORKDIR = flags.DEFINE_string("workdir", "", "A training run; default: the newest under runs/.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A checkpoint to take the weights from.")
OUTPUT = flags.DEFINE_string("output", "", "The result file; default: result.json in the run or checkpoint.")
CONFIG = define_config("Says which data; default: what the run was trained with; of a converted checkpoint, night600.")


def main() -> None:
    from nrsrd_jax.result import evaluate_run, table

    config = CONFIG.value if flags.FLAGS["config"].present else None
    result, output = evaluate_run(WORKDIR.value, CHECKPOINT.value, OUTPUT.value, config, config_overrides())
    print(table(result["targets"]))
    print(f"weights: {result['checkpoint']} (chosen by {result['selected_by']})")
    print(f"{result['queries']} queries, {result['queries_without_match']} of them without a match: left out")
    print(f"mAP {result['mAP']:.3f} Rank-1 {result['rank1']:.3f}; written to {output}")


if __name__ == "__main__":
    run(main)
