"""Test the operations of a compiled train step and what its devices send each other. Nothing is timed."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_step import VITS, Case, gmac

from nrsrd_jax.compiled import keep_compiled
from nrsrd_jax.losses import TERMS
from nrsrd_jax.models import MODELS, create_model, initialise
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.step import make_objective

pytestmark = pytest.mark.slow

SIZE = (256, 128)


def lowered(case):
    """Lower the whole train step without allocating its state."""
    state = jax.eval_shape(case.create)
    return jax.jit(case.step, donate_argnums=0).lower(state, case.data | {"epoch": np.int32(0)}, case.teacher_variables)


def flops(case):
    return lowered(case).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("vit_small", 2.93), ("vit_small_ics", 3.77), ("vit_base", 11.3), ("vit_base_ics", 12.35)],
)
def test_the_formula_for_operations_gives_the_known_numbers(backbone, expected):
    assert gmac(backbone, SIZE, all_tokens=True) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    ("backbone", "variant", "consistency"),
    [
        ("vit_base_ics", "baseline", 0.0),
        ("vit_small", "baseline", 0.0),
        ("vit_tiny_ics", "nrsrd", 0.0),
        ("vit_tiny_ics", "nrsrd", 1.0),
        ("vit_tiny", "mdl", 1.0),
    ],
)
def test_a_step_has_the_operations_of_its_matrix_products(monkeypatch, backbone, variant, consistency):
    """Count the student's forward and backward pass and the forward pass of the teacher, and of the bright images.

    Other operations may add 3 %.
    """
    # Inner blocks are alike, so three blocks are enough.
    monkeypatch.setitem(MODELS, backbone, dataclasses.replace(MODELS[backbone], depth=3))
    monkeypatch.setitem(VITS, backbone, MODELS[backbone])
    case = Case(backbone, variant, "float32", 8, SIZE, consistency=consistency)
    prepared = jax.jit(lambda key, data: case.prepare(key, data, case.teacher)).lower(jax.random.key(0), case.data)
    assert flops(case) - prepared.cost_analysis()["flops"] == pytest.approx(1e9 * case.gflop, rel=0.03)


def test_norm_ratio_attention_adds_less_than_one_per_cent():
    plain, nra = (flops(Case("vit_tiny", variant, "float32", 8, SIZE)) for variant in ("baseline", "nra"))
    assert plain < nra < 1.01 * plain


def test_remat_computes_the_blocks_again():
    kept, again = (flops(Case("vit_tiny", "baseline", "float32", 8, SIZE, remat=remat)) for remat in (False, True))
    assert 1.2 * kept < again < 1.4 * kept


COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def test_devices_exchange_only_gradients_sums_and_features(monkeypatch):
    """Check too that no image leaves its device, and that nothing goes through the host."""
    # Every block exchanges the same, so one block is enough.
    for name in ("vit_tiny", "vit_tiny_ics"):
        monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], depth=1))
    size, batch = (32, 16), 16
    case = Case("vit_tiny_ics", "nrsrd", "float32", batch, size)
    program = lowered(case).compile().as_text()
    assert not re.search(r"infeed|outfeed|callback|\b(send|recv)\(", program)
    sent = {}
    for shapes, kind in COLLECTIVE.findall(program):
        sizes = [
            int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\w\d+\[([\d,]*)\]", shapes)
        ]
        sent[kind] = sent.get(kind, 0) + sum(sizes)
    width = MODELS["vit_tiny_ics"].width
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(case.create).params))
    # BatchNorm sums over each channel in the forward and the backward pass.
    sums = 6 * case.domains * (2 * 32 + 64 + width)
    assert set(sent) <= {"all-reduce", "all-gather"}
    # The triplet loss needs all features, their squares and labels.
    assert sent["all-gather"] <= case.domains * batch * (width + 2)
    assert parameters - width <= sent["all-reduce"] <= parameters + sums + case.domains * batch * (width + 1)


def test_remat_gives_the_same_gradients():
    batch = {"real": jnp.ones((4, 32, 16, 3)) * jnp.arange(4)[:, None, None, None]}, {"real": jnp.array([0, 0, 1, 1])}
    gradients = []
    for remat in (False, True):
        model = create_model("vit_tiny", classes=2, depth=2, norm_ratio=NormRatio(), remat=remat)
        variables = jax.jit(lambda key, model=model: initialise(model, key, (32, 16)))(jax.random.key(0))
        objective = make_objective(model, dict.fromkeys(TERMS, 0.0) | {"id_real": 1.0, "triplet_real": 1.0})
        gradient = jax.jit(jax.grad(objective, has_aux=True))
        gradients.append(gradient(variables["params"], variables["batch_stats"], *batch, jax.random.key(1), None)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6), *gradients)


def test_only_programs_for_an_accelerator_are_cached_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "nrsrd_jax" / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
