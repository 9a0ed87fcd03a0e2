"""Choose crops for pretraining that are close to a target domain, by their catastrophic forgetting score (CFS).

  nrsrd select DIR… --source runs/dino --tuned runs/mine --keep 0.6 --output list.csv
  nrsrd pretrain --config dino --config.data.root=DIR --config.data.include=list.csv

--source is a model before fine-tuning on labelled images of the target domain, and --tuned is the same model after it.
The score of a crop is the cosine, in −1..1, of its features under both models. If fine-tuning hardly changed the
feature, the model forgot little, so the crop resembles the target domain. The list has the columns path and score, and
is sorted from the best score down. The tuned model has seen labels, so a pretraining on such a list is not label-free;
say so when you report results.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from .command import Parser, add_embedding_flags, number, one_line
from .data.crops import crops_of, make_source, warn_links
from .errors import InputError, counted, say
from .files import expanded, refuse_same_files, writable_file, write_csv


def main() -> None:
    arguments = _read_arguments()
    # Import these after reading the arguments, so that --help is quick.
    from .retrieval.distances import unit_rows
    from .retrieval.embedding import Embedder
    from .retrieval.files import embed_all
    from .runs import find_checkpoint

    output = writable_file(arguments.output, "--output")
    sources = [make_source(place, "", "") for place in arguments.crops]
    # The list must not replace a manifest that it is made from.
    refuse_same_files([output, *(source.path for source in sources)])
    paths = [Path(path) for path in crops_of(sources)]
    warn_links(sources)
    checkpoints = [find_checkpoint(expanded(model)) for model in (arguments.source, arguments.tuned)]
    options = {name: getattr(arguments, name) for name in ("batch_size", "precision", "flip", "feature")}
    models = [Embedder.load(checkpoint, **options) for checkpoint in checkpoints]
    first, second = (model.description for model in models)
    if (first.backbone, first.depth, first.image_size) != (second.backbone, second.depth, second.image_size):
        raise InputError(
            "--source and --tuned differ in backbone or image size; give one model before and after tuning"
        )
    if first.spec.needs_cameras or second.spec.needs_cameras:
        raise InputError("nrsrd select embeds crops without their cameras: give models without model.sie")
    kinds = [model.identity()["feature"] for model in models]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"--feature {arguments.feature} chooses {kinds[0]} for --source and {kinds[1]} for --tuned: the score "
            "compares features of one kind, so set --feature cls"
        )
    if models[0].width != models[1].width:
        raise InputError(
            f"the features of --source have {models[0].width} numbers and those of --tuned {models[1].width}: give one "
            "model before and after tuning, both with model.jpm or both without"
        )
    if models[0].fingerprint() == models[1].fingerprint():
        raise InputError(
            "--source and --tuned have the same weights, so every crop would have the score 1; give two models"
        )

    features = []
    for name, model in zip(("source", "tuned"), models, strict=True):
        say(f"{name}: {checkpoints[name == 'tuned']}")
        features.append(unit_rows(embed_all(model, paths).features))
    scores = (features[0] * features[1]).sum(1)
    # Sort crops of equal scores by their names, so that the list does not depend on the order of the files.
    best = np.lexsort((np.array([str(path) for path in paths]), -scores))[: math.ceil(arguments.keep * len(paths))]
    write_csv(output, [{"path": str(paths[i]), "score": round(float(scores[i]), 6)} for i in best], follow=True)
    say(
        f"kept {len(best)} of {counted(len(paths), 'crop')}, scores {scores[best].min():.3f} to {scores.max():.3f} "
        f"(mean of all {scores.mean():.3f}); written to {output}"
    )


def share(text: str) -> float:
    """Parse a share. Raise ArgumentTypeError if it is not a number above 0 and at most 1."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and at most 1, like 0.6")
    return value


def _read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd select")
    parser.add_argument("crops", nargs="+", type=Path, metavar="DIR", help="folders of crops, or lists of crops (.csv)")
    parser.add_argument("--source", required=True, metavar="MODEL", help="the model before fine-tuning")
    parser.add_argument("--tuned", required=True, metavar="MODEL", help="the same model after fine-tuning")
    parser.add_argument(
        "--keep", type=share, default=0.6, help="the share of crops to keep; default: 0.6, as published"
    )
    parser.add_argument(
        "--output", default="list.csv", metavar="FILE", help="the list to write or replace; default: list.csv"
    )
    add_embedding_flags(parser)
    # The published score compares embeddings. "auto" could choose "cls" for one model and "centred" for the other.
    parser.set_defaults(feature="cls")
    return parser.parse_args()


def command() -> None:
    """Run `nrsrd select` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
