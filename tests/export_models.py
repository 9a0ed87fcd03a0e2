"""Small models and crops for the tests of nrsrd export."""

import jax
import numpy as np

from nrsrd_jax.description import Description
from nrsrd_jax.export import parity

SIZE = 32, 16
CROPS = parity.generated(SIZE, 5)
# What `onnx_file.build` takes beside a model.
CHOICE = {"layout": "uint8-nhwc", "feature": "cls", "flip": False, "opset": 17, "batch": None}


def trained(description: Description) -> dict:
    """Draw variables whose statistics and biases are random, as after training, instead of zeros and ones."""
    rng = np.random.default_rng(1)
    shapes = description.abstract_variables()
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1 if x.ndim < 2 else 0.05, x.shape).astype(np.float32), shapes)
    variables["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + 0.5, variables["batch_stats"])
    variables["params"]["base"]["norm"]["scale"] += 1
    last = variables["params"]["base"][f"blocks_{description.depth - 1}"]["attn"]
    if "norm_ratio" in last:
        last["norm_ratio"] = np.float32(0.7)
        # With larger weights the norms of the keys differ, so that NRA changes the features.
        last["qkv"]["kernel"] *= 3
    return variables


def describe(backbone="vit_tiny", depth=1, **fields) -> Description:
    return Description(backbone, depth, SIZE, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), classes=3, **fields)
