"""The contract between a backbone and the rest of the program.

A backbone is a Flax module. It is called with images [B, h, w, 3] and the keywords `cameras`, `train`, `maps` and
`domains` (see `reid.ReID`), and returns

  {"embedding": [B, D] float32,          the features that retrieval ranks by
   "parts": [[B, D_i] float32, …],       the features that get a neck and classifiers, at least one
   "weights": [float, …],                the weight of each part's losses; if it is missing, 1 for every part
   "factors": [float, …],                the factor of each part in the features that retrieval ranks by, likewise
   "diagnostics": {name: scalar},        values to log while training
   "losses": {name: scalar},             in training, its own losses, over images of the first domain (`Spec.losses`)
   "maps": {…}}                          with `maps=True`, attention maps and other arrays to look at

A new backbone is a file with its module and its Spec, and a line in `models/__init__.py`.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ..errors import InputError
from .reid import Head

# PyTorch's names of parameters and statistics, where Flax has others.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


@dataclasses.dataclass(frozen=True)
class Spec:
    """The facts about a backbone that the rest of the program needs.

    Two specs are equal if and only if a checkpoint of each can initialise the other.

    Attributes:
        width: the width D of the features.
        stride: in pixels. The height and width of an image must be multiples of it.
        depth: the number of blocks; 0 for a backbone without that option.
        choices: the options of `find_spec` that may change the spec, such as "depth".

    Example:
        >>> from nrsrd_jax.models.spec import Spec
        >>> spec = Spec(width=384, stride=16, depth=12)
        >>> spec == Spec(width=384, stride=16, depth=12, choices=("depth",))
        True
    """

    width: int
    stride: int
    depth: int = 0
    choices: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @property
    def head(self) -> Head:
        """Return the layers between the features and the classifiers."""
        return Head()

    @property
    def prefix(self) -> str:
        """Return the prefix of the official names of the backbone's tensors."""
        return "base."

    @property
    def embedding_width(self) -> int:
        """Return the width of the embedding."""
        return self.width

    @property
    def needs_cameras(self) -> bool:
        """Return whether the embedding of an image depends on its camera."""
        return False

    @property
    def losses(self) -> tuple[str, ...]:
        """Return the terms of the objective that the model computes itself (`losses.Term.own`)."""
        return ()

    @property
    def drops_paths(self) -> bool:
        """Return whether the model has stochastic depth, `drop_path` of `module`."""
        return True

    @property
    def raw_pixels(self) -> bool:
        """Return whether the model takes pixels in 0..1 without normalisation."""
        return False

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
            dtype: the type of the matrix products; None for float32.
            norm_ratio: an `attention.NormRatio`, or None for a model without Norm-Ratio Attention.
            drop_path: the rate of stochastic depth in the last block, in 0..1.
            remat: whether the backward pass computes each block again, to save memory.
            cameras: the number of cameras in training. Models that do not need cameras ignore it.

        Returns:
            The module. The docstring of this file says how to call it and what it returns.
        """
        raise NotImplementedError

    def check_size(self, image_size: tuple[int, ...], name: str = "image_size") -> None:
        """Check that the model takes images of this size.

        Args:
            image_size: (height, width) in pixels.
            name: the option that holds the size, for the message.

        Raises:
            InputError: `image_size` is not two positive multiples of the stride.

        Example:
            >>> from nrsrd_jax.models import find_spec
            >>> find_spec("vit_small").check_size((250, 128))
            Traceback (most recent call last):
            nrsrd_jax.errors.InputError: image_size is (250, 128); it takes height and width, multiples of 16 pixels
        """
        # Compare the type itself, because a bool passes `isinstance(side, int)`.
        if len(image_size) != 2 or any(type(side) is not int or side <= 0 or side % self.stride for side in image_size):
            raise InputError(
                f"{name} is {tuple(image_size)}; it takes height and width, multiples of {self.stride} pixels"
            )

    def can_start_from(self, other: "Spec") -> bool:
        """Return whether a checkpoint of another spec can initialise this model."""
        return self == other

    def start_from(
        self, own: dict, given: dict, image_size: tuple[int, int], given_size: tuple[int, int], other: "Spec"
    ) -> tuple[dict, list[str]]:
        """Convert the backbone's parameters in a checkpoint to parameters that this model can start from.

        Args:
            own: this model's backbone parameters, freshly initialised. They are used where `given` lacks a parameter.
            given: the checkpoint's backbone parameters.
            image_size, given_size: the image sizes of this model and of the checkpoint, (height, width) in pixels.
            other: the checkpoint's spec. `can_start_from` accepts it.

        Returns:
            The parameters, and notes that tell the user what was changed.

        Example:
            >>> from nrsrd_jax.models.spec import Spec
            >>> spec = Spec(width=384, stride=16)
            >>> spec.start_from({"kernel": 0}, {"kernel": 1}, (32, 16), (32, 16), spec)
            ({'kernel': 1}, [])
        """
        del own, image_size, given_size, other
        return given, []

    def rate_factor(self, path: tuple[str, ...], head_factor: float) -> float:
        """Return what a parameter's learning rate is multiplied by.

        Args:
            path: the keys that lead to the parameter.
            head_factor: the factor of parameters that were not pretrained, `optim.head_factor`.

        Returns:
            The factor.

        Example:
            >>> from nrsrd_jax.models import find_spec
            >>> find_spec("vit_small").rate_factor(("classifier", "kernel"), 10.0)
            10.0
        """
        return 1.0 if path[0] == "base" else head_factor

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Return the official PyTorch name of a variable.

        Args:
            path: the keys that lead to the variable, without its collection ("params" or "batch_stats").

        Returns:
            The name, with dots between its parts.

        Example:
            >>> from nrsrd_jax.models import find_spec
            >>> find_spec("vit_small").torch_name(("base", "blocks_0", "attn", "qkv", "kernel"))
            'base.blocks.0.attn.qkv.weight'
        """
        *parents, leaf = path
        return ".".join([*parents, LEAVES.get(leaf, leaf)])
