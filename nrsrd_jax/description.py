"""Describe a model in the JSON file beside its weights."""

import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import numpy as np

from .errors import printable
from .models import create_model, find_spec, initialise
from .models.attention import NormRatio
from .models.reid import ReID
from .models.spec import Spec
from .models.transreid import SIE_FACTOR
from .options import OPTIONS

MAX_DEPTH = 64


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything that is needed to build a model again and to prepare its input. It is written beside the weights."""

    backbone: str
    depth: int
    image_size: tuple[int, int]  # height, width in pixels
    mean: tuple[float, ...]  # subtracted from each channel of pixels in 0..1
    std: tuple[float, ...]  # each channel is divided by it
    classes: int = 0
    aux_classes: int = 0
    norm_ratio: NormRatio | None = None
    identities: tuple[int, ...] = ()  # the identity of each class, if known
    cameras: tuple[int, ...] = ()  # the cameras of the training images, sorted, if known
    stride: int = 0  # between the patches of a ViT, in pixels; 0: the backbone's own
    jpm: bool = False  # whether it has TransReID's local features
    sie: bool = False  # whether it has a camera embedding, a vector for each of `cameras`
    sie_factor: float = SIE_FACTOR  # the factor of these vectors
    brighten: float = 0.0  # the mean to brighten dark images to before normalisation; 0: none
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)  # how the weights came to be

    def create_model(self, **options) -> ReID:
        """Return the described model, not initialised. `options`, such as dtype, are further ones of `create_model`."""
        return create_model(
            self.backbone,
            classes=self.classes,
            aux_classes=self.aux_classes,
            depth=self.depth,
            stride=self.stride,
            jpm=self.jpm,
            sie=self.sie,
            sie_factor=self.sie_factor,
            norm_ratio=self.norm_ratio,
            cameras=len(self.cameras),
            **options,
        )

    @property
    def spec(self) -> Spec:
        """Return the backbone's spec. InputError for an unknown backbone."""
        return find_spec(self.backbone, self.depth, self.stride, self.jpm, self.sie, self.sie_factor)

    def camera_ranks(self, cameras: Any) -> np.ndarray:
        """Return the rank of each camera [N] among the training cameras, int32 [N]; −1 for other cameras."""
        known = {camera: rank for rank, camera in enumerate(self.cameras)}
        return np.array([known.get(int(camera), -1) for camera in cameras], np.int32)

    def camera_warning(self, cameras: Any) -> str:
        """Return a warning if an imported model calls its cameras 0…N−1, but the data [N] has no camera 0; else ""."""
        counted = self.spec.needs_cameras and self.cameras == tuple(range(len(self.cameras)))
        first = min(map(int, cameras), default=0)
        if not counted or not first or not self.provenance.get("source"):
            return ""
        return (
            f"warning: the first camera of the data is {first}, the model's is 0: unless these names are right, each "
            "image gets the vector of another camera; convert the weights again with --cameras"
        )

    def abstract_variables(self) -> dict:
        """Return the shapes and types of the model's variables, without computing them."""
        self.spec.check_size(self.image_size)
        return jax.eval_shape(lambda key: initialise(self.create_model(), key, self.image_size), jax.random.key(0))

    def to_json(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return the description as JSON values, for `from_json`.

        Args:
            saved: entries to add to the provenance: hashes of the tensors, and the step of training. A hash of the
                whole description, with these entries, is also added.
        """
        # Through JSON, tuples become lists, as they will be when the file is read: the hash must be the same then.
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        values["provenance"] |= saved
        values["provenance"]["model_sha256"] = description_hash(values)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Description":
        """Return the Description that `to_json` wrote. ValueError if the values are damaged or do not fit together."""
        try:
            tuples: dict[str, Any] = {name: tuple(values[name]) for name in ("image_size", "mean", "std", "identities")}
            # Older checkpoints have no cameras.
            tuples["cameras"] = tuple(values.get("cameras", ()))
            norm_ratio = values["norm_ratio"] and NormRatio(**values["norm_ratio"])
            known_hash = values["provenance"].get("model_sha256") in (None, description_hash(values))
            made = cls(**{**values, **tuples, "norm_ratio": norm_ratio})
            fits = known_hash and made._fits()
        except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"its description of the model does not fit together: {printable(error, 200)}") from error
        if not known_hash:
            raise ValueError("its description of the model is not the one that was saved")
        if not fits:
            raise ValueError("its description of the model does not fit together")
        return made

    def _fits(self) -> bool:
        """Return whether every value has its type and is in its range."""
        # A damaged or hostile file must not reach the code that builds the model.
        ratio, ids, source = self.norm_ratio or NormRatio(), self.identities, self.provenance.get("source") or {}
        numbers = (*self.mean, *self.std, self.brighten, self.sie_factor, ratio.init, ratio.epsilon)
        whole = (self.depth, self.stride, self.classes, self.aux_classes, *self.image_size, *ids, *self.cameras)
        return (
            (len(self.image_size), len(self.mean), len(self.std)) == (2, 3, 3)
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and all(type(number) is int and abs(number) < 2**63 for number in whole)
            and ratio.epsilon > 0
            and max(map(abs, self.mean)) <= 10  # room for pixels that are not in 0..1
            and 0 <= self.brighten < 1
            and 0 < self.sie_factor < 2**15
            and 1e-6 <= min(self.std) <= max(self.std) <= 10
            and ratio.scope in OPTIONS["norm_ratio.scope"].choices
            and ratio.form in OPTIONS["norm_ratio.form"].choices
            and isinstance(self.backbone, str)
            and 0 <= self.depth <= MAX_DEPTH
            and 0 <= self.stride <= 16
            and type(self.jpm) is type(self.sie) is bool
            and min(self.classes, self.aux_classes) >= 0
            and 0 < min(self.image_size) <= max(self.image_size) < 2**15
            and (not ids or len(set(ids)) == len(ids) == self.classes)
            and isinstance(source, dict)
            and isinstance(self.provenance.get("config") or {}, dict)
        )

    @property
    def architecture(self) -> tuple:
        """Return the values that decide the shapes of the weights, except the image size."""
        heads = self.classes, self.aux_classes, len(self.cameras) if self.sie else 0
        return self.backbone, self.depth, self.stride, self.jpm, self.sie, *heads, bool(self.norm_ratio)


def description_hash(values: dict[str, Any]) -> str:
    """Return the SHA-256 of a description in JSON, leaving out its own entry of this hash."""
    provenance = {name: value for name, value in values["provenance"].items() if name != "model_sha256"}
    return hashlib.sha256(json.dumps(values | {"provenance": provenance}, sort_keys=True).encode()).hexdigest()
