"""The features of an ONNX file equal the model's own, for every kind of model, feature, input layout and opset."""

import json

import numpy as np
import pytest
from export_models import CHOICE, CROPS, SIZE, describe, trained

from nrsrd_jax.description import Description
from nrsrd_jax.export import onnx_file
from nrsrd_jax.export.layouts import LAYOUTS
from nrsrd_jax.export.runtime import OnnxEmbedder
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.sharding import make_mesh

pytestmark = pytest.mark.slow


def written(description: Description, variables: dict, **choice) -> OnnxEmbedder:
    """Build the ONNX file of a model, and return it ready to run."""
    choice = CHOICE | choice
    model = onnx_file.build(description, variables, **choice)
    return OnnxEmbedder(onnx_file.with_metadata(model, notes(description, choice["layout"])))


def embedders(description: Description, **choice) -> tuple[Embedder, OnnxEmbedder]:
    """Return the Embedder of a model, and that of its ONNX file."""
    variables, options = trained(description), {name: (CHOICE | choice)[name] for name in ("flip", "feature")}
    own = Embedder(description.create_model(), variables, description, make_mesh(), batch_size=8, **options)
    return own, written(description, variables, **choice)


def notes(description: Description, layout: str) -> dict[str, str]:
    values = {"backbone": description.backbone, "depth": 1, "image_size": SIZE, "mean": [0] * 3, "std": [1] * 3}
    about = {"weights_sha256": "w", "model_sha256": "m", "feature": "cls", "flip": "False"}
    return about | {"model": json.dumps(values | {"brighten": 0}), "input": layout}


@pytest.mark.parametrize(("backbone", "depth", "norm_ratio"), [
    ("vit_tiny", 2, None),
    ("vit_tiny", 1, NormRatio()),
    ("vit_tiny", 1, NormRatio(form="standard")),
    ("vit_tiny", 1, NormRatio(scope="token", epsilon=0.1)),
    ("vit_tiny", 1, NormRatio(scope="token", form="standard")),
    ("vit_tiny_ics", 1, NormRatio()),
])  # fmt: skip
def test_features_equal_those_of_the_model(backbone, depth, norm_ratio):
    own, file = embedders(describe(backbone, depth, norm_ratio=norm_ratio, brighten=0.4))
    np.testing.assert_allclose(file(CROPS), own(CROPS), atol=2e-5)


def test_norm_ratio_attention_is_in_the_file():
    """NRA's penalty changes the features of these weights, so the test above would fail if the file lacked it."""
    description = describe(norm_ratio=NormRatio())
    variables = trained(description)
    base = description.spec.with_strength(variables["params"]["base"], 0.0)
    plain = {**variables, "params": {**variables["params"], "base": base}}
    first, second = (written(description, each)(CROPS) for each in (variables, plain))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(("feature", "flip"), [("cls", True), ("neck", False), ("neck", True), ("centred", False)])
def test_each_kind_of_features_equals_that_of_the_embedder(feature, flip):
    own, file = embedders(describe(), feature=feature, flip=flip)
    np.testing.assert_allclose(file(CROPS), own(CROPS), atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_input_layout_gives_the_same_features(layout):
    description = describe(brighten=0.4)
    own, file = embedders(description, layout=layout)
    # The brightening takes the logarithm of a crop's mean, which is 0 here.
    black = np.zeros_like(CROPS[:1])
    crops = np.concatenate([CROPS, black])
    np.testing.assert_allclose(file(crops), own(crops), atol=2e-5)


def test_boxmot_feeds_rgb_normalised_as_imagenet_and_bgr_nchw_feeds_bgr():
    fed = LAYOUTS["boxmot"].feed(np.full((1, 2, 1, 3), (255, 0, 51), np.uint8))
    assert fed.shape == (1, 3, 2, 1)
    np.testing.assert_allclose(fed[0, :, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], rtol=1e-6)
    assert LAYOUTS["bgr-nchw"].feed(np.full((1, 2, 1, 3), (255, 0, 51), np.uint8))[0, :, 0, 0].round(3).tolist() == [
        51,
        0,
        255,
    ]


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
def test_each_opset_gives_the_same_features(opset):
    own, file = embedders(describe("vit_tiny_ics", norm_ratio=NormRatio(scope="token"), brighten=0.4), opset=opset)
    np.testing.assert_allclose(file(CROPS), own(CROPS), atol=2e-5)
