"""Evaluate a training run or a checkpoint on a data set's query and gallery; print a table and write a result.

  python eval.py                                       the newest run under runs/
  python eval.py --workdir runs/x [--output r.json]    a run's best checkpoint, on its own data set
  python eval.py --checkpoint DIR --config configs/night600.py --config.data.root=DIR
  python eval.py --rerank                              k-reciprocal re-ranking, beside the result without
  python eval.py --illumination 1,0.5,0.2,0.1,0.05     also on test images degraded to these shares of their light
  python eval.py --report out                          also a page with ranked lists and attention, out/index.html

--config.KEY=VALUE changes single options, for example --config.data.root of a run whose data has moved,
--config.eval.protocol=all-cameras for data without cameras, --config.eval.flip=True to embed mirrored images too,
--config.eval.expand=3 to average each query with its 3 nearest. Features are kept in the cache; a second evaluation of
the same weights and images takes seconds.

RUN/result.json is the plain evaluation. Any other data set or option has its own file, RUN/result-….json: no
evaluation replaces another's result. --output names a file, which is replaced if it exists.
"""

from absl import flags

from nrsrd_jax.command import config_overrides, define_config, run

WORKDIR = flags.DEFINE_string("workdir", "", "A training run; default: the newest under runs/.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A checkpoint to take the weights from.")
OUTPUT = flags.DEFINE_string("output", "", "The result's file; default: beside the weights, named after the test.")
RERANK = flags.DEFINE_bool("rerank", False, "Re-rank by k-reciprocal neighbours; config.eval.rerank has k1, k2, λ.")
FEATURES = flags.DEFINE_string("features", "", "A .npz file to write features, identities, cameras and paths to.")
ILLUMINATION = flags.DEFINE_string("illumination", "", "Light intensities in 0..1, with commas: a curve and a plot.")
REPORT = flags.DEFINE_string("report", "", "A folder to write index.html to: a page that needs no other file.")
CONFIG = define_config("Says which data; default: what the run was trained with; of a converted checkpoint, night600.")


def main() -> None:
    from nrsrd_jax.errors import counted, say
    from nrsrd_jax.illumination import read_lights
    from nrsrd_jax.result import evaluate_run, full_table

    config = CONFIG.value if flags.FLAGS["config"].present else None
    result, files = evaluate_run(
        *(WORKDIR.value, CHECKPOINT.value, OUTPUT.value, config, config_overrides()),
        rerank=RERANK.value,
        features=FEATURES.value,
        lights=read_lights(ILLUMINATION.value),
        report=REPORT.value,
    )
    say(*full_table(result).split("\n"))
    say(f"weights: {result['checkpoint']} (chosen by {result['selected_by']})")
    queries = counted(result["queries"], "query", "queries")
    say(f"{queries}; left out as without a match: {result['queries_without_match']}")
    say(f"mAP {result['mAP']:.3f} Rank-1 {result['rank1']:.3f}; written to {', '.join(map(str, files))}")


if __name__ == "__main__":
    run(main, "interrupted; features that were whole are kept")
