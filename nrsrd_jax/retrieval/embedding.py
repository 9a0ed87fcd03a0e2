"""Compute features of images, for evaluation and for a user's own images."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from .. import augment, checkpoint
from ..description import Description
from ..errors import InputError
from ..models.reid import ReID
from ..models.spec import Spec
from ..models.transreid import SIE_FACTOR, TEST_FACTORS
from ..precision import compute_dtype
from ..sharding import make_mesh, over_data, place, replicated

# Raise this when the same weights and images would give other features, so that old caches are not read.
CACHE_VERSION = 2


class Embeds(Protocol):
    """What an evaluation needs: an Embedder, or an exported file that takes its place."""

    description: Description
    mesh: Mesh

    @property
    def width(self) -> int: ...

    def __call__(
        self,
        images: np.ndarray,
        *,
        cameras: np.ndarray | None = None,
        progress: str = "",
        alter: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray: ...

    def identity(self) -> dict[str, Any]: ...

    def fingerprint(self) -> str: ...


class Embedder:
    """Compute features of images by calling it; `Embedder.load(directory)` makes one from a checkpoint or a run.

    By default the features are those before the neck (of a ViT, the CLS token), not normalised; `feature` chooses
    others. With `flip` they are the mean of the features of the image and of its mirror image.

    Args:
        model: the model that `description` describes.
        variables: its variables, {"params": …, "batch_stats": …}, on the devices of `mesh`.
        description: the image size and normalisation of the model.
        mesh: the devices that batches are split over.
        batch_size: the most images to embed at once, at least 1.
        flip: whether to average with the mirror image.
        feature: "cls" for the model's embedding; "centred" for the features of its parts minus their mean over the
            training images, which the BNNeck keeps; "neck" for the output of the BNNecks. For a model with local
            features (JPM), all three have a quarter of each local feature, as in the official test.

    Raises:
        InputError: `feature` needs a trained neck, which the model does not have.
    """

    def __init__(
        self,
        model: ReID,
        variables: dict,
        description: Description,
        mesh: Mesh,
        *,
        batch_size: int,
        flip: bool,
        feature: str = "cls",
    ):
        self.description, self.variables, self.mesh = description, variables, mesh
        self.options = {"flip": flip, "module": repr(model.base), "platform": jax.default_backend()}
        if feature != "cls":
            # The entry is left out for "cls", so that features cached before this option existed stay valid.
            self.options["feature"] = feature
        check_feature(description.backbone, description.spec, feature)
        if feature != "cls" and variables and not _has_trained_neck(variables):
            raise InputError(
                "the neck of these weights was never trained, so it has no mean of features: set eval.feature=cls "
                "(--feature cls)"
            )
        self.batch_size = batch_size
        self._hashed: tuple[dict | None, str] = None, ""

        # Every device gets all features of a batch, so that NumPy can read them in each process.
        self._forward = jax.jit(make_forward(model, description, flip, feature), out_shardings=replicated(mesh))

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        batch_size: int = 256,
        precision: str = "auto",
        flip: bool = False,
        feature: str = "cls",
    ) -> "Embedder":
        """Return the Embedder of a checkpoint, on all devices.

        Args:
            directory: a checkpoint, or the work directory of a training run, whose best checkpoint is taken.
            batch_size: the most images to embed at once, at least 1.
            precision: the precision of matrix products: "float32", "bfloat16", or "auto" for bfloat16 on an
                accelerator and float32 on CPU.
            flip: whether to average the features with those of the mirror image.
            feature: "cls", "centred" or "neck", see the class; "auto" for the feature that `default_feature` names.

        Returns:
            The Embedder. `.description` has the image size and normalisation, `.width` the number of features.

        Raises:
            InputError: `directory` holds no checkpoint or a damaged one, the precision is unknown, or `feature` needs
                a trained neck, which a converted backbone alone does not have.

        Example:
            >>> from nrsrd_jax.retrieval import Embedder
            >>> embedder = Embedder.load("runs/night")
            >>> embedder.description.image_size, embedder.width
            ((32, 16), 192)
        """
        mesh = make_mesh()
        description, variables = checkpoint.load(directory, mesh)
        model = description.create_model(dtype=compute_dtype(precision))
        if feature == "auto":
            feature = default_feature(description.spec, variables)
        return cls(model, variables, description, mesh, batch_size=batch_size, flip=flip, feature=feature)

    def __call__(
        self,
        images: np.ndarray,
        *,
        cameras: np.ndarray | None = None,
        progress: str = "",
        alter: Callable[[int, np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Compute the features of images, one batch at a time.

        Args:
            images: uint8 [N, H, W, 3], RGB in 0..255, at the model's size.
            cameras: the camera numbers [N] of the images, as in the training data, for models that need them.
            progress: the title of a progress bar; "" for no bar.
            alter: a function that takes the index of a batch's first image and the batch, and returns the images to
                embed instead.

        Returns:
            float32 [N, D].

        Raises:
            ValueError: the images have another shape or type.
            InputError: the model needs cameras, and the camera of an image is unknown.

        Example:
            >>> import numpy as np
            >>> from nrsrd_jax.retrieval import Embedder
            >>> embedder = Embedder.load("runs/night")
            >>> embedder(np.zeros((2, 32, 16, 3), np.uint8)).shape
            (2, 192)
        """
        height, width = self.description.image_size
        if images.ndim != 4 or images.shape[1:] != (height, width, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape}; this model takes uint8 [N, {height}, {width}, 3] (RGB)"
            )
        # A small call is padded to a multiple of the devices, a large one to whole batches, so that few shapes are
        # compiled.
        size = min(self.batch_size, len(images)) or 1
        batches = device_batches(images, size, self.mesh, progress, alter)
        ranks = np.full(len(images), -1, np.int32) if cameras is None else self.description.camera_ranks(cameras)
        if self.description.spec.needs_cameras and (ranks < 0).any():
            found = "unknown" if cameras is None else np.unique(np.asarray(cameras)[ranks < 0]).tolist()
            raise InputError(
                f"this model (model.sie) needs each image's camera, one of {list(self.description.cameras)}; there are "
                f"images whose camera is {found}"
            )
        features, start = [], 0
        for batch, count in batches:
            own = np.pad(ranks[start : start + count], (0, len(batch) - count), constant_values=-1)
            features.append((self._forward(self.variables, batch, place(own, over_data(self.mesh))), count))
            start += count
        if not features:
            return np.zeros((0, self.width), np.float32)
        # Only here does the host wait for the devices, which meanwhile have embedded all batches.
        return np.concatenate([np.asarray(part)[:count] for part, count in features])

    @property
    def width(self) -> int:
        """Return the width D of a feature."""
        if "feature" not in self.options:
            return self.description.spec.embedding_width
        return sum(neck["mean"].size for neck in _necks(self.variables))

    def identity(self) -> dict[str, Any]:
        """Return what determines features, except for rounding: hashes of weights and description, and the options.

        Unlike `fingerprint`, it does not depend on platform or precision, so that features made on a GPU can be
        searched on a CPU.
        """
        text = json.dumps(self._described(), sort_keys=True, default=str)
        return {
            "weights_sha256": self._weights_hash(),
            "model_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "feature": self.options.get("feature", "cls"),
            "flip": self.options["flip"],
        }

    def fingerprint(self) -> str:
        """Return a hash of what determines the features of images: weights, model, mirroring, precision, platform."""
        text = json.dumps([CACHE_VERSION, self._described(), self.options, self._weights_hash()], default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _described(self) -> dict[str, Any]:
        """Return the description's values that determine features."""
        values = dataclasses.asdict(self.description)
        del values["provenance"]
        # This factor is left out, so that galleries made before there was a choice stay valid.
        if values["sie_factor"] == SIE_FACTOR:
            del values["sie_factor"]
        if self.description.jpm and "feature" in self.options:
            # These features once had whole local features, so earlier galleries and calibrations must not fit them.
            values["factors"] = TEST_FACTORS
        return values

    def _weights_hash(self) -> str:
        # An evaluation asks several times, and hashing takes long. The training loop replaces `variables`.
        if self._hashed[0] is not self.variables:
            self._hashed = self.variables, checkpoint.weights_hash(self.variables)
        return self._hashed[1]


def make_forward(model: ReID, description: Description, flip: bool, feature: str) -> Callable[..., jax.Array]:
    """Return an Embedder's function (variables, uint8 images [B, H, W, 3], camera ranks [B]) -> features [B, D]."""

    def forward(variables, images, cameras):
        # On a GPU, float32 products would otherwise use TF32.
        with jax.default_matmul_precision("highest"):
            x = augment.prepared(images, description.mean, description.std, description.brighten)
            views = jnp.stack((x, x[:, :, ::-1]) if flip else (x,), axis=1)  # [B, 1 or 2, H, W, 3]
            every = jnp.repeat(cameras, views.shape[1])
            out: Any = model.apply(variables, views.reshape(-1, *x.shape[1:]), cameras=every)
            return _chosen(out, variables, feature).reshape(*views.shape[:2], -1).mean(1)

    return forward


def identity_difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str] | None:
    """Compare two models by their `Embedder.identity()`.

    Args:
        own: the identity of the first model.
        other: the identity of the second model. Keys that only the second has are ignored.

    Returns:
        The values that differ, in words, of the first and of the second model. None if features of the two models can
        be compared with each other.
    """
    names = [name for name, value in own.items() if other.get(name) != value]
    if not names:
        return None
    first, second = (", ".join(f"{name} {str(each.get(name))[:12]}" for name in names) for each in (own, other))
    return first, second


def default_feature(spec: Spec, variables: dict) -> str:
    """Return the feature that "auto" stands for: that of the method's own test, or "centred" for a trained plain ViT.

    The embedding ("cls") is the feature of the test for a model that is tested by its necks, as BoT, AGW, IDE and IDF
    are, and for a model of several parts, as PCB and TransReID with JPM.
    """
    plain = spec.head.tested == "embedding" and len(_necks(variables)) == 1
    return "centred" if plain and _has_trained_neck(variables) else "cls"


def check_feature(backbone: str, spec: Spec, feature: str) -> None:
    """Raise InputError if `feature` is one of a neck, and the backbone `spec` has no neck."""
    if feature != "cls" and not spec.head.neck:
        raise InputError(
            f"the feature {feature} needs a neck, which {backbone} does not have: set eval.feature=cls (--feature cls)"
        )


def _has_trained_neck(variables: dict) -> bool:
    """Return whether a BNNeck has a mean other than 0, which only training gives it."""
    return any(np.any(neck["mean"]) for neck in _necks(variables))


def _necks(variables: dict) -> list[dict]:
    """Return the statistics of each part's BNNeck, in the order of the parts."""
    statistics = variables["batch_stats"]
    names = sorted(name for name in statistics if name.startswith("bottleneck"))
    # Shorter names come first, so that bottleneck_10 follows bottleneck_9.
    return [statistics[name] for name in sorted(names, key=len)]


def _chosen(out: dict[str, Any], variables: dict, feature: str) -> jax.Array:
    """Select the features [B, D] from a model's output; `feature` is as in `Embedder`."""
    if feature == "cls":
        return out["embedding"]
    if feature == "neck":
        chosen = [part["neck"] for part in out["parts"]]
    else:
        pairs = zip(out["parts"], _necks(variables), strict=True)
        chosen = [part["features"] - neck["mean"] for part, neck in pairs]
    return jnp.concatenate([x * part["factor"] for x, part in zip(chosen, out["parts"], strict=True)], axis=1)


def device_batches(
    images: np.ndarray,
    size: int,
    mesh: Mesh,
    progress: str = "",
    alter: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[jax.Array, int]]:
    """Yield (batch, count): `size` images, rounded up to a multiple of the devices and sharded over them.

    The last batch is padded with black images; `count` is the number of real ones. `progress` and `alter` are as in
    `Embedder.__call__`.
    """
    size += -size % mesh.shape["data"]
    for batch in host_batches(images, size, progress, alter):
        yield place(filled(batch, size), over_data(mesh)), len(batch)


def host_batches(
    images: np.ndarray, size: int, progress: str, alter: Callable[[int, np.ndarray], np.ndarray] | None
) -> Iterator[np.ndarray]:
    """Yield `size` images at a time, fewer at the end. `progress` and `alter` are as in `Embedder.__call__`."""
    starts = range(0, len(images), size)
    for start in tqdm(starts, progress, unit="batch", leave=False, disable=None if progress else True):
        batch = np.asarray(images[start : start + size])
        yield alter(start, batch) if alter else batch


def filled(batch: np.ndarray, size: int) -> np.ndarray:
    """Pad a batch with black images to `size` images."""
    return np.pad(batch, [(0, size - len(batch))] + [(0, 0)] * 3)
