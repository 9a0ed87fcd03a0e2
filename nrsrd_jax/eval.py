"""Evaluate a training run or a checkpoint on a data set's query and gallery; print a table and write a result.

  nrsrd eval                                       the newest run under runs/
  nrsrd eval --workdir runs/x [--output r.json]    a run's best checkpoint, on its own data set
  nrsrd eval --checkpoint DIR --config night600 --config.data.root=DIR
  nrsrd eval --onnx FILE --config night600 --config.data.root=DIR       a file of nrsrd export
  nrsrd eval --workdir A --also B [--weights 1,0.5]  the features of both, one after the other (EDA)
  nrsrd eval --rerank                              re-ranks by k-reciprocal neighbours; shows both results
  nrsrd eval --illumination 1,0.5,0.2,0.1,0.05     also on test images degraded to these shares of their light
  nrsrd eval --report out                          also writes a page with ranked lists and attention, out/index.html
  nrsrd eval --gallery G [--queries "camera = 'c1'"]    the labelled crops of a gallery of nrsrd embed

--config.KEY=VALUE changes single options, for example --config.data.root of a run whose data has moved,
--config.eval.protocol=all-cameras for data without cameras, --config.eval.flip=True to embed mirrored images too,
--config.eval.expand=3 to average each query with its 3 nearest. Features are kept in the cache; a second evaluation of
the same weights and images takes seconds.

RUN/result.json is the plain evaluation. Each other data set or option has its own file, RUN/result-….json, so that no
evaluation replaces the result of another; those of FILE.onnx are FILE.result.json and FILE.result-….json beside it.
--output names a file, which is replaced if it exists. In a clone, `python eval.py` does the same.

With --gallery, the crops with a person are compared by the features that the gallery has, and a file is written only
where --output says. Each of them is a query; with --queries, a condition in SQL, those that fit it are, and the others
are searched, so that a query's person may be missing there (open set).
"""

import json
import math

from absl import flags

from .command import config_overrides, define_config, run
from .errors import InputError, counted, say

# What a gallery leaves to choose; the rest has been decided by what nrsrd embed was told.
OF_GALLERY = "eval.protocol", "eval.normalize", "eval.expand", "eval.rerank"


def command() -> None:
    """Run `nrsrd eval` with the arguments of the process."""
    workdir = flags.DEFINE_string("workdir", "", "A training run; default: the newest under runs/.")
    checkpoint = flags.DEFINE_string("checkpoint", "", "A checkpoint to take the weights from.")
    onnx = flags.DEFINE_string(
        "onnx", "", "A file of nrsrd export to evaluate; it decides image size, feature and flip."
    )
    output = flags.DEFINE_string("output", "", "The file to write; default: beside the weights, named after the test.")
    rerank = flags.DEFINE_bool("rerank", False, "Re-rank by k-reciprocal neighbours; config.eval.rerank has k1, k2, λ.")
    features = flags.DEFINE_string("features", "", "A .npz file to write features, identities, cameras and paths to.")
    lights = flags.DEFINE_string("illumination", "", "Light intensities in 0..1, with commas: a curve and a plot.")
    report = flags.DEFINE_string("report", "", "A folder to write index.html to: a page that needs no other file.")
    also = flags.DEFINE_multi_string("also", [], "A run or checkpoint whose features stand beside; can be repeated.")
    weights = flags.DEFINE_list("weights", [], "With --also, the weight of each model's features; default: 1.")
    gallery = flags.DEFINE_string("gallery", "", "A gallery of nrsrd embed: its labelled crops are evaluated.")
    queries = flags.DEFINE_string(
        "queries", "", "With --gallery, a condition in SQL: which labelled crops are queries."
    )
    config = define_config("Which data; default: that of the training run; for a converted checkpoint, night600.")

    def main() -> None:
        from .retrieval.illumination import read_lights
        from .retrieval.result import evaluate_run, full_table

        if gallery.value:
            _refuse_others(*(workdir, checkpoint, onnx, features, lights, report, also, weights))
            _evaluate_gallery(gallery.value, queries.value, output.value, rerank.value)
            return
        if queries.value:
            raise InputError("--queries chooses among the crops of a gallery: give --gallery")
        chosen = config.value if flags.FLAGS["config"].present else None
        result, files = evaluate_run(
            *(workdir.value, checkpoint.value, output.value, chosen, config_overrides()),
            rerank=rerank.value,
            features=features.value,
            lights=read_lights(lights.value),
            report=report.value,
            onnx=onnx.value,
            also=also.value,
            weights=_read_weights(weights.value),
        )
        say(*full_table(result).split("\n"))
        say(f"weights: {result['checkpoint']} (chosen by {result['selected_by']})")
        total = counted(result["queries"], "query", "queries")
        say(f"{total}; left out because they have no match: {result['queries_without_match']}")
        say(f"mAP {result['mAP']:.3f} Rank-1 {result['rank1']:.3f}; written to {', '.join(map(str, files))}")

    run(main, __doc__, "interrupted; complete features are kept")


def _read_weights(texts: list[str]) -> list[float]:
    """Return the numbers of --weights. InputError if one is not above 0."""
    try:
        weights = [float(text) for text in texts]
    except ValueError:
        weights = [0.0]
    if not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"--weights {','.join(texts)}: give numbers above 0, like 1,0.5")
    return weights


def _evaluate_gallery(gallery: str, queries: str, output: str, rerank: bool) -> None:
    """Print and write the evaluation of a gallery's labelled crops."""
    from .config import get_config
    from .files import writable_file, write_whole
    from .gallery.evaluation import evaluate_gallery
    from .options import read_options
    from .retrieval.result import full_table

    overrides = config_overrides()
    if flags.FLAGS["config"].present:
        raise InputError("--gallery decides which data and features are compared: leave --config out")
    if fixed := [name for name in overrides if not name.startswith(OF_GALLERY)]:
        raise InputError(
            f"--config.{fixed[0]} changes nothing with --gallery; it takes those of {', '.join(OF_GALLERY)}"
        )
    config = get_config()
    config.update_from_flattened_dict(overrides)
    config.eval.rerank.enabled |= rerank
    written = writable_file(output, "--output") if output else None
    result = evaluate_gallery(gallery, queries, read_options(config))
    if written:
        write_whole(written, json.dumps(result, indent=1) + "\n", follow=True)
    say(*full_table(result).split("\n"))
    say(f"features: {result['feature']} of {result['checkpoint']}")
    without = result["crops"] - result["labelled"]
    left_out = f"; {without:,} without a known person left out" if without else ""
    say(f"{result['labelled']:,} of {counted(result['crops'], 'crop')} have a person{left_out}")
    where = f"written to {written}" if written else "not written: --output names a file"
    say(f"mAP {result['mAP']:.3f} Rank-1 {result['rank1']:.3f}; {where}")


def _refuse_others(*given: flags.FlagHolder) -> None:
    """Raise InputError if a flag is given that an evaluation of a gallery does not take."""
    if named := [flag.name for flag in given if flag.value]:
        raise InputError(f"--{named[0]} is not for --gallery, whose features are compared as they are; leave it out")


if __name__ == "__main__":
    command()
