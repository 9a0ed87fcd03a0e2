"""Write a model as a file for other programs, after comparing the file's features with the model's own.

  nrsrd export runs/night --output night.onnx                   ONNX: uint8 RGB crops in, float32 features out
  nrsrd export runs/night --crops DIR --output night.onnx       compared on your own crops
  nrsrd export runs/night --input boxmot --output night.onnx    for a program that normalises crops itself

The file holds the weights and all that comes before the network: it takes crops at the model's size (--input says in
which form), brightens them if the model wants that, and normalises them. Its metadata has the size, the resize filter,
the kind of features, the hash of the weights, the comparison, and the calibration beside the model.

Before the file is written, it embeds crops in batches of 1, 2, 7 and 32. If a number of a feature differs from the
model's own by more than --limit, nothing is written. docs/deploy.md shows how to use the files.
"""

import argparse

from ..command import Parser, add_model_flags, one_line, positive
from ..errors import InputError, say
from ..files import expanded, writable_file, written_whole

INPUTS = ("uint8-nhwc", "float-nchw", "bgr-nchw", "boxmot")  # layouts.LAYOUTS, which is imported late
OPSETS = range(17, 24)  # graph.OPSETS, likewise


def main() -> None:
    arguments = _read_arguments()
    output = writable_file(arguments.output, "--output")
    # Not imported before the arguments are read, so that --help is quick.
    from ..retrieval.embedding import Embedder
    from ..runs import find_checkpoint
    from .layouts import LAYOUTS
    from .metadata import entries
    from .onnx_file import build, with_metadata
    from .parity import BATCHES, compare, read_crops
    from .runtime import RUNTIME, OnnxEmbedder

    source = expanded(arguments.model)
    embedder = Embedder.load(
        find_checkpoint(source), batch_size=32, precision="float32", flip=arguments.flip, feature=arguments.feature
    )
    crops, about = read_crops(arguments.crops, embedder.description.image_size)
    feature = embedder.identity()["feature"]
    model = build(
        embedder.description,
        embedder.variables,
        layout=arguments.input,
        feature=feature,
        flip=arguments.flip,
        opset=arguments.opset,
        batch=arguments.batch,
    )
    written_as = {
        "input": arguments.input,
        "colours": LAYOUTS[arguments.input].colours,
        "opset": arguments.opset,
        "precision": "float32",
    }

    def file(parities: list) -> bytes:
        notes = entries(embedder, source, written_as=written_as, parities=parities)
        return with_metadata(model, notes)

    tried = OnnxEmbedder(file([]))
    sizes = (arguments.batch,) if arguments.batch else BATCHES
    parity = compare(embedder(crops), tried, crops, about, RUNTIME, sizes)
    say(str(parity))
    # NaN is not within the limit either.
    if not parity.worst <= arguments.limit:
        raise InputError(
            f"nothing is written: a number of a feature differs by {parity.worst:.2g}, more than --limit "
            f"{arguments.limit:g}; the graph does not compute what this model does"
        )
    content = file([parity])
    with written_whole(output, follow=True) as partial:
        partial.write_bytes(content)
    shape = ", ".join(map(str, tried.shape))
    say(
        f"input images: {arguments.input} [{shape}]; output features: {feature} [{tried.shape[0]}, {tried.width}]",
        f"{len(content) / 2**20:.1f} MiB, opset {arguments.opset}, written to {output}",
    )


def batch(text: str) -> int | None:
    """Return the number of crops of a call; None for "dynamic"."""
    return None if text == "dynamic" else positive(text)


def opset(text: str) -> int:
    """Return a version of ONNX's operators."""
    if not text.isdecimal() or int(text) not in OPSETS:
        raise argparse.ArgumentTypeError(f"{text} is not an opset from {OPSETS[0]} to {OPSETS[-1]}")
    return int(text)


def limit(text: str) -> float:
    """Return a difference, at least 0."""
    number = float(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return number


def _read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd export")
    parser.add_argument(
        "model", metavar="MODEL", help="a training run, whose best checkpoint is taken, or a checkpoint"
    )
    parser.add_argument("--output", required=True, help="the file to write or replace")
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
    parser.add_argument("--crops", default="", help="a folder of crops to compare on; default: generated pictures")
    parser.add_argument("--limit", type=limit, default=1e-4, help="the largest permitted difference; default: 0.0001")
    return parser.parse_args()


def command() -> None:
    """Run `nrsrd export` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
