"""Test that a module, its Spec and a line in MODELS are enough to train, embed with and evaluate a new backbone."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from people import small_config, write_images, write_night

from nrsrd_jax import checkpoint
from nrsrd_jax.data.datasets import read_dataset
from nrsrd_jax.errors import InputError
from nrsrd_jax.metrics_log import read_metrics
from nrsrd_jax.models import MODELS, find_spec
from nrsrd_jax.models.spec import Spec
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import train

pytestmark = pytest.mark.slow


class Halves(nn.Module):
    """Pool a convolution over the upper and the lower half of the image: two parts, and a vector for each camera."""

    cameras: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images, *, cameras=None, train=False, maps=False, domains=1) -> dict:
        x = nn.relu(nn.Conv(8, (8, 8), (8, 8), dtype=self.dtype)(images))
        if cameras is not None:
            table = self.param("camera_embed", nn.initializers.normal(0.02), (self.cameras, 8))
            x = x + jnp.where(cameras[:, None] >= 0, table[cameras], 0)[:, None, None]
        upper, lower = (half.mean((1, 2)).astype(jnp.float32) for half in jnp.array_split(x, 2, axis=1))
        embedding = jnp.concatenate([upper, lower], axis=1)
        return {
            "embedding": embedding,
            "parts": [upper, lower],
            "weights": [1.0, 0.5],
            "diagnostics": {"scale": x.max()},
        }


@dataclasses.dataclass(frozen=True)
class HalvesSpec(Spec):
    def module(self, *, dtype=None, norm_ratio=None, drop_path=0.0, remat=False, cameras=0):
        return Halves(cameras, dtype)


@pytest.fixture
def halves(monkeypatch):
    monkeypatch.setitem(MODELS, "halves", HalvesSpec(width=16, stride=8))


def test_a_backbone_with_two_parts_and_cameras_trains_embeds_and_evaluates(halves, tmp_path):
    night = write_night(tmp_path / "night")
    # The sides are multiples of this backbone's 8 pixels, but not of the 16 of a plain ViT.
    config = small_config(tmp_path, model__backbone="halves", model__depth=0, image_size=(40, 24), train__epochs=2)
    assert 0 < train(config, tmp_path / "run", jax.devices()[:1])["mAP"] <= 1
    row = next(row for row in read_metrics(tmp_path / "run") if "loss" in row)
    assert row["scale"] > 0
    assert row["loss"] == pytest.approx(0.5 * (row["id_real"] + row["triplet_real"]), rel=1e-5)

    description, variables = checkpoint.load(tmp_path / "run", make_mesh())
    params = variables["params"]
    assert {"classifier", "classifier_1", "bottleneck", "bottleneck_1"} <= params.keys()
    # The bias of the neck is frozen in every part.
    assert not np.any(params["bottleneck_1"]["bias"])
    data = read_dataset("night600", night)
    assert description.cameras == tuple(np.unique(data.train.cameras))
    embedder = Embedder.load(tmp_path / "run")
    images = np.zeros((2, 40, 24, 3), np.uint8)
    # Training had no camera 77, so its images get no vector.
    known, unknown = (embedder(images, cameras=np.array(c)) for c in (data.train.cameras[:2], [77, 77]))
    assert known.shape == (2, embedder.width) == (2, 16)
    assert not np.allclose(known, unknown)
    np.testing.assert_array_equal(unknown, embedder(images))


def test_any_backbone_can_be_teacher_and_student(halves, tmp_path):
    write_night(tmp_path / "night")
    write_images(tmp_path / "aux", range(200, 210))
    common = {"model__backbone": "halves", "model__depth": 0, "train__epochs": 1}
    bright = small_config(tmp_path, "baseline", data__name="bright", data__root=str(tmp_path / "aux"), **common)
    train(bright, tmp_path / "teacher", jax.devices()[:1])
    student = small_config(tmp_path, "srd", teacher__checkpoint=str(tmp_path / "teacher"), **common)
    assert 0 < train(student, tmp_path / "run", jax.devices()[:1])["mAP"] <= 1
    assert next(row for row in read_metrics(tmp_path / "run") if "loss" in row)["distill"] >= 0


def test_an_image_size_that_the_backbone_cannot_take_is_refused(halves):
    find_spec("halves").check_size((40, 24))
    for size in ((40, 20), (40,), (0, 8), (-8, 8), (40.0, 24)):
        with pytest.raises(InputError, match="multiples of 8 pixels"):
            find_spec("halves").check_size(size)
    with pytest.raises(InputError, match="multiples of 16 pixels"):
        find_spec("vit_base").check_size((40, 24))
