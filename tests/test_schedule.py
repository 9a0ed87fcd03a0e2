"""Test that learning rates and updates equal the official ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nrsrd_jax.options import Optim, Options
from nrsrd_jax.schedule import learning_rate, make_optimizer, scale_updates


@pytest.mark.parametrize(("group", "factor"), [("weight", 1.0), ("bias", 2.0)])
def test_the_learning_rates_of_all_120_epochs_equal_the_official_ones(golden, group, factor):
    g = golden("schedule")
    usual = Options()
    assert usual.optim.bias_factor == 2.0
    rates = learning_rate(
        np.asarray(g["epoch"]) - 1,
        base=usual.optim.lr,
        group_factor=factor,
        epochs=usual.train.epochs,
        warmup_epochs=usual.optim.warmup_epochs,
        warmup_factor=usual.optim.warmup_factor,
        final_factor=usual.optim.final_factor,
    )
    np.testing.assert_allclose(rates, g[f"used_lr_{group}"], rtol=2e-6, atol=2e-10)


def test_every_parameter_has_the_official_learning_rate_and_weight_decay(golden):
    g = golden("schedule")
    params = {str(name): jnp.ones(()) for name in g["group_names"]}
    usual = Optim()
    optimizer = make_optimizer(usual.name, momentum=usual.momentum, decay=usual.weight_decay)
    # Without gradients only the weight decay moves a parameter.
    directions, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = scale_updates(directions, jnp.array(4e-4), jnp.array(8e-4))
    for name, rate, decay in zip(g["group_names"], g["group_base_lr"], g["group_weight_decay"], strict=True):
        np.testing.assert_allclose(moved[str(name)], -rate * decay, rtol=1e-6)


def test_two_steps_of_sgd_equal_those_worked_out_by_hand():
    """Use PyTorch's form: v = .9 v + (g + decay·p), p −= rate·v."""
    params = {"kernel": jnp.array(2.0), "bias": jnp.array(3.0), "norm_ratio": jnp.array(1.0)}
    grads = {"kernel": jnp.array(0.5), "bias": jnp.array(-1.0), "norm_ratio": jnp.array(0.2)}
    optimizer = make_optimizer("sgd", momentum=0.9, decay=0.1)
    state = optimizer.init(params)
    expected = {name: (float(params[name]), 0.0) for name in params}
    for _ in range(2):
        directions, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, scale_updates(directions, jnp.array(0.01), jnp.array(0.02)))
        for name, (p, v) in expected.items():
            # Weight decay would pull λ to 0, where NRA has no effect.
            decay = 0.0 if name == "norm_ratio" else 0.1
            v = 0.9 * v + float(grads[name]) + decay * p
            expected[name] = (p - (0.02 if name == "bias" else 0.01) * v, v)
    for name, (p, _) in expected.items():
        np.testing.assert_allclose(params[name], p, rtol=1e-6)


def test_adamw_adds_weight_decay_after_scaling_the_gradient():
    params = {"kernel": jnp.array(2.0)}
    optimizer = make_optimizer("adamw", momentum=0.9, decay=0.1)
    directions, _ = optimizer.update({"kernel": jnp.array(5.0)}, optimizer.init(params), params)
    # The first direction of Adam is 1, whatever the size of the gradient.
    np.testing.assert_allclose(directions["kernel"], 1 + 0.1 * 2, rtol=1e-5)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="'rmsprop'; choose one of sgd, adam, adamw"):
        make_optimizer("rmsprop", momentum=0.9, decay=0.1)
