"""Evaluate a training run or a checkpoint on the query and gallery of a data set; print a table and write a result.

  nrsrd eval                                       the newest run under runs/
  nrsrd eval --workdir runs/x [--output r.json]    a run's best checkpoint, on its own data set
  nrsrd eval --checkpoint DIR --config night600 --config.data.root=DIR
  nrsrd eval --onnx FILE --config night600 --config.data.root=DIR       a file that nrsrd export wrote
  nrsrd eval --workdir A --also B [--weights 1,0.5]  the concatenated features of both models (EDA)
  nrsrd eval --rerank                              re-ranks by k-reciprocal neighbours, and shows both results
  nrsrd eval --illumination 1,0.5,0.2,0.1,0.05     also on test images that are darkened to these light intensities
  nrsrd eval --report out                          also writes a page with ranked lists and attention, out/index.html
  nrsrd eval --gallery G [--queries "camera = 'c1'"]    the labelled crops of a gallery that nrsrd embed made

--config.KEY=VALUE changes single options, for example --config.data.root of a run whose data has moved,
--config.eval.protocol=all-cameras for data without cameras, --config.eval.flip=True to embed mirrored images too,
--config.eval.expand=3 to average each query with its 3 nearest gallery images. Features are cached, so a second
evaluation of the same weights and images takes seconds.

RUN/result.json has the plain evaluation. An evaluation on another data set or with other options has its own file,
RUN/result-….json, so that it does not replace the result of another. The results of FILE.onnx are FILE.result.json and
FILE.result-….json beside it. --output names another file, which is replaced if it exists. In a clone, `python eval.py`
does the same.

With --gallery, the labelled crops of the gallery are compared by their stored features, and a file is written only if
--output names one. By default each labelled crop is a query. With --queries, an SQL condition, only the labelled crops
that meet it are queries, and the others are the gallery, so the person of a query may be missing there (open set).
"""

import json
import math

from absl import flags

from .command import config_overrides, define_config, run
from .errors import InputError, counted, say

# The options that still have an effect on the stored features of a gallery; nrsrd embed has decided the others.
OF_GALLERY = "eval.protocol", "eval.normalize", "eval.expand", "eval.rerank"


def command() -> None:
    """Run `nrsrd eval` with the arguments of the process."""
    workdir = flags.DEFINE_string(
        "workdir", "", "The work directory of a training run; default: the newest under runs/."
    )
    checkpoint = flags.DEFINE_string("checkpoint", "", "A checkpoint to evaluate, instead of a run.")
    onnx = flags.DEFINE_string(
        "onnx", "", "An ONNX file of nrsrd export to evaluate. It decides image size, feature and flip."
    )
    output = flags.DEFINE_string(
        "output", "", "The file to write; default: a file beside the weights, named after the test."
    )
    rerank = flags.DEFINE_bool(
        "rerank", False, "Re-rank by k-reciprocal neighbours; config.eval.rerank sets k1, k2 and λ."
    )
    features = flags.DEFINE_string("features", "", "A .npz file to write features, identities, cameras and paths to.")
    lights = flags.DEFINE_string(
        "illumination", "", "Also evaluate at these light intensities in 0..1, separated by commas; adds a plot."
    )
    report = flags.DEFINE_string("report", "", "A folder to write index.html to, a page that needs no other file.")
    also = flags.DEFINE_multi_string(
        "also",
        [],
        "Another run or checkpoint whose features to append; can be repeated. It uses eval.feature and eval.flip of "
        "its own run; those of --config are for the first model only.",
    )
    weights = flags.DEFINE_list(
        "weights", [], "With --also: the weight of each model's features, in order; default: 1 each."
    )
    gallery = flags.DEFINE_string(
        "gallery", "", "A gallery of nrsrd embed whose labelled crops to evaluate, instead of a data set."
    )
    queries = flags.DEFINE_string(
        "queries", "", "With --gallery: an SQL condition on the labelled crops that are queries; default: all."
    )
    config = define_config(
        "The data to evaluate on; default: that of the training run, or night600 for a converted checkpoint."
    )

    def main() -> None:
        # Import these after the flags are read, so that --help is quick.
        from .retrieval.illumination import read_lights
        from .retrieval.result import evaluate_run, full_table

        if gallery.value:
            _refuse_others(*(workdir, checkpoint, onnx, features, lights, report, also, weights))
            _evaluate_gallery(gallery.value, queries.value, output.value, rerank.value)
            return
        if queries.value:
            raise InputError("--queries chooses among the crops of a gallery; give --gallery too")
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
    """Return the numbers of --weights. InputError if they are not all above 0."""
    try:
        weights = [float(text) for text in texts]
    except ValueError:
        # The check below refuses this, as it does a number that is not above 0.
        weights = [0.0]
    if not all(0 < weight < math.inf for weight in weights):
        raise InputError(f"--weights {','.join(texts)}: give numbers above 0, like 1,0.5")
    return weights


def _evaluate_gallery(gallery: str, queries: str, output: str, rerank: bool) -> None:
    """Evaluate a gallery's labelled crops, print the result, and write it if `output` names a file."""
    from .config import get_config
    from .files import writable_file, write_whole
    from .gallery.evaluation import evaluate_gallery
    from .options import read_options
    from .retrieval.result import full_table

    overrides = config_overrides()
    # --config has a default, so ask whether the user gave it.
    if flags.FLAGS["config"].present:
        raise InputError("--gallery decides which data and features are compared; leave out --config")
    if fixed := [name for name in overrides if not name.startswith(OF_GALLERY)]:
        raise InputError(
            f"--config.{fixed[0]} has no effect with --gallery, which takes only {', '.join(OF_GALLERY)}; leave it out"
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
    """Raise InputError if one of these flags is given, which an evaluation of a gallery does not take."""
    if named := [flag.name for flag in given if flag.value]:
        raise InputError(f"--{named[0]} does not apply to --gallery, whose stored features are compared; leave it out")


if __name__ == "__main__":
    command()
