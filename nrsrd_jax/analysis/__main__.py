"""Show what attention does in a checkpoint: the paper's figures 1, 3, 5, 6, 7 and its statements, on your images.

  nrsrd analysis --workdir runs/demo-nrsrd --output out
  nrsrd analysis --checkpoint DIR --images FOLDER --masks MASKS --compare OTHER-RUN
  nrsrd analysis --checkpoint DIR --sweep --config.data.root=demo/night

The figures (PNG and SVG) and their numbers (CSV) show the norms of queries, keys and values by block and head, where
the CLS token looks with and without Norm-Ratio Attention (NRA), what changes when the images are degraded to less
light, and how much NRA can change. A norm is that of the whole vector, in the last block unless another block is named,
and NRA has the λ that was trained.

--sweep instead evaluates the weights on a test set with other values of NRA's λ, in both of its forms, and with other
temperatures of plain attention. It reports whether any of them changes the scores, in sweep.csv and sweep.png. The data
is set by the options of nrsrd eval, --config.KEY=VALUE.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..build import degradation_options
from ..command import Parser, one_line, read_overrides, split_config_arguments
from ..config import config_of
from ..data.listing import IMAGE_SUFFIXES, is_hidden
from ..errors import InputError, say
from ..files import expanded, writable_folder
from ..inputs import read_targets
from ..lowlight import PRESETS
from ..options import Options, read_options
from ..retrieval.illumination import read_lights
from ..runs import find_checkpoint, run_of
from . import plots, statements, sweep, tables
from .study import evenly, make_study

# The largest --limit. All maps are held in memory: a ViT-B's take 1.2 MB per image and light.
MOST = 500


def find_images(places: Sequence[Path], limit: int) -> list[Path]:
    """Find the image files among `places`.

    Args:
        places: images, and folders whose images are taken without those of their subfolders.
        limit: the largest number of images; if there are more, they are chosen evenly.

    Returns:
        The paths.

    Raises:
        InputError: a place does not exist, or there is not a single image.
    """
    found: list[Path] = []
    for place in map(expanded, places):
        if place.is_dir():
            images = (path for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            found += sorted(path for path in images if not is_hidden(path.name))
        elif place.exists():
            found.append(place)
        else:
            raise InputError(f"--images {place}: no such file or folder; check the path")
    if not found:
        raise InputError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(map(str, places))}")
    return [found[i] for i in evenly(len(found), limit)]


def queries_of(options: Options) -> list[Path]:
    """Return the query images of a run's data. InputError if they cannot be read."""
    try:
        targets = read_targets(options)
    except InputError as error:
        raise InputError(f"the run's queries cannot be read: {error}; name images with --images") from error
    return list(next(iter(targets.values())).query.paths)


def _sweep(source: Path, options: Options, folder: Path) -> None:
    """Score altered attention on the test set that the options choose, and write the results to a folder."""
    # Check the folder before the sweep, which takes long.
    output = writable_folder(folder, "--output")
    rows = sweep.sweep(source, options, read_targets(options))
    sweep.write(rows, output, str(source))
    say(*sweep.summary(rows), f"sweep.csv and sweep.png are in {output}")


def main() -> None:
    parser = Parser(__doc__, "nrsrd analysis")
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--workdir", type=Path, help="a training run, of which the best checkpoint is used")
    weights.add_argument("--checkpoint", type=Path, help="a checkpoint")
    parser.add_argument("--images", type=Path, nargs="+", help="images or folders; default: the run's queries")
    parser.add_argument("--output", type=Path, default=Path("analysis"), help="folder to write to; default: analysis")
    parser.add_argument("--limit", type=int, default=64, help="use at most LIMIT images, chosen evenly; default: 64")
    parser.add_argument(
        "--lights",
        default="1,0.5,0.2,0.1,0.05",
        help="the light intensities, in 0..1, to degrade the images to; '' to degrade nothing; default: %(default)s",
    )
    parser.add_argument("--preset", choices=PRESETS, help="degradation preset; default: the run's, otherwise maet")
    region = parser.add_mutually_exclusive_group()
    region.add_argument("--masks", type=Path, help="a folder of person masks with the names of the images")
    region.add_argument("--centre", action="store_true", help="take an ellipse in the middle for the person")
    parser.add_argument("--compare", type=Path, help="another run or checkpoint, to show beside this one in images.png")
    parser.add_argument("--sweep", action="store_true", help="score values of λ and temperature on a test set instead")
    ours, rest = split_config_arguments(sys.argv[1:])
    arguments = parser.parse_args(rest)
    config, overrides = read_overrides(ours)
    # Refuse options that --sweep would ignore.
    unused = [name for name in ("images", "preset", "masks", "centre", "compare") if getattr(arguments, name)]
    if arguments.sweep and unused:
        parser.error(f"--sweep takes no --{unused[0]}")
    if not 1 <= arguments.limit <= MOST:
        raise InputError(f"--limit {arguments.limit}: take 1 to {MOST} images; all their maps are held in memory")
    lights = read_lights(arguments.lights, "--lights")
    source = expanded(arguments.workdir or arguments.checkpoint)
    run = run_of(find_checkpoint(source))
    # Without --config, the data is that of the run. Options on the command line override it.
    if config is None:
        config = config_of(run)
        config.update_from_flattened_dict(overrides)
    options = read_options(config)
    if arguments.sweep:
        _sweep(source, options, arguments.output)
        return
    if not arguments.images and not run:
        raise InputError(f"{source} does not belong to a run; name the images with --images")
    paths = find_images(arguments.images or queries_of(options), arguments.limit)
    output = writable_folder(arguments.output, "--output")
    study = make_study(
        source,
        paths,
        lights=lights,
        degradation={"preset": arguments.preset} if arguments.preset else degradation_options(options),
        masks=arguments.masks and expanded(arguments.masks),
        centre=arguments.centre,
        compare=arguments.compare and expanded(arguments.compare),
    )
    checked = statements.check(study)
    tables.write_all(study, checked, output)
    plots.write_all(study, output)
    say(*checked, statements.leverage_sentence(study), f"figures (PNG, SVG) and tables (CSV) are in {output}")


def command() -> None:
    """Run `nrsrd analysis` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
