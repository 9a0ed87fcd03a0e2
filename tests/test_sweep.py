"""Test the sweep over λ and temperature, which scores a model with altered attention."""

import csv
from pathlib import Path

import numpy as np
import pytest
from people import run, small_model, write_night

from nrsrd_jax import checkpoint
from nrsrd_jax.analysis import sweep
from nrsrd_jax.config import get_config
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.models import with_base
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval import Embedder
from nrsrd_jax.sharding import make_mesh

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("sweep")
    write_night(place / "night")
    checkpoint.save_weights(place / "model", *small_model(), {})
    return place


def test_a_temperature_divides_the_attention_logits(place):
    """Check that twice the temperature halves the spread of the logits and changes the features."""
    description, variables = checkpoint.load(place / "model", make_mesh())
    spec, images = description.spec, np.random.default_rng(0).normal(size=(2, 32, 16, 3)).astype(np.float32)
    model = description.create_model()
    outs = []
    for temperature in (1.0, 2.0):
        base = spec.with_temperature(variables["params"]["base"], temperature)
        outs.append(model.apply(with_base(variables, base), images))
    spreads = [float(out["diagnostics"]["logit_spread"]) for out in outs]
    assert spreads[0] == pytest.approx(2 * spreads[1], rel=1e-5)
    assert not np.allclose(outs[0]["embedding"], outs[1]["embedding"])


def test_the_sweep_reports_moved_attention_and_the_difference_in_map(place, tmp_path):
    arguments = ("--checkpoint", place / "model", "--sweep", "--output", tmp_path / "out")
    done = run(
        "-m", "nrsrd_jax.analysis", *arguments, f"--config.data.root={place / 'night'}", "--config.data.cache=none"
    )
    with open(tmp_path / "out/sweep.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["altered"] for row in rows} == {"ratio", "standard", "temperature"}
    for row in rows:
        # A temperature of 1, and a λ of 0 in both forms, leave the model as it is.
        plain = (row["altered"] == "temperature") == (float(row["value"]) == 1) and row["value"] in ("0.0", "1.0")
        if plain:
            assert [float(row[name]) for name in ("moved", "difference", "low", "high")] == [0] * 4
        elif row["altered"] == "standard":
            # In the standard form, λ is the standard deviation of γ over the keys.
            assert float(row["leverage"]) == pytest.approx(abs(float(row["value"])), rel=0.02)
            assert float(row["moved"]) > 0
    scores = {row["mAP"] for row in rows if (row["altered"], row["value"]) in (("ratio", "0.0"), ("standard", "0.0"))}
    assert len(scores) == 1
    assert (tmp_path / "out/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "so its interval is too favourable" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith("night600: ") and "of" in line]) >= 3


def test_a_model_of_the_standard_form_is_saved_and_loaded(tmp_path):
    description, variables = small_model(norm_ratio=NormRatio(form="standard", init=0.5))
    checkpoint.save_weights(tmp_path / "model", description, variables, {})
    assert checkpoint.load(tmp_path / "model", make_mesh())[0].norm_ratio == NormRatio(form="standard", init=0.5)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 16, 3), np.uint8)
    assert np.isfinite(Embedder.load(tmp_path / "model")(images)).all()


def test_an_option_that_the_sweep_does_not_use_is_refused(place):
    done = run("-m", "nrsrd_jax.analysis", "--checkpoint", place / "model", "--sweep", "--images", "x", status=2)
    assert "--sweep takes no --images" in done.stderr


@pytest.mark.parametrize("fields", [{"jpm": True}, {"cameras": ("1", "2"), "sie": True}])
def test_a_transreid_model_is_refused_before_anything_is_scored(monkeypatch, fields):
    description = Description("vit_small", 12, (256, 128), (0.5,) * 3, (0.5,) * 3, **fields)
    monkeypatch.setattr(checkpoint, "load", lambda *_: (description, {}))
    monkeypatch.setattr(sweep, "evaluate", pytest.fail)
    with pytest.raises(
        InputError, match=r"model\.sie cannot be shown; choose a checkpoint of a ViT without model\.jpm"
    ):
        sweep.sweep(Path("model"), read_options(get_config("baseline")), {})
