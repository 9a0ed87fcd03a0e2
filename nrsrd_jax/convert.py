"""Import a PyTorch checkpoint of TransReID-SSL, TransReID, IDE, PCB, BoT or AGW: a backbone, or a whole model.

  nrsrd convert ckpt.pth [--output DIR] [--image_size 256,128] [--brighten 0.4] [--dry_run]

It prints a row for each tensor and writes a checkpoint, for nrsrd eval --checkpoint, --config.init.checkpoint and
--config.teacher.checkpoint. If a tensor is missing, unknown or of a wrong shape, it reports an error and writes
nothing.
It reads .pth (zip and legacy) and .safetensors files, also in shards (give their index, or the folder), with the tensor
names of TransReID-SSL, PersonViT, DINO, timm or Hugging Face. PyTorch is not needed, and no code in the file is run.
In a clone, `python convert/from_torch.py` does the same.
"""

import argparse
import dataclasses
import os
import re
from pathlib import Path

from .checkpoint import save_weights
from .command import Parser, one_line
from .description import Description
from .errors import InputError, say
from .files import expanded
from .models.vit import PATCH
from .options import OPTIONS
from .weights.from_torch import convert, summary

# How many faults the error lists; the report has all of them.
MAX_LISTED = 20


def size(text: str) -> tuple[int, int]:
    """Parse height and width: "256,128" gives (256, 128)."""
    match = re.fullmatch(r"(\d{1,5}),(\d{1,5})", text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(sides) < PATCH:
        raise argparse.ArgumentTypeError(f"{text} is not height,width of at least {PATCH} pixels, like 256,128")
    return sides


def cameras(text: str) -> tuple[int, ...]:
    """Parse camera numbers: "1,2,3" gives (1, 2, 3)."""
    parts = text.split(",")
    numbers = tuple(int(part) for part in parts if re.fullmatch(r"[0-9]{1,9}", part))
    if not len(parts) == len(numbers) == len(set(numbers)):
        raise argparse.ArgumentTypeError(f"{text} is not a list of different cameras, like 1,2,3")
    return numbers


def level(text: str) -> float:
    """Parse a value for data.brighten."""
    try:
        OPTIONS["data.brighten"].check(value := float(text))
    except (ValueError, InputError) as error:
        raise argparse.ArgumentTypeError(
            f"{text} is not a mean of pixels; give a number of at least 0 and below 1"
        ) from error
    return value


def factor(text: str) -> float:
    """Parse a value for model.sie_factor."""
    try:
        OPTIONS["model.sie_factor"].check(value := float(text))
    except (ValueError, InputError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not a factor; it {OPTIONS['model.sie_factor'].range}") from error
    return value


def default_output(file: Path) -> Path:
    """Return the path of a file without its ending, or with "-jax" added if the file has no ending."""
    # A folder may be given as "." or "..", which have no name to derive another from.
    whole = file.resolve() if file.is_dir() else file
    stem = whole.with_name(whole.name.removesuffix(".index.json")).with_suffix("") if whole.name else whole
    return stem if stem != whole else stem.with_name(f"{stem.name or 'weights'}-jax")


def with_cameras(description: Description, names: tuple[int, ...]) -> Description:
    """Return the description with other numbers for its cameras. InputError if there are not as many, or not sorted."""
    if len(names) != len(description.cameras):
        raise InputError(
            f"--cameras names {len(names)} cameras, but the weights have {len(description.cameras)}; name as many"
        )
    if list(names) != sorted(names):
        raise InputError(
            "--cameras must be in ascending order, because the official code numbers the training cameras in that order"
        )
    return dataclasses.replace(description, cameras=names)


def main() -> None:
    options = _read_options()
    if not options.file.is_file() and not options.file.is_dir():
        raise InputError(f"there is no file {options.file}")
    output = expanded(options.output) if options.output else default_output(options.file)
    # Look before the conversion, which takes long. A link that leads nowhere counts as existing, too.
    if not options.dry_run and os.path.lexists(output):
        raise InputError(f"{output} exists; remove it, or choose another --output")
    try:
        description, variables, kept, report = convert(
            options.file, options.image_size, options.source_size, options.key, options.ignore, options.backbone
        )
    except InputError as error:
        raise InputError(f"{options.file}: {error}") from error
    if options.brighten is not None:
        description = dataclasses.replace(description, brighten=options.brighten)
    if options.cameras is not None:
        description = with_cameras(description, options.cameras)
    if options.sie_factor is not None:
        if not description.sie:
            raise InputError(
                "--sie_factor is for a model with camera embedding (SIE), which the file lacks: leave it out"
            )
        description = dataclasses.replace(description, sie_factor=options.sie_factor)
    if not options.dry_run and not report.faults:
        save_weights(output, description, variables, kept)
    say(*report.lines())
    if report.faults:
        listed = "; ".join(report.faults[:MAX_LISTED]) + "; and more, in the rows above" * (
            len(report.faults) > MAX_LISTED
        )
        raise InputError(f"{options.file}: {len(report.faults)} faults, nothing was written: {listed}")
    say(*report.warnings, *summary(description))
    if not options.dry_run:
        say(f"written to {output}")


def _read_options() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd convert")
    parser.add_argument("file", type=Path, help="the checkpoint file, the index of its shards, or the folder of either")
    parser.add_argument("--output", type=Path, help="the folder to write; default: the file without its ending")
    parser.add_argument(
        "--image_size",
        type=size,
        metavar="H,W",
        help="the size of the images that the model will take, in pixels: multiples of 16 unless patches overlap. The "
        "position embedding is resized to it; default: the size in the file",
    )
    parser.add_argument(
        "--source_size",
        type=size,
        metavar="H,W",
        help="the image size that the file's position embedding is for; needed if the number of patches is ambiguous",
    )
    parser.add_argument(
        "--key", default="", help="the network to take, if the file holds several; the error message lists them"
    )
    parser.add_argument(
        "--backbone",
        default="",
        metavar="NAME",
        help="the backbone, for a ResNet whose tensors fit several, like bot_resnet50_relu; the last lines of the "
        "report list them; default: the first backbone that fits",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out unknown tensors whose name, in the report or in the file, matches this pattern, for example "
        "'criterion.*'; can be repeated",
    )
    parser.add_argument(
        "--brighten",
        type=level,
        metavar="LEVEL",
        help="brighten each image whose mean, in 0..1, is lower than this before the model sees it (data.brighten); "
        "0.4 suits a backbone that was pretrained in daylight; default: as the file says, otherwise not at all",
    )
    parser.add_argument(
        "--cameras",
        type=cameras,
        metavar="1,2,…",
        help="the camera numbers of your data, for a model with camera embedding (SIE), in the order of its training; "
        "default: 0,1,2,…",
    )
    parser.add_argument(
        "--sie_factor",
        type=factor,
        metavar="N",
        help="the factor of the camera embedding (SIE), MODEL.SIE_COE of the config that trained the model; default: "
        "as the file says, otherwise 3",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the report, but write nothing")
    return parser.parse_args()


def command() -> None:
    """Run `nrsrd convert` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
