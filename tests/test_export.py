"""`nrsrd export` writes a file only if its features equal the model's own, and eval accepts the file."""

import importlib.util
import json
import re
import sys

import jax
import numpy as np
import onnx
import pytest
from export_models import CHOICE, CROPS, describe, trained
from people import small_config, write_images, write_night

from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.errors import InputError
from nrsrd_jax.export import __main__ as export
from nrsrd_jax.export import onnx_file, write
from nrsrd_jax.export.__main__ import INPUTS
from nrsrd_jax.export.layouts import LAYOUTS
from nrsrd_jax.export.metadata import entries
from nrsrd_jax.export.runtime import OnnxEmbedder
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.models.vit import ViTSpec
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.result import evaluate_run
from nrsrd_jax.weights import from_torch, torch_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Save a model in model/, and 40 crops in crops/."""
    place = tmp_path_factory.mktemp("export")
    description = describe("vit_tiny_ics", norm_ratio=NormRatio(), brighten=0.4)
    save_weights(place / "model", description, trained(description), {})
    write_images(place / "crops", range(20), frames=1, suffix=".png")
    return place


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["nrsrd export", *map(str, arguments)])
    export.main()


def test_the_file_is_compared_at_four_batch_sizes_and_describes_itself(place, monkeypatch, capsys):
    call(monkeypatch, place / "model", "--crops", place / "crops", "--output", place / "m.onnx")
    said = capsys.readouterr().out.splitlines()
    expected = r"40 crops of crops: largest difference .*\(1: .*, 2: .*, 7: .*, 32: .*nearest .* for 0 of 40"
    assert re.search(expected, said[0])
    assert said[-1].endswith(f"written to {place / 'm.onnx'}")
    model = onnx.load(place / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    assert kept["image_size"] == "32 high, 16 wide"
    assert (kept["feature"], kept["input"], kept["colours"]) == ("centred", "uint8-nhwc", "RGB")
    assert "bilinear with antialiasing" in kept["resize"]
    assert "Apache-2.0" in kept["licence"]
    embedder = Embedder.load(place / "model", feature="auto")
    assert kept["weights_sha256"] == embedder.identity()["weights_sha256"]
    (found,) = json.loads(kept["parity"])
    assert list(found["largest"]) == ["1", "2", "7", "32"]
    # Two programs differ by rounding. A difference of 0 would mean that the model was compared with itself.
    assert 0 < max(found["largest"].values()) < 1e-5
    assert str(place).encode() not in (place / "m.onnx").read_bytes()
    np.testing.assert_allclose(OnnxEmbedder(place / "m.onnx")(CROPS), embedder(CROPS), atol=2e-5)


def test_a_file_with_a_fixed_batch_size_embeds_any_number_of_crops(place, monkeypatch):
    call(monkeypatch, place / "model", "--batch", 3, "--feature", "cls", "--output", place / "three.onnx")
    file = OnnxEmbedder(place / "three.onnx")
    assert file.shape == [3, 32, 16, 3]
    np.testing.assert_allclose(file(CROPS), Embedder.load(place / "model")(CROPS), atol=2e-5)


def test_nothing_is_written_if_the_features_of_the_file_differ(place, monkeypatch):
    """NaN counts as a difference, and an existing file keeps its content."""
    (place / "kept.onnx").write_bytes(b"before")

    def wrong(*arguments):
        return add_vit(*arguments[:-1], image=arguments[0].add("Neg", arguments[-1]))

    add_vit = onnx_file.WRITERS[ViTSpec]
    monkeypatch.setitem(onnx_file.WRITERS, ViTSpec, wrong)
    with pytest.raises(
        InputError, match=r"nothing is written: a number of a feature differs by .* more than --limit 0.0001"
    ):
        call(monkeypatch, place / "model", "--output", place / "kept.onnx")
    assert (place / "kept.onnx").read_bytes() == b"before"
    # The logarithm of a negative number is NaN.
    monkeypatch.setitem(
        onnx_file.WRITERS, ViTSpec, lambda *given: given[0].add("Log", given[0].add("Neg", add_vit(*given)))
    )
    with pytest.raises(InputError, match=r"differs by nan"):
        call(monkeypatch, place / "model", "--output", place / "kept.onnx")
    assert (place / "kept.onnx").read_bytes() == b"before"


def test_a_model_that_cannot_be_written_as_onnx_is_named(place, monkeypatch):
    monkeypatch.setattr(onnx_file, "WRITERS", {})
    with pytest.raises(
        InputError, match=r"vit_tiny_ics cannot be written as ONNX, only .*; --format stablehlo takes every"
    ):
        call(monkeypatch, place / "model", "--output", place / "no.onnx")


@pytest.mark.parametrize(("arguments", "message"), [
    (["absent", "--output", "x.onnx"], "absent does not exist; give a checkpoint"),
    (["model", "--output", "crops"], "--output crops is a folder; name a file"),
    # Not even root can create a file in /proc.
    (["model", "--output", "/proc/x.onnx"], "--output: cannot write in /proc: .*; name another folder"),
    (["model", "--output", "x.onnx", "--crops", "absent"], "absent does not exist; give a folder of crops"),
    (["model", "--output", "x.onnx", "--crops", "model"], "model has no crops"),
])  # fmt: skip
def test_bad_paths_are_refused_and_nothing_is_written(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match=message):
        call(monkeypatch, *arguments)
    assert not (place / "x.onnx").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--opset", "16"], "argument --opset: 16 is not an opset from 17 to 23"),
    (["--opset", "new"], "argument --opset: new is not an opset"),
    (["--input", "nhcw"], "argument --input: invalid choice: 'nhcw'"),
    (["--batch", "0"], "argument --batch: 0 is not a whole number of at least 1"),
    (["--limit", "small"], "argument --limit: small is not a number of at least 0"),
    (["--limit", "nan"], "argument --limit: nan is not a number of at least 0"),
    (["--precision", "int8", "--crops", "crops"], "--precision int8 needs --data, labelled crops"),
    (["--precision", "int8", "--data", "crops.csv"], "--precision int8 needs --crops, a folder of crops"),
    (["--format", "torch", "--input", "boxmot"], "--input has no effect with --format torch; leave it out"),
    (["--format", "torch", "--crops", "x"], "--crops has no effect with --format torch without --without-nra; leave"),
    (["--format", "torch", "--without-nra", "--data", "x.csv"], "--data has no effect with --format torch; leave it"),
    (["--format", "stablehlo", "--opset", "17"], "--opset has no effect with --format stablehlo; leave it out"),
    (["--format", "stablehlo", "--data", "x.csv"], "--data has no effect with --format stablehlo; leave it out"),
    (["--format", "stablehlo", "--loss", "0.1"], "--loss has no effect with --format stablehlo; leave it out"),
    (["--without-nra"], "--without-nra has no effect with --format onnx; leave it out"),
    (["--loss", "0.1"], "--loss has no effect without --data"),
    (["--precision", "float16", "--data", "x.csv", "--limit", "1"], "--limit has no effect with --precision float16"),
    ([], "--output"),
])  # fmt: skip
def test_a_wrong_flag_is_named(place, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        call(monkeypatch, place / "model", *arguments, *(["--output", place / "x.onnx"] if arguments else []))
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_command_offers_every_layout():
    assert tuple(LAYOUTS) == INPUTS


def test_a_file_that_is_not_an_export_is_named(place):
    (place / "noise.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"noise.onnx is not an ONNX file that can be run"):
        OnnxEmbedder(place / "noise.onnx")
    with pytest.raises(InputError, match="there is no file"):
        OnnxEmbedder(place / "absent.onnx")
    description = describe()
    model = onnx_file.build(description, trained(description), **CHOICE)
    foreign = onnx_file.with_metadata(model, {})
    with pytest.raises(InputError, match="was not written by nrsrd export"):
        OnnxEmbedder(foreign)


def test_eval_gives_a_file_the_scores_of_its_checkpoint(place, monkeypatch):
    """The result stands beside the file and records the kind of features."""
    call(monkeypatch, place / "model", "--feature", "neck", "--output", place / "neck.onnx")
    write_night(place / "night", frames=1)
    config = small_config(place, eval__feature="neck")
    own, _ = evaluate_run("", str(place / "model"), str(place / "own.json"), config)
    config = small_config(place)
    found, files = evaluate_run(config=config, onnx=str(place / "neck.onnx"))
    assert files == [place / "neck.result.json"]
    kept = json.loads(files[0].read_text())
    assert (kept["feature"], kept["weights_sha256"]) == ("neck", own["weights_sha256"])
    assert found["mAP"] == own["mAP"]
    with pytest.raises(InputError, match="--workdir, --checkpoint and --onnx each name weights"):
        evaluate_run("", str(place / "model"), onnx="m.onnx")
    with pytest.raises(InputError, match="--report shows attention, which an ONNX file does not give"):
        evaluate_run(config=small_config(place), onnx=str(place / "neck.onnx"), report=str(place / "page"))


def test_an_evaluation_of_a_file_keeps_the_results_of_other_evaluations(place, monkeypatch):
    """Results of other data, other options and an earlier file stay. The same evaluation replaces its own result."""
    for name in ("night", "dusk"):
        write_night(place / name, frames=1)
    write_images(place / "dusk/query", [100], cameras=(1,), frames=1, seed=9)
    call(monkeypatch, place / "model", "--feature", "cls", "--output", place / "kept/m.onnx")

    def evaluated(rerank=False, **options):
        _, (path,) = evaluate_run(config=small_config(place, **options), onnx=str(place / "kept/m.onnx"), rerank=rerank)
        return path.name

    assert evaluated() == evaluated() == "m.result.json"
    assert evaluated(data__root=str(place / "dusk")).startswith("m.result-night600-")
    assert evaluated(rerank=True).startswith("m.result-reranked-")
    assert evaluated() == "m.result.json"
    assert len(list((place / "kept").glob("m.result*"))) == 3
    call(monkeypatch, place / "model", "--feature", "neck", "--output", place / "kept/m.onnx")
    assert evaluated() == "m.result.json"
    (earlier,) = (place / "kept").glob("m.result-earlier-*.json")
    assert json.loads(earlier.read_text())["feature"] == "cls"


@pytest.mark.parametrize(("name", "value", "own"), [
    ("eval.feature", "cls", "neck"), ("eval.flip", True, "False"), ("image_size", (64, 32), r"\(32, 16\)"),
])  # fmt: skip
def test_an_option_that_contradicts_the_file_is_refused(place, monkeypatch, name, value, own):
    path = place / "fixed.onnx"
    # The three cases share the file, because each export compares features at several batch sizes.
    if not path.exists():
        call(monkeypatch, place / "model", "--feature", "neck", "--output", path)
    with pytest.raises(InputError, match=rf"--config\.{name} is .*, but .*fixed.onnx was exported with {own}"):
        evaluate_run(config=small_config(place), overrides={name: value}, onnx=str(path))


def test_a_broken_file_is_refused_before_the_data_is_read(place):
    (place / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"broken.onnx is not an ONNX file that can be run"):
        evaluate_run(config=small_config(place, data__root="/nowhere"), onnx=str(place / "broken.onnx"))


@pytest.fixture(scope="module")
def labelled(place):
    """Write a table with the person and camera of each crop."""
    paths = sorted((place / "crops").glob("*.png"))
    rows = [f"crops/{path.name},{path.name[:4]},{path.name[6]}" for path in paths]
    (place / "crops.csv").write_text("\n".join(["path,person,camera", *rows]))
    return place / "crops.csv"


# ONNX Runtime computes int8 products differently on each kind of processor. With these random weights it loses less
# than 0.02 of mAP on some, and 0.043 on an AMD EPYC.
@pytest.mark.parametrize(("precision", "share", "loss"), [("float16", 0.6, 0.02), ("int8", 0.8, 0.1)])
def test_a_file_of_fewer_bits_is_smaller_and_records_its_accuracy(
    place, labelled, monkeypatch, capfd, precision, share, loss
):
    path = place / f"{precision}.onnx"
    bits = ["--precision", precision, "--crops", place / "crops", "--data", labelled, "--input", "boxmot"]
    call(monkeypatch, place / "model", *bits, "--loss", loss, "--output", path)
    # ONNX Runtime writes its warnings past sys.stderr, where capsys would miss them.
    said, warned = capfd.readouterr()
    assert re.search(r"mAP of 40 labelled crops, crops.csv: 0\.\d{4} in float32 by JAX, 0\.\d{4} by the file", said)
    assert not warned
    weights = sum(x.size for x in jax.tree.leaves(Embedder.load(place / "model").variables["params"]["base"]))
    assert path.stat().st_size < 4 * share * weights
    file = OnnxEmbedder(path)
    (check,) = json.loads(file.notes["parity"])
    assert abs(check["mAP"] - check["mAP_of_the_file"]) <= loss
    own = Embedder.load(place / "model", feature="auto")(CROPS)
    assert np.corrcoef(file(CROPS).ravel(), own.ravel())[0, 1] > 0.99


def test_a_file_that_loses_too_much_accuracy_is_not_written(place, labelled, monkeypatch):
    monkeypatch.setattr(OnnxEmbedder, "run", lambda self, fed: np.ones((len(fed), self.width), np.float32))
    half = ["--precision", "float16", "--data", labelled, "--output", place / "lost.onnx"]
    with pytest.raises(InputError, match=r"nothing is written: 0\.\d+ of mAP would be lost, more than --loss 0.005"):
        call(monkeypatch, place / "model", *half)
    assert not (place / "lost.onnx").exists()


def test_a_stablehlo_file_runs_with_jax_alone_at_any_batch_size(place, monkeypatch):
    path = place / "m.stablehlo"
    save_weights(place / "plain", describe(), trained(describe()), {})
    # The comparison compiles the program for each batch size, so one size keeps the test short.
    monkeypatch.setattr(write, "BATCHES", (2,))
    call(monkeypatch, place / "plain", "--format", "stablehlo", "--flip", "--feature", "neck", "--output", path)
    features = jax.export.deserialize(bytearray(path.read_bytes())).call(CROPS[:3])
    own = Embedder.load(place / "plain", flip=True, feature="neck")(CROPS[:3])
    np.testing.assert_allclose(features, own, atol=2e-5)
    kept = json.loads((place / "m.stablehlo.json").read_text())
    assert (kept["format"], kept["feature"], kept["flip"]) == ("stablehlo", "neck", "True")


def test_nra_can_be_left_out_of_a_torch_file_only_if_it_has_no_effect(place, monkeypatch, capsys):
    call(monkeypatch, place / "model", "--format", "torch", "--output", place / "m.pth")
    assert "NRA's λ is in the file" in capsys.readouterr().out
    tensors, _ = torch_file.load(place / "m.pth")
    assert "base.blocks.0.attn.norm_ratio" in tensors
    without = ["--format", "torch", "--without-nra", "--output"]
    with pytest.raises(InputError, match=r"without NRA \(λ = 0.7\) a number .* linear layers cannot compute a norm"):
        call(monkeypatch, place / "model", *without, place / "n.pth")
    assert not (place / "n.pth").exists()
    description = describe(norm_ratio=NormRatio())
    variables = trained(description)
    # With so small a λ, leaving NRA out changes the features by less than the limit.
    base = description.spec.with_strength(variables["params"]["base"], 1e-6)
    variables["params"] = {**variables["params"], "base": base}
    save_weights(place / "inert", description, variables, {})
    call(monkeypatch, place / "inert", *without, place / "n.pth")
    found, _, _, report = from_torch.convert(place / "n.pth")
    assert (found.norm_ratio, report.faults) == (None, [])


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="to run this test: pip install openvino")
def test_openvino_gives_the_same_features(place, monkeypatch, capsys):
    call(monkeypatch, place / "model", "--openvino", "--output", place / "o.onnx")
    assert re.search(r"OpenVINO .*largest difference \S+e-0[67]", capsys.readouterr().out)


def test_the_calibration_beside_a_model_is_exported_if_it_is_for_these_features(place, capsys):
    save_weights(place / "calibrated", describe(), trained(describe()), {})
    embedder, other = (Embedder.load(place / "calibrated", feature=feature) for feature in ("cls", "neck"))
    curve = {"curve": {"threshold": [0.2], "fmr": [1]}, "probability": {"similarity": [0.2], "probability": [0.5]}}
    about = {"model": embedder.identity(), "people": 40, "command": "nrsrd calibrate"}
    (place / "calibrated/calibration.json").write_text(json.dumps(curve | about))
    kept = json.loads(entries(embedder, place / "calibrated", {})["calibration"])
    assert (kept["people"], kept["curve"]) == (40, curve["curve"])
    assert "calibration" not in entries(other, place / "calibrated", {})
    (warned,) = capsys.readouterr().err.splitlines()
    assert re.search(r"^warning: .*calibration.json calibrates another model .*; the calibration is not used$", warned)
