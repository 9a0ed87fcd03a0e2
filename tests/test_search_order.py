"""Test that `nrsrd search` lists the gallery in the order in which `nrsrd eval` ranks it."""

import functools
import json
import shutil

import numpy as np
import pytest
from people import small_config, write_images

from nrsrd_jax.inputs import read_targets
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.scoring import evaluate

pytestmark = pytest.mark.slow

PATTERN = r"(?P<camera>c\d+)_"


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Write sixteen people by two cameras. As in Night600, the gallery holds the queries and a copy of an image."""
    root = tmp_path_factory.mktemp("order") / "night"
    write_images(root / "bounding_box_train", range(2), frames=1)
    write_images(root / "bounding_box_test", range(100, 116), frames=1)
    (root / "query").mkdir()
    for path in sorted((root / "bounding_box_test").glob("*_c1_*"))[:6]:
        shutil.copy(path, root / "query")
    shutil.copy(root / "bounding_box_test/0103_c2_000000.jpg", root / "bounding_box_test/0199_c2_000000.jpg")
    return root


@pytest.fixture(scope="module")
def embedder(model):
    """Return a function embedder(flip) that loads and compiles each embedder once."""
    load = functools.partial(Embedder.load, model)
    return functools.cache(lambda flip: load(flip=flip))


@pytest.mark.parametrize("options", [
    {}, {"flip": True}, {"normalize": "camera"}, {"normalize": "brightness"}, {"rerank": True},
    {"flip": True, "normalize": "brightness", "rerank": True},
])  # fmt: skip
def test_search_orders_the_gallery_as_eval_does(night, model, embedder, nrsrd, tmp_path, monkeypatch, options):
    # Each command would load the model and compile it again.
    monkeypatch.setattr(Embedder, "load", lambda _, flip=False, **others: embedder(flip))
    chosen = {f"eval__{name}": value for name, value in options.items() if name != "rerank"}
    if "rerank" in options:
        chosen["eval__rerank__enabled"] = True
    evaluated = read_options(small_config(night.parent, data__cache="none", **chosen))
    target = read_targets(evaluated)["night600"]
    distances = evaluate(embedder(evaluated.eval.flip), evaluated, {"night600": target})["night600"].distances
    expected = np.asarray(distances(np.arange(len(target.query))))

    flip = ["--flip"] if evaluated.eval.flip else []
    gallery = ["--gallery", tmp_path / "g", "--pattern", PATTERN]
    nrsrd("embed", night / "bounding_box_test", "--model", model, *gallery, *flip)
    arguments = ["--normalize", evaluated.eval.normalize, *(["--rerank"] if evaluated.eval.rerank.enabled else [])]
    nrsrd("search", night / "query", *gallery, "--top", 99, "--output", tmp_path / "m.json", *arguments)
    queries = json.loads((tmp_path / "m.json").read_text())["queries"]
    assert [query["path"] for query in queries] == list(map(str, target.query.paths))
    for query, row in zip(queries, expected, strict=True):
        # The copy has the distance of its original, and the earlier file comes first in both commands.
        order = [str(target.gallery.paths[i]) for i in np.argsort(row, kind="stable")]
        assert [match["path"] for match in query["matches"]] == order
