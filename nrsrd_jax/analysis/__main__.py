"""Shows what attention does in a checkpoint: the paper's figures 1, 3, 5, 6, 7 and its statements, on your images.

  python -m nrsrd_jax.analysis --workdir runs/demo-nrsrd --output out
  python -m nrsrd_jax.analysis --checkpoint DIR --images FOLDER --masks MASKS --compare OTHER-RUN

Norms of queries, keys and values by block and head, where the CLS token looks with and without Norm-Ratio Attention
(NRA), what changes as the images are degraded to less light, and what NRA can do at all: figures as PNG and SVG, their
numbers as CSV. Norms are of whole vectors, of the last block where none is named, NRA as trained.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import config as configuration
from ..command import one_line
from ..errors import InputError
from ..files import expanded
from ..illumination import read_lights
from ..inputs import read_targets
from ..lowlight import PRESETS
from . import plots, statements, statistics, tables
from .study import make_study

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def find_images(places: Sequence[Path], limit: int) -> list[Path]:
    """The pictures named and in the folders named, at most `limit`, evenly chosen. InputError if there are none."""
    found: list[Path] = []
    for place in map(expanded, places):
        if place.is_dir():
            found += sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS)
        else:
            found.append(place)
    if not found:
        raise InputError(f"no pictures ({', '.join(ENDINGS)}) in {', '.join(map(str, places))}")
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, limit).round().astype(int))]


def queries_of(workdir: Path) -> list[Path]:
    """The query images of a run's data. InputError if it is no run, or has none."""
    if not (workdir / "config.json").is_file():
        raise InputError(f"{workdir} is no work directory of a run: name the images with --images")
    targets = read_targets(configuration.load(workdir / "config.json"))
    return list(next(iter(targets.values())).query.paths)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m nrsrd_jax.analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--workdir", type=Path, help="a training run: its best checkpoint")
    weights.add_argument("--checkpoint", type=Path, help="a checkpoint")
    parser.add_argument("--images", type=Path, nargs="+", help="pictures or folders; default: the run's queries")
    parser.add_argument("--output", type=Path, default=Path("analysis"), help="the folder to write; default: analysis")
    parser.add_argument("--limit", type=int, default=64, help="how many images to take, evenly chosen; default: 64")
    parser.add_argument(
        "--lights",
        default="1,0.5,0.2,0.1,0.05",
        help="intensities in 0..1 to degrade to; '' for none; default: %(default)s",
    )
    parser.add_argument("--preset", choices=PRESETS, default="maet", help="how it degrades; default: %(default)s")
    region = parser.add_mutually_exclusive_group()
    region.add_argument("--masks", type=Path, help="a folder of person masks, named as the images")
    region.add_argument("--centre", action="store_true", help="take an ellipse in the middle for the person")
    parser.add_argument("--compare", type=Path, help="another run or checkpoint, shown beside in images.png")
    options = parser.parse_args()
    if options.limit < 1:
        raise InputError(f"--limit {options.limit}: at least 1 image is needed")
    lights = read_lights(options.lights)
    source, output = expanded(options.workdir or options.checkpoint), expanded(options.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder")
    study = make_study(
        source,
        find_images(options.images or queries_of(source), options.limit),
        lights=lights,
        preset=options.preset,
        masks=options.masks and expanded(options.masks),
        centre=options.centre,
        compare=options.compare and expanded(options.compare),
    )
    checked = statements.check(study)
    tables.write_all(study, checked, output)
    plots.write_all(study, output)
    for statement in checked:
        print(statements.sentence(statement))
    print(statistics.leverage_sentence(study.with_nra, study.without_nra, study.strength))
    print(f"figures (PNG, SVG) and tables (CSV) are in {output}")


if __name__ == "__main__":
    one_line(main)
