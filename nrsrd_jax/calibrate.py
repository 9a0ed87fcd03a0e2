"""Measure on labelled crops what a model's similarities mean: how many strangers match, and how many people are missed.

  nrsrd calibrate --model runs/night --data crops.csv              columns path, person and, if known, camera
  nrsrd calibrate --model runs/night --data night600 DIR           the query and gallery of a data set, as nrsrd check
  nrsrd calibrate --model X --data crops.csv --fmr 0.01,0.001      thresholds at these false-match rates
  nrsrd calibrate --model X --data crops.csv --output c.json       otherwise calibration.json beside the model

The file has, for thresholds of similarity, the false-match and false-non-match rates of pairs; for searches of
galleries of N people, how often a stranger is reported and how often a person is missed (ISO/IEC 19795-1); each with a
95 % interval over people; the same by brightness and by pair of cameras; and the probability that a pair of such a
similarity shows one person. A plot of both error rates (DET) lies beside it. A rate that there are too few people for
is refused, with how many it needs. Give people that the model was not trained on, seen by the cameras that it will be
used with, and the --feature and --flip of nrsrd embed.
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
    # Not imported before the arguments are read, so that --help is quick.
    from .data.images import joint_digest
    from .report.curves import plot_det
    from .retrieval.calibration import FILE
    from .retrieval.embedding import Embedder
    from .retrieval.error_rates import calibrate, check_labels
    from .retrieval.files import embed_all
    from .runs import find_checkpoint

    begin = time.perf_counter()
    source = expanded(arguments.model)
    checkpoint = find_checkpoint(source)
    written = writable_file(arguments.output or source / FILE, "--output")
    plot = written.with_suffix(".png")
    if written == plot:
        raise InputError(f"--output {written} is where the plot goes: name a .json file")
    for path in (plot,) if arguments.output else (written, plot):
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link; remove it, or name another --output")
    crops, with_cameras, remarks = read_labelled(arguments.data)
    say(*remarks)
    choice = {"same_camera": arguments.same_camera, "rates": arguments.fmr}
    check_labels(crops.pids, crops.cameras if with_cameras else None, **choice)

    embedder = Embedder.load(
        checkpoint,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        flip=arguments.flip,
        feature=arguments.feature,
    )
    found = embed_all(embedder, crops.paths)
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
    """Return the rates as lines."""
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
    """Return how much was compared, and which rates are missing."""
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
    """Return the indices of the crops without copies: files of the same bytes, person and camera. Print how many."""
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
    """Return "0.01,0.001" as numbers above 0 and below 1."""
    numbers = tuple(map(number, text.split(",")))
    if not all(0 < rate < 1 for rate in numbers):
        raise argparse.ArgumentTypeError(f"{text}: give rates above 0 and below 1, like 0.01,0.001")
    return numbers


def _read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd calibrate")
    parser.add_argument("--model", required=True, help="a training run or a checkpoint")
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="DATA", help="a manifest (.csv), or a data set's name and folder"
    )
    parser.add_argument(
        "--output", default="", help="the file to write or replace; default: calibration.json beside the model"
    )
    parser.add_argument(
        "--fmr",
        type=rates,
        default=(),
        metavar="RATE,…",
        help="false-match rates; default: 0.1, 0.01, … as far as people permit",
    )
    parser.add_argument(
        "--same-camera", action="store_true", help="compare crops of a person from one camera too: easier pairs"
    )
    add_embedding_flags(parser)
    parser.add_argument("--seed", type=int, default=0, help="draws the crops that are enrolled; default: 0")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"argument --seed: {arguments.seed} is negative")
    return arguments


def command() -> None:
    """Run `nrsrd calibrate` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
