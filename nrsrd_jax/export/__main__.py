"""Write a model as a file for other programs, after comparing the file's features with the model's own.

  nrsrd export runs/night --output night.onnx                   ONNX: uint8 RGB crops in, float32 features out
  nrsrd export runs/night --crops DIR --output night.onnx       compared on your own crops
  nrsrd export runs/night --input boxmot --output night.onnx    for a program that normalises crops itself
  nrsrd export runs/night --precision int8 --crops DIR --data crops.csv --output night.onnx
  nrsrd export runs/night --format stablehlo --output night.stablehlo
  nrsrd export runs/night --format torch --output night.pth     the official model's state dict

The file holds the weights and, except for PyTorch, all that comes before the network: it takes crops at the model's
size (--input says in which form), brightens them if the model wants that, and normalises them. Its metadata has the
size, the resize filter, the kind of features, the hash of the weights, the comparison, and the calibration beside the
model.

Before the file is written, it embeds crops in batches of 1, 2, 7 and 32. If a number of a feature differs from the
model's own by more than --limit, nothing is written. float16 and int8 always differ, so they need --data, labelled
crops as in nrsrd calibrate; if their mAP falls by more than --loss, nothing is written. docs/deploy.md shows how to use
the files.
"""

import argparse

from ..command import Parser, add_model_flags, number, one_line, positive
from ..errors import InputError
from ..files import writable_file
from . import OPSETS

INPUTS = ("uint8-nhwc", "float-nchw", "bgr-nchw", "boxmot")  # layouts.LAYOUTS, which is imported late
# The flags of the comparison, and those of each format. A PyTorch file is compared only where NRA is left out.
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
    # Not imported before the arguments are read, so that --help is quick.
    from . import write

    {"onnx": write.write_onnx, "stablehlo": write.write_stablehlo, "torch": write.write_torch}[arguments.format](
        arguments, output
    )


def batch(text: str) -> int | None:
    """Return the number of crops of a call; None for "dynamic"."""
    return None if text == "dynamic" else positive(text)


def opset(text: str) -> int:
    """Return a version of ONNX's operators."""
    if not text.isdecimal() or int(text) not in OPSETS:
        raise argparse.ArgumentTypeError(f"{text} is not an opset from {OPSETS[0]} to {OPSETS[-1]}")
    return int(text)


def non_negative(text: str) -> float:
    """Return a number, at least 0."""
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
    parser.add_argument("--format", choices=("onnx", "stablehlo", "torch"), default="onnx", help="default: onnx")
    add_model_flags(parser)
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="uint8-nhwc",
        help="how crops are fed: uint8-nhwc, the default, RGB; float-nchw, RGB in 0..255; bgr-nchw, the same in BGR; "
        "boxmot, RGB normalised by ImageNet's mean and deviation",
    )
    parser.add_argument("--batch", type=batch, metavar="N", help="crops of a call: a number, or dynamic, the default")
    parser.add_argument("--opset", type=opset, default=17, metavar="N", help="17, the default, to 23")
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="of the weights and products; int8 quantises the linear layers by the crops of --crops; default: float32",
    )
    parser.add_argument("--crops", default="", help="a folder of crops to compare on; default: generated pictures")
    parser.add_argument(
        "--limit", type=non_negative, default=1e-4, help="the largest difference permitted in float32; default: 0.0001"
    )
    parser.add_argument("--openvino", action="store_true", help="compare in OpenVINO as well, if it is installed")
    parser.add_argument("--data", nargs="+", default=[], metavar="DATA", help="a manifest (.csv), or NAME DIR")
    parser.add_argument(
        "--loss", type=non_negative, default=0.005, help="the most mAP to lose, in 0..1; default: 0.005"
    )
    parser.add_argument(
        "--without-nra", action="store_true", help="torch: leave NRA out, if the features are the same without it"
    )
    arguments = parser.parse_args()
    # The second parsing fills a namespace of None, which has no defaults: a flag with a value there is given.
    marked = parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(vars(arguments))))
    given = [name for name, value in vars(marked).items() if value is not None]
    lossy = arguments.precision != "float32"
    taken = TAKEN[arguments.format] | (COMPARISON if arguments.without_nra else set())
    if unused := [name for name in given if name not in taken | {"model", "output", "format"}]:
        without = " without --without-nra" if unused[0] in COMPARISON and arguments.format == "torch" else ""
        flag = unused[0].replace("_", "-")
        parser.error(f"--{flag} has no effect with --format {arguments.format}{without}; leave it out")
    if "loss" in given and not arguments.data:
        parser.error("--loss has no effect without --data, labelled crops whose mAP may fall by it; give --data too")
    if "limit" in given and lossy:
        parser.error(f"--limit has no effect with --precision {arguments.precision}: give --loss instead")
    if lossy and not arguments.data:
        parser.error(f"--precision {arguments.precision} needs --data, labelled crops that say how much mAP it costs")
    if arguments.precision == "int8" and not arguments.crops:
        parser.error("--precision int8 needs --crops, a folder of crops that its ranges are measured on")
    return arguments


def command() -> None:
    """Run `nrsrd export` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
