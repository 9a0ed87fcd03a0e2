"""The variable of our model for each tensor of the official models: the table that both converters read.

Names are those of TransReID-SSL's Re-ID model: `base.*` the backbone, `bottleneck.*` the neck, `classifier.weight`.
"""

import dataclasses
import re

import jax
import numpy as np

from ..description import Description
from ..models import transreid

KERNELS = {2: ("transposed", (1, 0)), 4: ("OIHW → HWIO", (2, 3, 1, 0))}  # by dimensions: linear, convolution

# Tensors that are not mapped, whether to keep them, and why. Kept ones are saved with the checkpoint for to_torch.py.
IGNORED = (
    (r"base\.fc\.(weight|bias)", True, "the 1000 classes of an ImageNet head that TransReID-SSL never trains"),
    (r".*\.num_batches_tracked", True, "BatchNorm's counter, which its fixed momentum never reads"),
    (r"(base\.)?(head|dist|pre_logits).*", False, "head of the pretraining, as the official loader ignores it"),
    (r"base\.(mask_token|masked_embed)", False, "stands for masked patches in pretraining"),
    (r"base\.decoder(_\w+)?(\..*)?", False, "decoder of the pretraining"),
    (r"base\.fc_norm\..*", False, "norm of a head over averaged patches"),
    (r"base\.pooler\..*", False, "Hugging Face's pooler, behind the features"),
    (r"(.*\.)?(n_averaged|num_updates|decay|initted)", False, "counter or rate of the averaging that made the weights"),
)
JPM_STALE = "JPM never runs it: b1, which it does run, is taken instead"


@dataclasses.dataclass(frozen=True)
class Slot:
    """A variable of our model: its path, its shape in PyTorch, and how PyTorch's axes become ours."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    transform: str
    axes: tuple[int, ...]

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(np.argsort(self.axes))


def slots(description: Description, jpm: bool = False) -> dict[str, Slot]:
    """Return {PyTorch's name: slot} for every variable of the described model.

    With `jpm`, the names of a plain model are those of the global branch of TransReID's JPM model, from which
    earlier versions of this package took the global branch alone.
    """
    table = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(description.abstract_variables()):
        path: tuple[str, ...] = tuple(key.key for key in keys)  # pyright: ignore[reportAttributeAccessIssue]
        ndim = len(leaf.shape)
        transform, axes = KERNELS[ndim] if path[-1] == "kernel" else ("as it is", tuple(range(ndim)))
        name = description.spec.torch_name(path[1:])
        if jpm:
            name = transreid.torch_name(name, description.depth)
        table[name] = Slot(path, tuple(leaf.shape[axis] for axis in np.argsort(axes)), transform, axes)
    return table


def ignored(name: str, description: Description) -> tuple[bool, str] | None:
    """Return (kept, reason) of the first rule for a name; None if it must be mapped."""
    if description.jpm and transreid.torch_name(name, description.depth) != name:
        return True, JPM_STALE
    return next(((kept, reason) for pattern, kept, reason in IGNORED if re.fullmatch(pattern, name)), None)
