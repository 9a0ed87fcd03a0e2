"""Import a PyTorch checkpoint of TransReID-SSL: a pretrained backbone, or a whole Re-ID model.

The report has a row for each tensor. A tensor that is missing, unknown or of a wrong shape is a fault.
"""

import dataclasses
import fnmatch
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..description import Description
from ..errors import InputError, printable
from ..models import MODELS
from ..models.position import resize_position_embedding
from ..models.resnet import ResNetSpec
from ..models.vit import PATCH, patch_grid
from . import foreign_names, torch_names
from .foreign_names import Array
from .identify import HALF, identify_model, identify_resnet
from .pickle_types import STORAGES
from .state_dict import read

FLOATS = ("float32", "float16", "bfloat16", "float64")
# Tensors that are kept for to_torch.py take at most this many bytes of memory.
MAX_KEPT = 2**31


@dataclasses.dataclass
class Report:
    """The report of a conversion.

    Attributes:
        origin: where in the file the weights were found; "" for the top level.
        rows: (name, shape, verdict, note) of each tensor. The verdict is mapped, resized, new, ignored or FAULT.
        faults: errors. A conversion with errors must not be used.
        warnings: facts that the user should know.
        kept: the bytes of the tensors that are kept for to_torch.py.
    """

    origin: str = ""
    rows: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    kept: int = 0

    def add(self, name: str, value: Any, verdict: str, note: str) -> None:
        """Add a row for a tensor, or for a name without a tensor if `value` is None."""
        shape = "–" if value is None else "×".join(map(str, value.shape)) or "scalar"
        self.rows.append((printable(name, 100), shape, verdict, note))

    def fault(self, name: str, value: Any, note: str) -> None:
        """Add a row with the verdict FAULT, and an error."""
        self.add(name, value, "FAULT", note)
        self.faults.append(f"{printable(name, 100)}: {note}")

    def lines(self) -> list[str]:
        """Return the report as text: aligned rows, then the counts of the verdicts."""
        names, shapes = (max((len(row[i]) for row in self.rows), default=0) for i in (0, 1))
        lines = [f"{name:<{names}}  {shape:>{shapes}}  {what:<8} {note}" for name, shape, what, note in self.rows]
        verdicts = [row[2] for row in self.rows]
        counts = [
            f"{verdicts.count(verdict)} {verdict}" for verdict in ("mapped", "resized", "new", "ignored", "FAULT")
        ]
        return [*([f"weights found {self.origin}"] if self.origin else []), *lines, ", ".join(counts)]


def without_old_layouts(tensors: dict[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the tensors in the shapes of today's official model, and notes on the changes, by name."""
    tensors, notes = dict(tensors), {}
    projection, position = tensors.get("base.patch_embed.proj.weight"), tensors.get("base.pos_embed")
    # Old ViTs of timm multiplied flattened patches by a matrix; timm's loader reshapes it in the same way.
    if projection is not None and projection.shape[1:] == (3 * PATCH * PATCH,):
        tensors["base.patch_embed.proj.weight"] = np.asarray(projection).reshape(-1, 3, PATCH, PATCH)
        notes["base.patch_embed.proj.weight"] = "a matrix in the file"
    if "base.dist_token" in tensors and position is not None and len(position.shape) == 3 and position.shape[1] > 1:
        # Distilled ViTs (DeiT) have a second token after CLS, which this model lacks.
        tensors["base.pos_embed"] = np.delete(np.asarray(position), [1], axis=1)
        notes["base.pos_embed"] = "without the row of dist_token"
    return tensors, notes


def convert(
    path: Path,
    image_size: tuple[int, int] | None = None,
    source_size: tuple[int, int] | None = None,
    key: str = "",
    ignored: Sequence[str] = (),
    backbone: str = "",
) -> tuple[Description, dict, dict[str, np.ndarray], Report]:
    """Convert a PyTorch checkpoint of TransReID-SSL, of a compatible ViT, or of a ResNet-50, without PyTorch.

    If the report has faults, the conversion must not be used: do not pass it to `checkpoint.save_weights`.

    Args:
        path: a `.pth` or `.safetensors` file, an index of shards, or a folder with one of these.
        image_size: the size of the images that the model will take, (height, width) in pixels; None for the size in
            the file. The position embedding is resized to it.
        source_size: the image size of the position embedding in the file, (height, width) in pixels; None to guess it.
        key: the network to take if the file contains several, such as "teacher"; "" if there is only one.
        ignored: glob patterns of names. Tensors that match are left out, unless the model or a rule takes them.
        backbone: a ResNet's name in MODELS, because its tensors do not determine everything (`ResNetSpec`); "" for
            the first ResNet that has such tensors.

    Returns:
        The Description of the model; its variables {"params": …, "batch_stats": …} in float32; {name: array}, the
        tensors kept for `weights.to_torch.export`; and the Report.

    Raises:
        InputError: the file cannot be read, or contains no known network. All other errors are in the report.

    Example:
        >>> from pathlib import Path
        >>> from nrsrd_jax.weights.from_torch import convert
        >>> description, variables, kept, report = convert(Path("model.pth"))
        >>> description.backbone, description.depth, report.faults
        ('vit_tiny', 1, [])
        >>> variables["params"]["base"]["cls_token"].shape
        (1, 1, 192)
    """
    state = read(path, key)
    report = Report(state.origin)
    for name, reason in state.beside.items():
        report.add(name, None, "ignored", reason)
    for name, reason in state.faults.items():
        report.fault(name, None, reason)
    tensors, old = without_old_layouts(state.tensors)
    old |= state.remarks
    source = _identify(tensors, state.notes, source_size, backbone)
    target = dataclasses.replace(source, image_size=image_size or source.image_size)
    target.spec.check_size(target.image_size)
    # Only a ViT has a position embedding, for which these grids are needed.
    grids = [patch_grid(each.image_size, each.stride or PATCH) for each in (source, target)]
    table = torch_names.slots(source)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    kept: dict[str, np.ndarray] = {}
    # The types of variables that are not float32 in the file, so that to_torch.py can restore them.
    types: dict[str, str] = {}
    rounded = 0
    unused = set(ignored)
    for name, tensor in tensors.items():
        if name not in table:
            rule = torch_names.ignored(name, source)
            names = (name, state.sources.get(name, name)) if rule is None else ()
            matching = [pattern for pattern in ignored if any(fnmatch.fnmatchcase(each, pattern) for each in names)]
            unused.difference_update(matching)
            ignore(name, tensor, (False, f"--ignore {matching[0]}") if matching else rule, kept, report)
            continue
        slot, resized = table[name], name == "base.pos_embed" and grids[0] != grids[1]
        values = _convert_tensor(name, tensor, slot, old.get(name), grids if resized else (), report)
        if values is None:
            continue
        put(variables, slot.path, values)
        rounded += tensor.dtype == np.float64
        # A resized embedding is new in float32, so an export must not round it to the file's type.
        if tensor.dtype not in (np.float32, np.float64) and not resized:
            types["/".join(slot.path)] = str(tensor.dtype)
    for pattern in sorted(unused):
        report.fault(f"--ignore {pattern}", None, "matches no unknown tensor")
    if rounded:
        report.warnings.append(f"{rounded} tensors in float64 were rounded to float32, and are exported as float32")
    if foreign_names.POOLED in state.remarks.values():
        report.warnings.append(f"the last norm is {foreign_names.POOLED}")
    bare = not source.classes and not any(name.startswith("bottleneck") for name in tensors)
    _add_missing({name: slot for name, slot in table.items() if name not in tensors}, bare, variables, report)
    origin = {
        "file": path.name,
        "sha256": sha256(*state.files or [path]),
        "types": types,
        "described": bool(state.notes),
    }
    provenance = {"made_by": "convert/from_torch.py", "source": origin}
    return dataclasses.replace(target, provenance=provenance), variables, kept, report


def _identify(tensors: dict[str, Array], notes: str, source_size: tuple[int, int] | None, backbone: str) -> Description:
    """Return the description of the model that has these tensors. InputError if it is unknown, or for wrong options."""
    if "base.layer1.0.conv1.weight" in tensors:
        if source_size:
            raise InputError("--source_size is for the position embedding of a ViT, but this is a ResNet: leave it out")
        return identify_resnet(tensors, notes, backbone)
    if backbone:
        raise InputError("--backbone is for a ResNet; the tensors of a ViT determine the model: leave --backbone out")
    return identify_model(tensors, notes, source_size)


def _convert_tensor(
    name: str,
    tensor: Array,
    slot: torch_names.Slot,
    remark: str | None,
    grids: Sequence[tuple[int, int]],
    report: Report,
) -> np.ndarray | None:
    """Return a tensor in float32 in our layout, and add its row to the report. None if it has a fault.

    A position embedding is resized from the first to the second of `grids`, if they are given.
    """
    if fault := misfit(tensor, slot.shape):
        report.fault(name, tensor, fault)
        return None
    # A float64 number beyond float32 becomes infinite, which the report lists as a fault.
    with np.errstate(over="ignore"):
        values = np.asarray(tensor).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        report.fault(name, tensor, "contains numbers that are not finite, or beyond float32")
        return None
    steps = [slot.transform, *([remark] if remark else [])]
    if tensor.dtype != np.float32:
        steps.append(f"from {tensor.dtype}" + (", rounded to float32" if tensor.dtype == np.float64 else ""))
    values = slot.from_torch(values)
    if grids:
        values = resize_position_embedding(values, *grids)
        steps.append("{}×{} → {}×{} patches, bilinear".format(*grids[0], *grids[1]))
    report.add(name, tensor, "resized" if grids else "mapped", ", ".join(steps))
    return values


def _add_missing(missing: dict[str, torch_names.Slot], bare: bool, variables: dict[str, Any], report: Report) -> None:
    """Add the variables that the file lacks: the neck of a `bare` backbone, and centres. Others are faults."""
    for name, slot in missing.items():
        if bare and slot.path[1].startswith("bottleneck"):
            ones = name.endswith(("weight", "var"))
            put(variables, slot.path, np.full(slot.shape, float(ones), np.float32))
            report.add(name, None, "new", f"no neck in the file: set to {int(ones)}, as before training")
        elif slot.path[1] == "centers":
            put(variables, slot.path, np.zeros(slot.shape, np.float32))
            report.add(name, None, "new", "set to 0: the centres are in another file, and only training needs them")
        else:
            report.fault(name, None, f"missing; the model expects shape {slot.shape}")


def ignore(
    name: str, tensor: Array, rule: tuple[bool, str] | None, kept: dict[str, np.ndarray], report: Report
) -> None:
    """Report a tensor that the model does not have. Add it to `kept` if its rule (kept, reason) says so."""
    if rule is None:
        report.fault(name, tensor, "unknown: neither the model nor a rule takes it; --ignore leaves it out")
    elif rule[0] and (tensor.dtype not in STORAGES.values() or 0 in tensor.shape):
        report.fault(name, tensor, f"is empty, or has a type that PyTorch does not have: {tensor.dtype}")
    else:
        report.add(name, tensor, "ignored", rule[1])
        if rule[0]:
            report.kept += math.prod(tensor.shape) * tensor.dtype.itemsize
            if report.kept > MAX_KEPT:
                raise InputError(f"it has more than {MAX_KEPT >> 30} GiB of tensors that are not mapped")
            kept[name] = np.asarray(tensor)


def misfit(tensor: Array, shape: tuple[int, ...]) -> str:
    """Return why a tensor does not fit a variable of this shape; "" if it fits. Do not read its numbers."""
    if tensor.shape != shape:
        return f"has shape {tensor.shape}; the model expects {shape}"
    if str(tensor.dtype) not in FLOATS:
        return f"is {tensor.dtype}; weights must be {', '.join(FLOATS)}"
    return ""


def put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    """Put a value into nested dicts, and create the missing ones."""
    *parents, last = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of the bytes of all files in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
    return digest.hexdigest()


def summary(description: Description) -> list[str]:
    """Describe a converted model in lines of text: what it is, what is assumed about it, and how it can be used."""
    height, width = description.image_size
    blocks = f" of {description.depth} blocks" if description.depth else ""
    lines = [f"{description.backbone}{blocks} for images of {height}×{width}"]
    if not description.provenance["source"]["described"]:
        how = "mean and std 0.5" if description.mean == HALF else "ImageNet's mean and std"
        lines[0] += f", normalised with {how} as in the official code"
        if alike := _alike(description):
            lines.append(f"its tensors fit {', '.join(alike)} as well: if it is one of these, name it with --backbone")
        if description.norm_ratio:
            lines.append(f"NRA's form, scope and ε are not in the file: {description.norm_ratio} assumed")
    if description.jpm:
        lines.append("its features are TransReID's: the global one and four local ones (JPM)")
    if description.stride:
        lines.append(f"its patches are {description.stride} pixels apart")
    if description.brighten:
        lines.append(f"images with a mean below {description.brighten} are first brightened to it")
    if description.classes:
        lines.append(f"it classifies {description.classes} identities, so it can be a teacher or start a training")
    else:
        lines.append("it has no classifier, so it can start a training, but not be a teacher")
    if description.sie:
        lines.append(
            f"each token gets {description.sie_factor:g} times the vector of its image's camera: if the model was "
            "trained with another factor (MODEL.SIE_COE), convert again with --sie_factor"
        )
        count, names = len(description.cameras), ", ".join(map(str, description.cameras))
        note = f"its features depend on each image's camera (SIE), and its cameras are called {names}"
        if description.cameras == tuple(range(count)):
            ones = ",".join(map(str, range(1, count + 1)))
            note += f" (0…N−1): if your data calls them {ones}, convert again with --cameras {ones}"
        lines.append(note)
        lines.append(
            "the file does not show whether its vectors are for cameras, or for cameras and views (SIE_VIEW): with "
            "views, the number of an image's camera must be camera · views + view, both counted from 0"
        )
    return lines


def _alike(description: Description) -> list[str]:
    """Return the other ResNets of the same method whose tensors have the same names and shapes."""
    own = description.spec
    if not isinstance(own, ResNetSpec):
        return []
    specs = {name: spec for name, spec in MODELS.items() if name != description.backbone and spec == own}
    told = own.method, own.wide_nonlocal
    return [
        n for n, spec in specs.items() if isinstance(spec, ResNetSpec) and (spec.method, spec.wide_nonlocal) == told
    ]
