"""Check the code with all diffs of docs/extending.md applied. test_extending.py runs this in a patched copy.

It prints {heading: the traceback of a failed check, or ""} as JSON.
"""

import dataclasses
import functools
import json
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import quick_xla
from people import small_config, write_images, write_night

from nrsrd_jax import checkpoint
from nrsrd_jax.description import Description
from nrsrd_jax.metrics_log import read_metrics
from nrsrd_jax.models import find_spec
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.result import evaluate_run, full_table
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import train

PLACE = Path(sys.argv[1])
# Compiled forward passes by model, so that each is traced once.
FORWARD: dict[str, Callable] = {}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 16, 3), np.uint8)


def trained(backbone: str, variant: str, **options) -> tuple[dict, Description, dict]:
    """Train an epoch of two steps. Return what the last step logged, and the loaded checkpoint."""
    run = PLACE / backbone
    config = small_config(PLACE, variant, model__backbone=backbone, train__epochs=1, **options)
    assert 0 < train(config, run, jax.devices()[:1])["mAP"] <= 1
    steps = [row for row in read_metrics(run) if "loss" in row]
    return steps[-1], *checkpoint.load(run, make_mesh())


@functools.cache
def trained_vit() -> tuple[dict, Description, dict]:
    """Train one ViT with everything that the diffs add to ViTs and losses, because compiling a step takes seconds."""
    return trained("vit_mini", "nra", model__depth=1, loss__compact_real=0.1, norm_ratio__form="mean")


def embedded(description: Description, variables: dict, **options) -> np.ndarray:
    """Embed IMAGES and check the features' shape and values."""
    model = description.create_model()
    embedder = Embedder(model, variables, description, make_mesh(), batch_size=4, flip=False)
    embedder._forward = FORWARD.setdefault(repr((description.norm_ratio, description.backbone)), embedder._forward)
    features = embedder(IMAGES, **options)
    assert features.shape == (4, description.spec.width)
    assert np.isfinite(features).all()
    return features


def loss() -> None:
    logged, *_ = trained_vit()
    assert logged["compact_real"] > 0
    weighted = 0.5 * (logged["id_real"] + logged["triplet_real"]) + 0.1 * logged["compact_real"]
    np.testing.assert_allclose(logged["loss"], weighted, rtol=1e-5)


def penalty() -> None:
    _, description, variables = trained_vit()
    assert description.norm_ratio == NormRatio(form="mean")
    # λ started at 1 and is learned.
    assert variables["params"]["base"]["blocks_0"]["attn"]["norm_ratio"] != 1
    plain = dataclasses.replace(description, norm_ratio=NormRatio())
    assert not np.allclose(embedded(description, variables), embedded(plain, variables), rtol=1e-4)


def layout() -> None:
    for folder, people in (("train", range(4)), ("query", (7,)), ("test", (7, 8))):
        write_images(PLACE / "ltcc" / folder, people, cameras=(1,) if folder == "query" else (1, 12))
    for path in (PLACE / "ltcc").rglob("*.jpg"):
        identity, camera, frame = path.stem.split("_")
        path.rename(path.with_name(f"{identity}_2_{camera}_{frame}.jpg"))
    sys.argv = ["check", "ltcc", str(PLACE / "ltcc"), "--config.train.batch_size=8"]
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("nrsrd_jax.check", run_name="__main__")
    assert ended.value.code == 0


def backbone() -> None:
    logged, *model = trained("cnn_small", "baseline", model__depth=0)
    assert logged["loss"] > 0
    embedded(*model)


def number() -> None:
    trained_vit()
    result, files = evaluate_run(str(PLACE / "vit_mini"))
    assert result["rank10"] <= json.loads(files[0].read_text())["rank20"] == result["rank20"] <= 1
    assert "Rank-20" in full_table(result)


def size() -> None:
    _, description, variables = trained_vit()
    assert embedded(description, variables).shape == (4, 256)
    assert find_spec("vit_mini").depth == 6


CHECKS = {
    "A loss": loss,
    "An attention penalty": penalty,
    "A data layout": layout,
    "A backbone": backbone,
    "A number of the evaluation": number,
    "A ViT of another size": size,
}


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    quick_xla.switch_on(sys.argv[2])
    write_night(PLACE / "night")
    failed = dict.fromkeys(CHECKS, "")
    for name, check in CHECKS.items():
        try:
            check()
        # pytest.raises fails with an exception that is not an Exception, and a command may raise SystemExit.
        except BaseException:
            failed[name] = traceback.format_exc()
    print("\n" + json.dumps(failed))


if __name__ == "__main__":
    main()
