"""Export a checkpoint to PyTorch: a state dict with the names of TransReID-SSL's model. PyTorch is not needed.

  python convert/to_torch.py DIR [--output out.pth] [--format torch|safetensors] [--backbone]

DIR is a training run, whose best checkpoint is taken, or a checkpoint. `torch.load(file, weights_only=True)` reads the
result, and the official model loads it strictly. NRA's λ is `base.blocks.11.attn.norm_ratio` (for 12 blocks), and the
classifier of the auxiliary domain is `classifier_aux.weight`. Remove these two for a model without NRA or without that
classifier.
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from ..checkpoint import load, load_kept
from ..command import Parser, one_line
from ..description import Description
from ..errors import InputError, say
from ..files import absolute, writable_file, written_whole
from ..models.idf import IDFSpec
from ..models.transreid import SIE_FACTOR
from ..runs import find_checkpoint
from ..sharding import make_mesh
from ..stored import read_description
from . import torch_file, torch_names

SUFFIXES = {"torch": ".pth", "safetensors": ".safetensors"}
# The last part of the name of BatchNorm's counter of batches.
COUNTER = "num_batches_tracked"


def export(directory: Path, backbone: bool = False) -> tuple[dict[str, np.ndarray], Description]:
    """Convert a checkpoint to the state dict of the official PyTorch model, without PyTorch.

    Args:
        directory: a checkpoint, or the work directory of a training run, whose best checkpoint is taken.
        backbone: whether to return only the backbone's tensors. Where the official name begins with `base.`, theirs
            begins with `backbone.`, as in the teacher of a DINO checkpoint. JPM's local branch and SIE's vectors are
            left out.

    Returns:
        {official name: tensor}, and the Description without its provenance. The tensors of a converted checkpoint have
        the types of the original file; after training they are float32.

    Raises:
        InputError: `directory` contains no checkpoint, or a damaged one; the official code lacks its form of NRA; or
            `backbone` is chosen, but the model is IDF, which has two.

    Source:
        The names and layouts of the official code of TransReID-SSL.

    Example:
        >>> from pathlib import Path
        >>> from nrsrd_jax.weights.to_torch import export
        >>> tensors, description = export(Path("runs/night"))
        >>> tensors["base.blocks.0.attn.qkv.weight"].shape
        (576, 192)
    """
    path = find_checkpoint(directory)
    description, variables = load(path, make_mesh())
    source = description.provenance.get("source") or {}
    jpm, types = source.get("jpm", False) and not backbone, source.get("types", {})
    if backbone:
        if isinstance(description.spec, IDFSpec):
            raise InputError(f"{path} is an IDF model, which has two backbones: leave --backbone out")
        description = dataclasses.replace(description, jpm=False, sie=False, sie_factor=SIE_FACTOR)
    if not set(types.values()) <= {"float16", "bfloat16"}:
        raise InputError(f"{path} is damaged: it names tensors of unknown types")
    if description.norm_ratio and description.norm_ratio.form != "ratio":
        raise InputError(
            f"{path} has NRA of the form {description.norm_ratio.form}, which the official code does not support: "
            "it would compute other features"
        )
    tensors, inside = {}, set()
    for name, slot in torch_names.slots(description, jpm).items():
        # The official models lack the centres: the official code saves them in another file.
        if slot.path[1] == "centers":
            continue
        values = variables
        for key in slot.path:
            values = values[key]
        tensors[name] = slot.to_torch(np.asarray(values)).astype(types.get("/".join(slot.path), "float32"))
        if slot.path[1] == "base":
            inside |= {name, counter_of(name)}
    extras = official_extras(description) | load_kept(path, description)
    if not backbone:
        whole, prefix = tensors | extras, description.spec.prefix
        named = {re.sub(r"^base\.", prefix, name): value for name, value in whole.items()}
        return named, dataclasses.replace(description, provenance={})
    tensors |= {name: value for name, value in extras.items() if name.endswith(COUNTER)}
    headless = dataclasses.replace(description, classes=0, aux_classes=0, identities=(), provenance={})
    return {re.sub(r"^base\.", "backbone.", name): tensors[name] for name in tensors if name in inside}, headless


def counter_of(name: str) -> str:
    """Return the official name of the counter beside a BatchNorm's running mean; other names stay as they are."""
    return re.sub(r"running_mean$", COUNTER, name)


def official_extras(description: Description) -> dict[str, np.ndarray]:
    """Return the tensors that only the official model has, all zero: an untrained `fc`, and BatchNorm's counters."""
    table, extras = torch_names.slots(description), {}
    if "base.cls_token" in table:
        width = table["base.cls_token"].shape[-1]
        extras = {"base.fc.weight": np.zeros((1000, width), np.float32), "base.fc.bias": np.zeros(1000, np.float32)}
    # The official JPM model also has the block and norm that its branches were copied from, but does not run them.
    if description.jpm:
        plain = torch_names.slots(dataclasses.replace(description, jpm=False))
        extras |= {name: np.zeros(slot.shape, np.float32) for name, slot in plain.items() if name not in table}
    return extras | {counter_of(name): np.zeros((), np.int64) for name in table if counter_of(name) != name}


def main() -> None:
    """Write the file that the process's arguments ask for."""
    parser = Parser(__doc__, "python convert/to_torch.py")
    parser.add_argument("directory", type=Path, help="a training run or a checkpoint")
    parser.add_argument("--output", type=Path, help="the file to write; default: DIR.pth, beside DIR")
    parser.add_argument("--format", choices=SUFFIXES, default="torch", help="the file's format; default: torch")
    parser.add_argument(
        "--backbone", action="store_true", help="write only the backbone, named as the teacher in a DINO checkpoint"
    )
    options = parser.parse_args()
    directory = absolute(options.directory)
    path = find_checkpoint(directory)
    name = directory.name + ("-backbone" if options.backbone else "") + SUFFIXES[options.format]
    output = writable_file(options.output or directory.parent / name, "--output")
    # `exists` is false for a link that leads nowhere.
    if os.path.lexists(output):
        raise InputError(f"{output} exists; remove it, or choose another --output")
    tensors, description = export(directory, options.backbone)
    if options.backbone:
        whole = read_description(path)
        parts = ["the local features of JPM (b2)"] * whole.jpm + ["the cameras' vectors of SIE"] * whole.sie
        say(*(f"not part of the backbone, left out: {part}" for part in parts))
    write(output, tensors, description, options.format, backbone=options.backbone, follow=options.output is not None)


def write(
    output: Path,
    tensors: dict[str, np.ndarray],
    description: Description,
    file_format: str = "torch",
    *,
    backbone: bool = False,
    follow: bool = True,
) -> None:
    """Write the result of `export`, and print the file's name.

    Args:
        output: the file to write or replace.
        tensors, description: the result of `export`.
        file_format: a key of SUFFIXES.
        backbone: whether the tensors are those of the backbone alone.
        follow: whether `output` may be a symbolic link.

    Raises:
        InputError: the file cannot be written.
    """
    notes = json.dumps(dataclasses.asdict(description))
    with written_whole(output, follow=follow) as partial:
        if file_format == "safetensors":
            # safetensors copies an array's memory as it lies, so a transposed view must be put in order first.
            contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
            partial.write_bytes(safetensors.numpy.save(contiguous, {torch_file.NOTES: notes}))
        else:
            torch_file.save(partial, tensors, wrapper="teacher" if backbone else "", notes=notes)
    if description.brighten:
        say(
            f"warning: the model takes images that are brightened to a mean of {description.brighten} "
            "(nrsrd_jax.augment.brighten); the official code does not brighten them",
            error=True,
        )
    if description.sie:
        say(f"its cameras' vectors have a factor: set MODEL.SIE_COE {description.sie_factor:g} in the official code")
    say(f"{len(tensors)} tensors, {output.stat().st_size / 2**20:.1f} MiB, written to {output}")


def command() -> None:
    """Run `python convert/to_torch.py` with the arguments of the process."""
    one_line(main)
