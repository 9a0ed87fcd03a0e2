"""The description of a model: the JSON beside its weights."""

import dataclasses
import hashlib
import json
import math
from typing import Any

import jax

from .models.attention import NormRatio
from .models.reid import ReID, create_model, initialise

MAX_DEPTH = 64


@dataclasses.dataclass(frozen=True)
class Description:
    """What it takes to rebuild a model and feed it: written beside the weights."""

    backbone: str
    depth: int
    image_size: tuple[int, int]  # height, width in pixels
    mean: tuple[float, ...]  # of pixels in 0..1, per channel
    std: tuple[float, ...]
    classes: int = 0
    aux_classes: int = 0
    norm_ratio: NormRatio | None = None
    identities: tuple[int, ...] = ()  # the identity of each class, where known
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)  # how the weights came to be

    def create_model(self, **options) -> ReID:
        """The described model; `options` as dtype and drop_path are create_model's."""
        return create_model(
            self.backbone,
            classes=self.classes,
            aux_classes=self.aux_classes,
            depth=self.depth,
            norm_ratio=self.norm_ratio,
            **options,
        )

    def abstract_variables(self) -> dict:
        """Shapes and types of the model's variables, nothing computed."""
        return jax.eval_shape(lambda key: initialise(self.create_model(), key, self.image_size), jax.random.key(0))

    def to_json(self, hashes: dict[str, str]) -> dict[str, Any]:
        """What `from_json` reads, with hashes of the tensors beside it, and one of itself, in the provenance."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        values["provenance"] |= hashes
        values["provenance"]["model_sha256"] = description_hash(values)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Description":
        """What `to_json` gave; ValueError, KeyError or TypeError if it did not."""
        hashes = values["provenance"]
        if not isinstance(hashes, dict) or hashes.get("model_sha256") not in (None, description_hash(values)):
            raise ValueError("its description of the model is not the one that was saved")
        tuples: dict[str, Any] = {name: tuple(values[name]) for name in ("image_size", "mean", "std", "identities")}
        norm_ratio = values["norm_ratio"] and NormRatio(**values["norm_ratio"])
        made = cls(**{**values, **tuples, "norm_ratio": norm_ratio})
        ratio, ids = made.norm_ratio or NormRatio(), made.identities
        numbers = (*made.mean, *made.std, ratio.init, ratio.epsilon)
        whole = (made.depth, made.classes, made.aux_classes, *made.image_size, *ids)
        if not (
            (len(made.image_size), len(made.mean), len(made.std)) == (2, 3, 3)
            and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
            and all(type(number) is int for number in whole)
            and min(*made.std, ratio.epsilon) > 0
            and ratio.scope in ("head", "token")
            and 0 < made.depth <= MAX_DEPTH
            and 0 < min(made.image_size) <= max(made.image_size) < 2**15
            and (not ids or len(set(ids)) == len(ids) == made.classes)
            and isinstance(made.provenance.get("source") or {}, dict)
        ):
            raise ValueError("its description of the model does not fit together")
        return made

    @property
    def architecture(self) -> tuple:
        """What the shapes of the weights tell of the model, but for the image size."""
        return self.backbone, self.depth, self.classes, self.aux_classes, bool(self.norm_ratio)


def description_hash(values: dict[str, Any]) -> str:
    """SHA-256 of a description as JSON, but for this hash itself."""
    provenance = {name: value for name, value in values["provenance"].items() if name != "model_sha256"}
    return hashlib.sha256(json.dumps(values | {"provenance": provenance}, sort_keys=True).encode()).hexdigest()
