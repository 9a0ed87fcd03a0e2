"""The examples in docstrings print what they show, and the docstrings describe every argument."""

import doctest
import inspect
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from nrsrd_jax import augment, checkpoint, losses, models, sharding
from nrsrd_jax.data import images, labels
from nrsrd_jax.description import Description
from nrsrd_jax.export import metadata, onnx_file, parity, runtime
from nrsrd_jax.lowlight import degradation
from nrsrd_jax.models import attention, enhance, position, spec
from nrsrd_jax.retrieval import (
    calibration,
    clustering,
    distances,
    embedding,
    error_rates,
    files,
    illumination,
    linking,
    pair_table,
    pairs,
    ranking,
    rerank,
    searches,
)
from nrsrd_jax.weights import from_torch, to_torch, torch_file

pytestmark = pytest.mark.slow

PUBLIC = (
    losses.id_loss,
    losses.pairwise_distances,
    losses.triplet_loss,
    losses.dkd_loss,
    losses.relation_loss,
    losses.consistency_loss,
    losses.spread_loss,
    losses.agreement_loss,
    losses.compute_terms,
    losses.total_loss,
    augment.brighten,
    augment.flip_and_crop,
    augment.normalize,
    augment.random_erasing,
    degradation.resolve,
    degradation.degrade,
    degradation.degrade_to,
    models.find_spec,
    models.create_model,
    models.initialise,
    attention.l2_norm,
    attention.token_norms,
    attention.norm_ratio_penalty,
    attention.standard_norm_penalty,
    attention.attention_logits,
    attention.attend,
    attention.fused_attend,
    attention.fusion_works,
    spec.Spec.module,
    spec.Spec.check_size,
    spec.Spec.start_from,
    spec.Spec.torch_name,
    position.resize_position_embedding,
    enhance.enhancement_loss,
    ranking.rank_metrics,
    ranking.rank_features,
    distances.squared_distances,
    ranking.rank_by,
    rerank.k_reciprocal,
    rerank.reranked_distances,
    rerank.expand_queries,
    clustering.cluster,
    clustering.memory_bound,
    clustering.jaccard_graph,
    clustering.scores,
    linking.constrain,
    linking.contested,
    embedding.Embedder,
    embedding.Embedder.load,
    embedding.Embedder.__call__,
    files.cameras_for,
    illumination.read_lights,
    illumination.darkener,
    pairs.people_needed,
    pairs.interval,
    searches.predicted_fpir,
    error_rates.calibrate,
    error_rates.check_labels,
    calibration.load_calibration,
    calibration.Calibration.probability,
    calibration.Calibration.threshold_at,
    calibration.Calibration.strangers,
    calibration.Calibration.statement,
    pair_table.pair_table,
    labels.read_labelled,
    labels.read_labels,
    checkpoint.load,
    checkpoint.save_weights,
    from_torch.convert,
    to_torch.export,
    onnx_file.build,
    parity.compare,
    runtime.OnnxEmbedder,
    images.decode,
    sharding.make_mesh,
    sharding.place,
    sharding.own_mesh,
    sharding.replicated,
    sharding.over_data,
    sharding.parameter_shardings,
)
# Two need a GPU, one is abstract, and Embedder is made by `load`, which has an example.
WITHOUT_EXAMPLE = (attention.fused_attend, attention.fusion_works, spec.Spec.module, embedding.Embedder)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Source|Example):$", re.MULTILINE)


def name_of(function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def find_examples() -> dict[str, doctest.DocTest]:
    """Return the examples in the modules of PUBLIC by name. Each starts without variables, as in a reader's session."""
    modules = {inspect.getmodule(function) for function in PUBLIC}
    finder = doctest.DocTestFinder(exclude_empty=True)
    return {test.name: test for module in modules for test in finder.find(module, globs={}) if test.examples}


EXAMPLES = find_examples()


def sections(function) -> dict[str, str]:
    """Return the sections of a docstring by name; "" is the text before the first."""
    first, *rest = SECTION.split(inspect.getdoc(function) or "")
    return {"": first} | dict(zip(rest[::2], rest[1::2], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make the files that the examples name: a checkpoint, its PyTorch and ONNX files, a calibration and an image."""
    folder = tmp_path_factory.mktemp("examples")
    description = Description("vit_tiny", 1, (32, 16), (0.5,) * 3, (0.5,) * 3, classes=4)
    # No example prints a weight, and ones need no compiled initialisation.
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), description.abstract_variables())
    checkpoint.save_weights(folder / "runs/night", description, variables, kept={})
    torch_file.save(folder / "model.pth", to_torch.export(folder / "runs/night")[0])
    choice = {"layout": "uint8-nhwc", "feature": "cls", "flip": False, "opset": 17, "batch": None}
    model = onnx_file.build(description, variables, **choice)
    embedder = embedding.Embedder.load(folder / "runs/night")
    notes = metadata.entries(embedder, folder, {"input": "uint8-nhwc"})
    (folder / "night.onnx").write_bytes(onnx_file.with_metadata(model, notes))
    Image.fromarray(np.full((40, 20, 3), (200, 100, 50), np.uint8)).save(folder / "crop.png")
    curve = {"curve": {"threshold": [0.2], "fmr": [1]}, "probability": {"similarity": [0.2], "probability": [0.5]}}
    (folder / "calibration.json").write_text(json.dumps(curve | {"model": {"feature": "cls"}, "people": 40}))
    return folder


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example_in_a_docstring_prints_what_it_shows(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("function", PUBLIC, ids=name_of)
def test_docstring_describes_each_argument_in_order(function):
    described = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*): \S", sections(function).get("Args", ""), re.MULTILINE)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(function).parameters.values()
    expected = [stars.get(p.kind, "") + p.name for p in parameters if p.name != "self"]
    assert [name for names in described for name in names.split(", ")] == expected


@pytest.mark.parametrize("function", PUBLIC, ids=name_of)
def test_docstring_has_a_summary_and_describes_results_errors_and_an_example(function):
    found = sections(function)
    summary, _, rest = found[""].partition("\n")
    assert summary.endswith(".")
    assert not rest.strip() or rest.startswith("\n"), "the summary takes more than a line"
    returns = not inspect.isclass(function) and inspect.signature(function).return_annotation is not None
    assert ("Returns" in found) == returns
    # Errors that come from a called function are not found here.
    raises = inspect.isfunction(function) and re.search(r"^ +raise \w*Error\(", inspect.getsource(function), re.M)
    assert "Raises" in found or not raises
    assert (name_of(function) in EXAMPLES) == (function not in WITHOUT_EXAMPLE)
