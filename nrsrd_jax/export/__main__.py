"""Write a model as a file for other programs, after comparing the file's features with the model's own.

  nrsrd export runs/night --output night.onnx                   ONNX: uint8 RGB crops in, float32 features out
  nrsrd export runs/night --crops DIR --output night.onnx       compared on your own crops
  nrsrd export runs/night --input boxmot --output night.onnx    for a program that normalises crops itself
  nrsrd export runs/night --precision int8 --crops DIR --data crops.csv --output night.onnx
  nrsrd export runs/night --format stablehlo --output night.stablehlo
  nrsrd export runs/night --format torch --output night.pth     the official model's state dict

The file contains the weights. ONNX and StableHLO files also contain the preparation of images: they take crops at the
model's size, in the form that --input names, brighten them if the model needs that, and normalise them. The metadata
has the size, the resize filter, the kind of features, the hash of the weights, the result of the comparison, and the
calibration in the model's folder.

For the comparison, the file embeds crops in batches of 1, 2, 7 and 32. If a number of a feature differs from the
model's own by more than --limit, nothing is written. float16 and int8 always differ. They need --data, labelled crops
as in nrsrd calibrate; if the mAP falls by more than --loss, nothing is written. docs/deploy.md shows how to use the
files.
"""

import argparse

from ..command import Parser, add_model_flags, number, one_line, positive
from ..errors import InputError
from ..files import writable_file
from . import OPSETS

# The keys of layouts.LAYOUTS, which is imported only when it is needed.
INPUTS = ("uint8-nhwc", "float-nchw", "bgr-nchw", "boxmot")
# The flags of the comparison, and those of each format. A PyTorch file is compared only if NRA is left out.
COMPARISON = {"feature", "flip", "crops", "limit"}
TAKEN = {
    "onnx": COMPARISON | {"input", "batch", "opset", "precision", "openvino", "data", "loss"},
    "stablehlo": COMPARISON | {"batch"},
    "torch": {"without_nra"},
}


def main() -> None:
    arguments = _read_arguments()
    output = writable_file(arguments.output, "--output")
    if arguments.format == "onnx" and output.suffix != ".onnx":
        raise InputError(f"--output {output}: name a .onnx file")
    # Import this only after the arguments are read, so that --help is quick.
    from . import write

    {"onnx": write.write_onnx, "stablehlo": write.write_stablehlo, "torch": write.write_torch}[arguments.format](
        arguments, output
    )


def batch(text: str) -> int | None:
    """Parse the number of crops per call; None for "dynamic"."""
    return None if text == "dynamic" else positive(text)


def opset(text: str) -> int:
    """Parse a version of ONNX's operators."""
    if not text.isdecimal() or int(text) not in OPSETS:
        raise argparse.ArgumentTypeError(f"{text} is not an opset from {OPSETS[0]} to {OPSETS[-1]}")
    return int(text)


def non_negative(text: str) -> float:
    """Parse a number of at least 0."""
    value = number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def _read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd export")
    parser.add_argument(
        "model", metavar="MODEL", help="a training run, whose best checkpoint is taken, or a checkpoint"
    )
    parser.add_argument("--output", required=True, help="the file to write or replace")
    parser.add_argument(
        "--format", choices=("onnx", "stablehlo", "torch"), default="onnx", help="the file's format; default: onnx"
    )
    add_model_flags(parser)
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="uint8-nhwc",
        help="the form of the crops: uint8-nhwc (default), RGB; float-nchw, RGB in 0..255; bgr-nchw, BGR in 0..255; "
        "boxmot, RGB normalised by ImageNet's mean and standard deviation",
    )
    parser.add_argument("--batch", type=batch, metavar="N", help="the number of crops per call, or dynamic (default)")
    parser.add_argument(
        "--opset", type=opset, default=17, metavar="N", help="the version of ONNX's operators, 17 (default) to 23"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="the type of weights and products; int8 quantises the linear layers, with ranges measured on --crops; "
        "default: float32",
    )
    parser.add_argument("--crops", default="", help="a folder of crops for the comparison; default: generated pictures")
    parser.add_argument(
        "--limit", type=non_negative, default=1e-4, help="the largest difference allowed in float32; default: 0.0001"
    )
    parser.add_argument("--openvino", action="store_true", help="also compare in OpenVINO, which must be installed")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="DATA", help="labelled crops: a manifest (.csv), or NAME DIR"
    )
    parser.add_argument(
        "--loss", type=non_negative, default=0.005, help="the largest fall of mAP allowed, in 0..1; default: 0.005"
    )
    parser.add_argument(
        "--without-nra", action="store_true", help="torch: leave NRA out, if the features are the same without it"
    )
    arguments = parser.parse_args()
    # Parse again into a namespace in which every flag is None. Argparse sets no defaults there, so that a flag with a
    # value was given by the user.
    marked = parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(vars(arguments))))
    given = [name for name, value in vars(marked).items() if value is not None]
    lossy = arguments.precision != "float32"
    taken = TAKEN[arguments.format] | (COMPARISON if arguments.without_nra else set())
    if unused := [name for name in given if name not in taken | {"model", "output", "format"}]:
        without = " without --without-nra" if unused[0] in COMPARISON and arguments.format == "torch" else ""
        flag = unused[0].replace("_", "-")
        parser.error(f"--{flag} has no effect with --format {arguments.format}{without}; leave it out")
    if "loss" in given and not arguments.data:
        parser.error("--loss has no effect without --data, the labelled crops whose mAP it limits; give --data too")
    if "limit" in given and lossy:
        parser.error(f"--limit has no effect with --precision {arguments.precision}: give --loss instead")
    if lossy and not arguments.data:
        parser.error(f"--precision {arguments.precision} needs --data, labelled crops to measure how far mAP falls")
    if arguments.precision == "int8" and not arguments.crops:
        parser.error("--precision int8 needs --crops, a folder of crops to measure its ranges on")
    return arguments


def command() -> None:
    """Run `nrsrd export` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
