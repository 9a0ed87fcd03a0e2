"""The contract between a backbone and the rest of the program.

A backbone is a Flax module. Called with images [B, h, w, 3] and the keywords `cameras`, `train`, `maps` and `domains`
(see `reid.ReID`), it returns

  {"embedding": [B, D] float32,          what retrieval ranks by
   "parts": [[B, D_i] float32, …],       the features that get a neck and classifiers, at least one
   "weights": [float, …],                of each part's losses; without it every part counts 1
   "diagnostics": {name: scalar},        logged while training
   "maps": {…}}                          with `maps=True`, whatever the model can show

A new backbone is a file with its module and its Spec, and a line in `models/__init__.py`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ..errors import InputError

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the rest of the program asks about a backbone.

    Two specs are equal if and only if a checkpoint of one can initialise the other.

    Attributes:
        width: D of the embedding.
        stride: in pixels; both sides of an image must be multiples of it.
        depth: the number of blocks; 0 for a backbone without that option.
        free_depth: whether `model.depth` may choose another depth.
    """

    width: int
    stride: int
    depth: int = 0
    free_depth: bool = dataclasses.field(default=False, compare=False)

    def module(
        self,
        *,
        dtype: jnp.dtype | None = None,
        norm_ratio: Any = None,
        drop_path: float = 0.0,
        remat: bool = False,
        cameras: int = 0,
    ) -> nn.Module:
        """Return the Flax module, not initialised.

        Args:
            dtype: the type of its matrix products; None for float32.
            norm_ratio: an `attention.NormRatio`, or None for a model without Norm-Ratio Attention.
            drop_path: the rate of stochastic depth in the last block.
            remat: whether the backward pass computes each block again instead of storing it.
            cameras: the number of cameras in training. A model that does not read cameras ignores it.
        """
        raise NotImplementedError

    def check_size(self, image_size: tuple[int, ...]) -> None:
        """Raise InputError unless the model takes images of (height, width) pixels."""
        if len(image_size) != 2 or any(type(side) is not int or side <= 0 or side % self.stride for side in image_size):
            raise InputError(
                f"image_size is {tuple(image_size)}; it takes height and width, multiples of {self.stride} pixels"
            )

    def start_from(
        self, own: dict, given: dict, image_size: tuple[int, int], given_size: tuple[int, int]
    ) -> tuple[dict, list[str]]:
        """Return the backbone's parameters for this model, from a checkpoint of an equal spec.

        Args:
            own: this model's freshly initialised backbone parameters, which supply what `given` lacks.
            given: the checkpoint's backbone parameters.
            image_size, given_size: the image sizes of both, (height, width) in pixels.

        Returns:
            The parameters, and notes for the user on what was changed.
        """
        del own, image_size, given_size
        return given, []

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Return the official PyTorch name of a variable at `path`, without its collection."""
        *parents, leaf = path
        return ".".join([*parents, LEAVES.get(leaf, leaf)])
