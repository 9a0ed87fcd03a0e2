"""The commands that convert weights: what they say, and how a converted model is used."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from people import run, small_config, small_model, write_images, write_night

from nrsrd_jax import augment
from nrsrd_jax.checkpoint import load, save_weights, weights_hash
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.models import initialise
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.training import train
from nrsrd_jax.weights import from_torch, state_dict, to_torch, torch_file

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_export_and_import_keep_the_whole_description_of_a_model(tmp_path, kind):
    """It has NRA with its λ and settings, both classifiers, the normalisation, the brightening and the identities."""
    description = Description(
        "vit_tiny_ics",
        2,
        (64, 48),
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        3,
        2,
        NormRatio(1.5, "token", 1e-3),
        (7, 8, 9),
        brighten=0.3,
    )
    variables = initialise(description.create_model(), jax.random.key(0), description.image_size)
    save_weights(tmp_path / "jax", description, variables, {})
    out = tmp_path / f"out{to_torch.SUFFIXES[kind]}"
    done = run("convert/to_torch.py", tmp_path / "jax", "--format", kind, "--output", out)
    assert "brightened to a mean of 0.3" in done.stderr
    names = state_dict.read(out).tensors.keys()
    assert names >= {"base.blocks.1.attn.norm_ratio", "classifier.weight", "classifier_aux.weight", "base.fc.weight"}
    again, back, _, report = from_torch.convert(out)
    assert not report.faults
    assert dataclasses.replace(again, provenance={}) == description
    assert weights_hash(back) == weights_hash(jax.tree.map(np.asarray, variables))
    # The file may be published, and the notes must not name folders of this machine.
    assert str(tmp_path) not in state_dict.read(out).notes


def test_a_converted_model_gives_the_same_features_and_can_be_evaluated(tmp_path):
    """Use a converted model as the last lines of the converter say."""
    night = write_night(tmp_path / "night")
    save_weights(tmp_path / "own", *small_model(1, seed=1, classes=17), {})
    run("convert/to_torch.py", tmp_path / "own")
    shown = run("convert/from_torch.py", tmp_path / "own.pth", "--output", tmp_path / "jax").stdout.splitlines()
    assert shown[-1] == f"written to {tmp_path / 'jax'}"
    assert shown[-2] == "it classifies 17 identities, so it can be a teacher or start a training"
    features = Embedder.load(tmp_path / "jax")(np.zeros((3, 32, 16, 3), np.uint8))
    np.testing.assert_array_equal(features, Embedder.load(tmp_path / "own")(np.zeros((3, 32, 16, 3), np.uint8)))
    saved, _ = load(tmp_path / "jax", make_mesh())
    assert saved.provenance["source"]["file"] == "own.pth"
    assert saved.provenance["source"]["sha256"] == from_torch.sha256(tmp_path / "own.pth")

    options = [f"--config.data.root={night}", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    result = run("eval.py", "--checkpoint", tmp_path / "jax", *options).stdout
    assert result.splitlines()[-1].startswith("mAP ")
    assert json.loads((tmp_path / "jax/result.json").read_text())["source"]["file"] == "own.pth"
    again = run("convert/from_torch.py", tmp_path / "own.pth", "--output", tmp_path / "jax", status=2)
    assert again.stderr.strip() == f"error: {tmp_path / 'jax'} exists; remove it, or choose another --output"


def test_a_converted_model_can_be_a_teacher_and_initialise_a_student(tmp_path, capsys):
    """The student starts from the backbone of one at another image size, and learns from the classifier of another."""
    write_night(tmp_path / "night")
    write_images(tmp_path / "aux", range(10))
    for name, size in (("teacher", (32, 16)), ("init", (64, 32))):
        save_weights(tmp_path / "own" / name, *small_model(1, size, 1, classes=10), {})
        tensors, _ = to_torch.export(tmp_path / "own" / name)
        torch_file.save(tmp_path / f"{name}.pth", tensors)
        *converted, report = from_torch.convert(tmp_path / f"{name}.pth")
        assert not report.faults
        save_weights(tmp_path / name, *converted)
    # With four epochs the compiled step is the same as in test_training.py, so it is compiled once.
    config = small_config(tmp_path, "nrsrd", init__checkpoint=str(tmp_path / "init"), train__epochs=4)
    scores = train(config, tmp_path / "run", jax.devices()[:1])
    assert "backbone vit_tiny, position embedding resized from 4×2 to 2×1, λ of NRA is new" in capsys.readouterr().out
    assert 0 < scores["mAP"] <= 1


def test_brighten_makes_a_converted_model_brighten_dark_images(tmp_path):
    shutil.copy(GOLDEN / "vit_tiny_dino.pth", tmp_path / "in.pth")
    shown = run("convert/from_torch.py", tmp_path / "in.pth", "--brighten", "0.4").stdout
    assert "images with a mean below 0.4 are first brightened to it" in shown
    embedder = Embedder.load(tmp_path / "in")
    # These images are dark enough to be brightened.
    images = np.random.default_rng(0).integers(0, 60, (2, *embedder.description.image_size, 3), np.uint8)
    brightened = augment.brighten(jnp.asarray(images, jnp.float32) / 255, 0.4)
    model = embedder.description.create_model()
    direct = model.apply(embedder.variables, augment.normalize(brightened, (0.5,) * 3, (0.5,) * 3))["embedding"]
    np.testing.assert_allclose(embedder(images), direct, rtol=1e-4, atol=1e-4)


def test_a_dry_run_reports_and_writes_nothing(tmp_path):
    shutil.copy(GOLDEN / "vit_tiny_dino.pth", tmp_path / "in.pth")
    shown = run("convert/from_torch.py", tmp_path / "in.pth", "--dry_run", "--image_size", "128,64").stdout
    assert "14×7 → 8×4 patches" in shown
    assert "53 mapped, 1 resized, 4 new, 14 ignored, 0 FAULT" in shown
    assert shown.splitlines()[-1].endswith("so it can start a training, but not be a teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_output_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("convert/from_torch.py", GOLDEN / "vit_tiny_dino.pth", "--output", "~/jax")
    run("convert/to_torch.py", "~/jax", "--backbone", "--output", "~/out.pth", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jax", "out.pth"]


def test_a_folder_that_cannot_be_written_is_found_before_the_export(tmp_path, model, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["to_torch.py", str(model), "--output", str(tmp_path / "file/out.pth")])
    monkeypatch.setattr(to_torch, "export", None)
    with pytest.raises(InputError, match=r"--output .*/file is a file; name a folder"):
        to_torch.main()


@pytest.mark.parametrize(("script", "arguments", "message"), [
    ("from_torch.py", ["nowhere.pth"], "error: there is no file nowhere.pth"),
    ("from_torch.py", ["."], "error: .: this is a folder with 0 files of weights"),
    ("from_torch.py", [GOLDEN / "plain_zip.pth"], "it contains no ViT and no ResNet"),
    ("from_torch.py", [GOLDEN / "README.md", "--output", "x"], "README.md: this is not a PyTorch checkpoint"),
    ("from_torch.py", [GOLDEN / "vit_tiny.pth", "--dry_run", "--image_size", "256,100"], "multiples of 16"),
    ("from_torch.py", [GOLDEN / "vit_tiny.pth", "--dry_run", "--source_size", "128,64"], "images of (128, 64) have"),
    ("from_torch.py", [GOLDEN / "vit_tiny.pth", "--dry_run", "--brighten", "1"], "argument --brighten: 1 is not"),
    ("from_torch.py", [GOLDEN / "vit_tiny.pth", "--dry_run", "--cameras", "01,1,2"], "01,1,2 is not a list of"),
    ("from_torch.py", ["x" * 300], "File name too long"),
    ("to_torch.py", ["nowhere"], "nowhere does not exist"),
    ("to_torch.py", ["/"], "holds no checkpoint"),
    ("to_torch.py", [GOLDEN / "vit_tiny.pth"], "is a file; to import a PyTorch file: nrsrd convert"),
])  # fmt: skip
def test_a_mistake_gives_one_line_and_writes_nothing(tmp_path, script, arguments, message):
    done = run(f"convert/{script}", *arguments, cwd=tmp_path, status=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
