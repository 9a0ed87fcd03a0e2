"""Measure on labelled crops what a model's similarities mean: how often strangers match and people are missed.

  nrsrd calibrate --model runs/night --data crops.csv              columns path, person and, if known, camera
  nrsrd calibrate --model runs/night --data night600 DIR           query and gallery of a data set, as in nrsrd check
  nrsrd calibrate --model X --data crops.csv --fmr 0.01,0.001      thresholds at these false-match rates
  nrsrd calibrate --model X --data crops.csv --output c.json       default: calibration.json beside the model

The file lists thresholds of similarity. For pairs of crops it has the false-match rate and the false-non-match rate at
each threshold. For searches in galleries of N people it says how often a stranger is reported and how often a person
is missed (ISO/IEC 19795-1). Each rate has a 95 % interval over people, and the rates of pairs are also split by
brightness and by pair of cameras. The file also has the probability that a pair of a given similarity shows one
person. A plot of both error rates (DET) is written beside it. If there are too few people for a rate, the rate is left
out, and the file says how many people it needs.

Use people that the model was not trained on, seen by the cameras that you will use the model with. Give the same
--feature and --flip as to nrsrd embed.
"""

import argparse
import importlib.metadata
import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .command import Parser, add_embedding_flags, number, one_line
from .data.datasets import Split
from .data.labels import read_labelled
from .errors import InputError, counted, say
from .files import expanded, writable_file, write_whole


def main() -> None:
    arguments = _read_arguments()
    # Import these after reading the arguments, so that --help is quick.
    from .data.images import joint_digest
    from .report.curves import plot_det
    from .retrieval.calibration import FILE
    from .retrieval.embedding import Embedder
    from .retrieval.error_rates import calibrate, check_labels
    from .retrieval.files import cameras_for, embed_all
    from .runs import find_checkpoint

    begin = time.perf_counter()
    source = expanded(arguments.model)
    checkpoint = find_checkpoint(source)
    written = writable_file(arguments.output or source / FILE, "--output")
    plot = written.with_suffix(".png")
    if written == plot:
        raise InputError(f"--output {written} is the name of the plot; give a name that ends in .json")
    # Only a file that the user named with --output may be a link. `write_whole` would refuse the others too, but only
    # after the computation.
    for path in (plot,) if arguments.output else (written, plot):
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link; remove it, or name another --output")
    crops, with_cameras, remarks = read_labelled(arguments.data)
    say(*remarks)
    choice = {"same_camera": arguments.same_camera, "rates": arguments.fmr}
    # Embedding takes long, so refuse labels that are too few before it.
    check_labels(crops.pids, crops.cameras if with_cameras else None, **choice)

    embedder = Embedder.load(
        checkpoint,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        flip=arguments.flip,
        feature=arguments.feature,
    )
    # Without a column of cameras, every number in crops.cameras is 0.
    known = crops.cameras.tolist() if with_cameras else [None] * len(crops)
    numbers = cameras_for(embedder.description, list(map(str, crops.paths)), known)
    found = embed_all(embedder, crops.paths, numbers)
    # Two copies of a file would count as a genuine pair of similarity 1, and make the model look better than it is.
    kept = _without_copies(crops, found.digests)
    pixels = joint_digest([found.digests[i] for i in kept]).hex()
    crops = crops.subset(kept)
    cameras = crops.cameras if with_cameras else None
    rates = calibrate(found.features[kept], crops.pids, cameras, found.brightness[kept], seed=arguments.seed, **choice)
    about = {"checkpoint": str(checkpoint), "backbone": embedder.description.backbone}
    result = {
        "software": f"nrsrd-jax {importlib.metadata.version('nrsrd-jax')}",
        "model": embedder.identity() | about,
        "data": {"given": arguments.data, "list_sha256": crops.hash(), "pixels_sha256": pixels},
        **rates,
        "seed": arguments.seed,
        "command": shlex.join(sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.perf_counter() - begin, 2),
    }
    write_whole(written, json.dumps(result, indent=1) + "\n", follow=bool(arguments.output))
    plot_det(plot, result["curve"], result["pairs"], f"{source}, {result['people']} people")
    say(*table(result))
    say(*closing(result), f"written to {written}, {plot}")


def table(result: dict[str, Any]) -> list[str]:
    """Return the rates as the lines of a table."""
    lines = [f"{'similarity from':>15}  {'strangers match':>18}  one person is missed"]
    for row in result["pairs"]:
        low, high = (100 * end for end in row["fnmr_interval"])
        rate = f"1 of {1 / row['fmr']:,.0f} pairs" if row["fmr"] else "no pair"
        lines.append(
            f"{row['threshold']:>15.4f}  {rate:>18}  {100 * row['fnmr']:.1f} % of pairs ({low:.1f} to {high:.1f})"
        )
    largest = max(row["gallery_people"] for row in result["searches"])
    lines.append(f"{'similarity from':>15}  {'stranger reported':>18}  enrolled person not first, of {largest} people")
    for row in result["searches"]:
        if (row["gallery_people"], row["top"]) == (largest, 1):
            low, high = (100 * end for end in row["fnir_interval"])
            share = f"{100 * row['fpir']:.3g} %"
            lines.append(f"{row['threshold']:>15.4f}  {share:>18}  {100 * row['fnir']:.1f} % ({low:.1f} to {high:.1f})")
    return lines


def closing(result: dict[str, Any]) -> list[str]:
    """Return lines on how many crops were compared, and on which rates are missing."""
    from .retrieval.error_rates import MOST_CAMERAS

    pairs = f"{counted(result['genuine_pairs'], 'genuine pair')}, {counted(result['impostor_pairs'], 'impostor pair')}"
    lines = [
        f"{counted(result['crops'], 'crop')} of {result['people']:,} people: {pairs}; intervals are 95 %, over people"
    ]
    if result["refused"]:
        first = result["refused"][0]
        lines.append(f"a false-match rate of {first['fmr']:g} would need {first['people_needed']:,} people")
    if result["cameras"] and result["cameras"] > MOST_CAMERAS:
        lines.append(f"{result['cameras']:,} cameras: rates by pair of cameras are written for at most {MOST_CAMERAS}")
    return lines


def _without_copies(crops: Split, digests: Sequence[bytes]) -> np.ndarray:
    """Return the indices of the crops that are not copies, and print how many copies were left out.

    Copies are files with the same bytes, person and camera. InputError if files with the same bytes show two people.
    """
    first: dict[tuple[bytes, int, int], int] = {}
    shown: dict[bytes, int] = {}
    for i, key in enumerate(zip(digests, crops.pids.tolist(), crops.cameras.tolist(), strict=True)):
        first.setdefault(key, i)
        before = shown.setdefault(key[0], i)
        if crops.pids[before] != crops.pids[i]:
            raise InputError(
                f"{crops.paths[before]} and {crops.paths[i]} are the same picture, labelled as two people; correct that"
            )
    if copies := len(crops) - len(first):
        say(f"{counted(copies, 'copy', 'copies')} of other crops left out")
    return np.array(list(first.values()))


def rates(text: str) -> tuple[float, ...]:
    """Parse rates such as "0.01,0.001". Raise ArgumentTypeError unless they are above 0 and below 1."""
    numbers = tuple(map(number, text.split(",")))
    if not all(0 < rate < 1 for rate in numbers):
        raise argparse.ArgumentTypeError(f"{text}: give rates above 0 and below 1, like 0.01,0.001")
    return numbers


def _read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd calibrate")
    parser.add_argument("--model", required=True, help="a training run or a checkpoint")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="DATA",
        help="a manifest (.csv), or the name and the folder of a data set",
    )
    parser.add_argument(
        "--output", default="", help="the file to write or replace; default: calibration.json beside the model"
    )
    parser.add_argument(
        "--fmr",
        type=rates,
        default=(),
        metavar="RATE,…",
        help="false-match rates to find thresholds for; default: 0.1, 0.01, … while there are enough people",
    )
    parser.add_argument(
        "--same-camera",
        action="store_true",
        help="also compare crops of a person from the same camera, which are easier pairs",
    )
    add_embedding_flags(parser)
    parser.add_argument("--seed", type=int, default=0, help="the seed that draws the crops to enrol; default: 0")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"argument --seed: {arguments.seed} is negative")
    return arguments


def command() -> None:
    """Run `nrsrd calibrate` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
