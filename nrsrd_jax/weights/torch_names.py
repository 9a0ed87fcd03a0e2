"""The table of tensor names that both converters use: a variable of our model for each tensor of the official models.

The names are those of TransReID-SSL's Re-ID model: `base.*` for the backbone, `bottleneck.*` for the neck,
`classifier.weight`.
"""

import dataclasses
import re

import jax
import numpy as np

from ..description import Description
from ..models import transreid

# {dimensions of a kernel: (the transform in words, its axes)}, for linear layers and convolutions.
KERNELS = {2: ("transposed", (1, 0)), 4: ("OIHW → HWIO", (2, 3, 1, 0))}

# Tensors that are not mapped: (pattern, whether to keep them, reason). The checkpoint keeps them for to_torch.py.
IGNORED = (
    (r"base\.fc\.(weight|bias)", True, "the 1000 classes of an ImageNet head that TransReID-SSL never trains"),
    (r".*\.num_batches_tracked", True, "BatchNorm's counter, which is not used with a fixed momentum"),
    (r"(base\.)?(head|dist|pre_logits).*", False, "head of the pretraining, which the official loader also ignores"),
    (r"base\.(mask_token|masked_embed)", False, "stands for masked patches in pretraining"),
    (r"base\.decoder(_\w+)?(\..*)?", False, "decoder of the pretraining"),
    (r"base\.fc_norm\..*", False, "norm of a head over averaged patches"),
    (r"base\.pooler\..*", False, "Hugging Face's pooler, which comes after the features"),
    (r"(.*\.)?(n_averaged|num_updates|decay|initted)", False, "counter or rate of the averaging that made the weights"),
)
JPM_STALE = "JPM does not run it: b1, which JPM runs, is taken instead"


@dataclasses.dataclass(frozen=True)
class Slot:
    """A variable of our model, and how to convert it.

    Attributes:
        path: the keys that lead to the variable.
        shape: its shape in PyTorch.
        transform: the conversion in words.
        axes: the order of PyTorch's axes in our model.
    """

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

    With `jpm`, give a plain model the names of the global branch of TransReID's JPM model. Earlier versions of this
    package converted only this branch.
    """
    table = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(description.abstract_variables()):
        path: tuple[str, ...] = tuple(key.key for key in keys)  # pyright: ignore[reportAttributeAccessIssue]
        ndim = len(leaf.shape)
        transform, axes = KERNELS[ndim] if path[-1] == "kernel" else ("as it is", tuple(range(ndim)))
        # The first key is the collection, "params" or "batch_stats".
        name = description.spec.torch_name(path[1:])
        if jpm:
            name = transreid.torch_name(name, description.depth)
        table[name] = Slot(path, tuple(leaf.shape[axis] for axis in np.argsort(axes)), transform, axes)
    return table


def ignored(name: str, description: Description) -> tuple[bool, str] | None:
    """Return (kept, reason) of the first rule that matches a name; None if no rule matches."""
    if description.jpm and transreid.torch_name(name, description.depth) != name:
        return True, JPM_STALE
    return next(((kept, reason) for pattern, kept, reason in IGNORED if re.fullmatch(pattern, name)), None)
