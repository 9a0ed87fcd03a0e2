"""Write a file of each format, after comparing its features with the model's own."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..data.datasets import Split
from ..data.labels import read_labelled
from ..errors import InputError, say
from ..files import expanded, refuse_same_files, write_whole, written_whole
from ..models import with_base
from ..retrieval.embedding import Embedder
from ..runs import find_checkpoint
from ..weights import to_torch
from .metadata import entries
from .parity import BATCHES, compare, read_crops, scores


def write_onnx(arguments: argparse.Namespace, output: Path) -> None:
    """Write an ONNX file as the arguments of `nrsrd export` say.

    Raises:
        InputError: the model cannot be written, or the file's features differ too much.
    """
    # These modules need packages that only ONNX files require.
    from .layouts import LAYOUTS
    from .onnx_file import build, with_metadata
    from .quantize import quantized
    from .runtime import RUNTIME, OnnxEmbedder, openvino_function

    embedder, labelled = _load(arguments)
    crops, about = read_crops(arguments.crops, embedder.description.image_size)
    layout = LAYOUTS[arguments.input]
    model = build(
        embedder.description,
        embedder.variables,
        layout=arguments.input,
        feature=embedder.identity()["feature"],
        flip=arguments.flip,
        opset=arguments.opset,
        batch=arguments.batch,
        float_type="float16" if arguments.precision == "float16" else "float32",
    )
    if arguments.precision == "int8":
        model = quantized(model, layout.feed(crops), arguments.batch)
    notes = _notes(arguments, embedder, input=arguments.input, colours=layout.colours, opset=arguments.opset)
    content = with_metadata(model, notes)
    # Try the bytes that will be written. They need their metadata, which OnnxEmbedder reads, and get the result of this
    # comparison only afterwards.
    tried = OnnxEmbedder(content, batch_size=embedder.batch_size)
    checks = [_check(arguments, embedder, tried, crops, about, RUNTIME)]
    if arguments.openvino:
        other, name = openvino_function(content)
        checks.append(_check(arguments, embedder, lambda images: other(layout.feed(images)), crops, about, name))
    if labelled:
        checks[0] |= _check_scores(arguments, embedder, tried, labelled)
    content = with_metadata(model, notes | {"parity": json.dumps(checks)})
    with written_whole(output, follow=True) as partial:
        partial.write_bytes(content)
    taken, given = (f"[{', '.join(map(str, shape))}]" for shape in (tried.shape, (tried.shape[0], tried.width)))
    say(
        f"input images, {arguments.input} {taken}; output features, {notes['feature']} {given}",
        f"{len(content) / 2**20:.1f} MiB, opset {arguments.opset}, written to {output}",
    )


def write_stablehlo(arguments: argparse.Namespace, output: Path) -> None:
    """Write a StableHLO program, and its metadata into a .json file beside it.

    Raises:
        InputError: the model cannot be written, or the file's features differ too much.
    """
    from . import stablehlo

    about_it = output.with_name(output.name + ".json")
    refuse_same_files([output, about_it])
    embedder, _ = _load(arguments)
    crops, about = read_crops(arguments.crops, embedder.description.image_size)
    content = stablehlo.build(embedder, arguments.batch)
    check = _check(arguments, embedder, stablehlo.load(content), crops, about, f"JAX {jax.__version__}, StableHLO")
    notes = _notes(arguments, embedder, input="uint8-nhwc", colours="RGB", platforms=", ".join(stablehlo.PLATFORMS))
    with written_whole(output, follow=True) as partial:
        partial.write_bytes(content)
    # The user named only the program, so this file must not be written through a link.
    write_whole(about_it, json.dumps(notes | {"parity": json.dumps([check])}, indent=1) + "\n")
    say(f"{len(content) / 2**20:.1f} MiB, written to {output}, {about_it}")


def write_torch(arguments: argparse.Namespace, output: Path) -> None:
    """Write a PyTorch state dict as convert/to_torch.py does, without NRA if `--without-nra` is given.

    Raises:
        InputError: the official code cannot compute the model's features, or `to_torch.export` fails.
    """
    checkpoint = find_checkpoint(expanded(arguments.model))
    tensors, description = to_torch.export(checkpoint)
    if description.norm_ratio and arguments.without_nra:
        _check_without_nra(arguments)
        tensors = {name: value for name, value in tensors.items() if not name.endswith(".norm_ratio")}
        description = dataclasses.replace(description, norm_ratio=None)
    elif description.norm_ratio:
        say("NRA's λ is in the file, so the official code needs NRA to load it; --without-nra tries to leave it out")
    to_torch.write(output, tensors, description)


def _check_without_nra(arguments: argparse.Namespace) -> None:
    """Raise InputError if the features without NRA's penalty differ from those with it.

    γ = λ‖K‖/(‖Q‖+ε) is the product of a number for the query and one for the key. One more coordinate of queries and
    keys could represent it. But the official code computes them by a linear layer, and a norm is not linear.
    """
    embedder, _ = _load(arguments)
    base = embedder.variables["params"]["base"]
    spec: Any = embedder.description.spec
    other = Embedder(
        embedder.description.create_model(),
        with_base(embedder.variables, spec.with_strength(base, 0.0)),
        embedder.description,
        embedder.mesh,
        batch_size=embedder.batch_size,
        flip=arguments.flip,
        feature=embedder.identity()["feature"],
    )
    crops, about = read_crops(arguments.crops, embedder.description.image_size)
    without = compare(embedder(crops), other, crops, about, "without NRA", (embedder.batch_size,))
    say(str(without))
    if not without.worst <= arguments.limit:
        raise InputError(
            f"nothing is written: without NRA (λ = {spec.strength(base):.3g}) a number of a feature differs by "
            f"{without.worst:.2g}, more than --limit {arguments.limit:g}, and the official code's linear layers cannot "
            "compute a norm; leave --without-nra out, or use --format onnx"
        )


def _load(arguments: argparse.Namespace) -> tuple[Embedder, tuple[Split, bool] | None]:
    """Return the model in float32; and the labelled crops and whether they have cameras, or None without --data."""
    labelled = None
    if arguments.data:
        crops, with_cameras, remarks = read_labelled(arguments.data)
        labelled = crops, with_cameras
        say(*remarks)
    path = find_checkpoint(expanded(arguments.model))
    options: dict[str, Any] = {"flip": arguments.flip, "feature": arguments.feature}
    # On a GPU the default is bfloat16, which differs from the file by more than --limit.
    return Embedder.load(path, batch_size=max(BATCHES), precision="float32", **options), labelled


def _notes(arguments: argparse.Namespace, embedder: Embedder, **written_as: str | int) -> dict[str, str]:
    written_as |= {"format": arguments.format, "precision": arguments.precision}
    return entries(embedder, expanded(arguments.model), written_as)


def _check(
    arguments: argparse.Namespace,
    embedder: Embedder,
    run: Callable[[np.ndarray], Any],
    crops: np.ndarray,
    about: str,
    runtime: str,
) -> dict[str, Any]:
    """Compare the features, print the result and return it.

    Raises:
        InputError: a number differs by more than --limit. The limit is for float32 only.
    """
    sizes = (arguments.batch,) if arguments.batch else BATCHES
    parity = compare(embedder(crops), run, crops, about, runtime, sizes)
    say(str(parity))
    # `not … <=` also rejects NaN.
    if arguments.precision == "float32" and not parity.worst <= arguments.limit:
        raise InputError(
            f"nothing is written: a number of a feature differs by {parity.worst:.2g}, more than --limit "
            f"{arguments.limit:g}; the file would not compute what this model does"
        )
    return dataclasses.asdict(parity)


def _check_scores(
    arguments: argparse.Namespace, embedder: Embedder, tried: Any, labelled: tuple[Split, bool]
) -> dict[str, Any]:
    """Print and return the mAP of labelled crops by the model and by the file.

    Raises:
        InputError: the file's mAP is lower by more than --loss.
    """
    before, after = (scores(each, *labelled) for each in (embedder, tried))
    data, count = " ".join(Path(part).name for part in arguments.data), len(labelled[0])
    say(f"mAP of {count} labelled crops, {data}: {before:.4f} in float32 by JAX, {after:.4f} by the file")
    if not before - after <= arguments.loss:
        raise InputError(
            f"nothing is written: {before - after:.4f} of mAP would be lost, more than --loss {arguments.loss:g}; "
            "raise --loss, or export in float32"
        )
    return {"data": data, "labelled": count, "mAP": before, "mAP_of_the_file": after}
