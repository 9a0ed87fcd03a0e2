"""Evaluate a training run or a checkpoint on a data set's query and gallery; print a table and write a result.

  nrsrd eval                                       the newest run under runs/
  nrsrd eval --workdir runs/x [--output r.json]    a run's best checkpoint, on its own data set
  nrsrd eval --checkpoint DIR --config night600 --config.data.root=DIR
  nrsrd eval --rerank                              re-ranks by k-reciprocal neighbours; shows both results
  nrsrd eval --illumination 1,0.5,0.2,0.1,0.05     also on test images degraded to these shares of their light
  nrsrd eval --report out                          also writes a page with ranked lists and attention, out/index.html

--config.KEY=VALUE changes single options, for example --config.data.root of a run whose data has moved,
--config.eval.protocol=all-cameras for data without cameras, --config.eval.flip=True to embed mirrored images too,
--config.eval.expand=3 to average each query with its 3 nearest. Features are kept in the cache; a second evaluation of
the same weights and images takes seconds.

RUN/result.json is the plain evaluation. Each other data set or option has its own file, RUN/result-….json, so that no
evaluation replaces the result of another. --output names a file, which is replaced if it exists. In a clone, `python
eval.py` does the same.
"""

from absl import flags

from .command import config_overrides, define_config, run


def command() -> None:
    """Run `nrsrd eval` with the arguments of the process."""
    workdir = flags.DEFINE_string("workdir", "", "A training run; default: the newest under runs/.")
    checkpoint = flags.DEFINE_string("checkpoint", "", "A checkpoint to take the weights from.")
    output = flags.DEFINE_string("output", "", "The file to write; default: beside the weights, named after the test.")
    rerank = flags.DEFINE_bool("rerank", False, "Re-rank by k-reciprocal neighbours; config.eval.rerank has k1, k2, λ.")
    features = flags.DEFINE_string("features", "", "A .npz file to write features, identities, cameras and paths to.")
    lights = flags.DEFINE_string("illumination", "", "Light intensities in 0..1, with commas: a curve and a plot.")
    report = flags.DEFINE_string("report", "", "A folder to write index.html to: a page that needs no other file.")
    config = define_config("Which data; default: that of the training run; for a converted checkpoint, night600.")

    def main() -> None:
        from .errors import counted, say
        from .retrieval.illumination import read_lights
        from .retrieval.result import evaluate_run, full_table

        chosen = config.value if flags.FLAGS["config"].present else None
        result, files = evaluate_run(
            *(workdir.value, checkpoint.value, output.value, chosen, config_overrides()),
            rerank=rerank.value,
            features=features.value,
            lights=read_lights(lights.value),
            report=report.value,
        )
        say(*full_table(result).split("\n"))
        say(f"weights: {result['checkpoint']} (chosen by {result['selected_by']})")
        queries = counted(result["queries"], "query", "queries")
        say(f"{queries}; left out because they have no match: {result['queries_without_match']}")
        say(f"mAP {result['mAP']:.3f} Rank-1 {result['rank1']:.3f}; written to {', '.join(map(str, files))}")

    run(main, __doc__, "interrupted; complete features are kept")


if __name__ == "__main__":
    command()
