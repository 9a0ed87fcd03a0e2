"""Write a model as a StableHLO program by `jax.export`. Running it needs JAX, but not this package."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..retrieval.embedding import Embedder, make_forward

PLATFORMS = "cpu", "cuda", "tpu"


def build(embedder: Embedder, batch: int | None) -> bytes:
    """Return the serialised program of an Embedder, with its weights.

    The program takes uint8 RGB crops [batch, h, w, 3] and returns float32 features [batch, D], on each of PLATFORMS.

    Args:
        embedder: the model.
        batch: the number of crops per call; None for any number.

    Raises:
        InputError: the model needs cameras.
    """
    description, options = embedder.description, embedder.options
    if description.spec.needs_cameras:
        raise InputError(
            "a model with model.sie needs the camera of each image, but an exported file takes only images"
        )
    model = description.create_model()
    forward = make_forward(model, description, options["flip"], embedder.identity()["feature"])
    variables = jax.tree.map(np.asarray, embedder.variables)

    def features(images):
        # −1 stands for an unknown camera. Models that need one are refused above.
        return forward(variables, images, jnp.full(images.shape[0], -1, jnp.int32))

    height, width = description.image_size
    (count,) = (batch,) if batch else jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((count, height, width, 3), jnp.uint8)
    return bytes(jax.export.export(jax.jit(features), platforms=PLATFORMS)(images).serialize())


def load(content: bytes) -> Callable[[np.ndarray], jax.Array]:
    """Return the function of a serialised program."""
    return jax.export.deserialize(bytearray(content)).call
