"""The models equal the official PyTorch ones in outputs, gradients, statistics and initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nrsrd_jax.errors import InputError
from nrsrd_jax.losses import TERMS
from nrsrd_jax.models import block, create_model, initialise, position
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.models.normalization import BatchNorm, InstanceBatchNorm, LayerNorm, normalize
from nrsrd_jax.schedule import make_optimizer
from nrsrd_jax.state import TrainState
from nrsrd_jax.step import make_objective, make_update
from nrsrd_jax.weights import torch_names

pytestmark = pytest.mark.slow

MODELS = [("vit", "vit_tiny"), ("ics", "vit_tiny_ics")]
WEIGHTS = dict.fromkeys(TERMS, 0.0) | {"id_real": 1.0, "triplet_real": 1.0}


def tiny(name, **options):
    # PyTorch draws other random numbers, so no path is dropped.
    return create_model(name, classes=17, drop_path=0.0, **options)


def images(golden):
    return jnp.asarray(golden("forward")["x"].transpose(0, 2, 3, 1))


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("prefix", "name"), MODELS)
def test_eval_outputs_equal_those_of_the_official_models(golden, official_weights, prefix, name):
    reference = golden("forward")
    out = jax.jit(tiny(name).apply)(official_weights(name), images(golden))
    (part,) = out["parts"]
    results = {"global_feat": part["features"], "bn_feat": part["neck"], "logits": part["logits"]["real"]}
    for theirs, ours in (results | {"global_feat": out["embedding"]}).items():
        np.testing.assert_allclose(ours, reference[f"{prefix}_eval_{theirs}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("prefix", "name"), MODELS)
def test_asking_for_maps_does_not_change_the_features(golden, official_weights, prefix, name):
    out = jax.jit(lambda v, x: tiny(name).apply(v, x, maps=True))(official_weights(name), images(golden)[:2])
    np.testing.assert_allclose(out["embedding"], golden("forward")[f"{prefix}_eval_global_feat"][:2], atol=2e-5)
    assert out["maps"]["attention"].shape == (2, 4, 3, 129, 129)
    np.testing.assert_allclose(out["maps"]["attention"].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(("prefix", "name", "exact"), [("vit", "vit_tiny", False), ("ics", "vit_tiny_ics", True)])
def test_a_training_step_equals_the_official_one(golden, official, prefix, name, exact):
    """Compare loss, every gradient, running statistics and new weights, from the official weights and batch.

    The kinks of the stem's ReLU amplify float32 rounding, so the model with the stem is compared in float64.
    """
    with jax.enable_x64(exact):
        check_train_step(golden("forward"), *official(name), prefix, name, "_f64" if exact else "")


def test_the_losses_of_twelve_training_steps_equal_those_of_pytorch(golden, official):
    """They depend on momentum, decay, the doubled rate of biases, running statistics and the frozen neck bias."""
    description, variables = official("vit_tiny")
    optimizer = make_optimizer("sgd", momentum=0.9, decay=1e-4)
    objective = make_objective(description.create_model(drop_path=0.0), WEIGHTS)
    update = jax.jit(make_update(objective, optimizer, lambda _: (0.01, 0.02)))
    state, losses = TrainState.create(variables, optimizer), []
    for step in range(12):
        # The losses of PyTorch are those of batches from these seeds (tests/golden/README.md).
        random = np.random.RandomState(1000 + step)
        images = random.randn(16, 3, 256, 128).astype(np.float32).transpose(0, 2, 3, 1)
        labels = np.repeat(random.permutation(17)[:4], 4)
        state, metrics = update(state, {"real": images}, {"real": labels}, 0, jax.random.key(0))
        losses.append(metrics["loss"])
    np.testing.assert_allclose(losses, golden("trajectory")["loss"], rtol=2e-5)


def check_train_step(reference, description, variables, prefix, name, suffix):
    slots = torch_names.slots(description)
    dtype = np.float64 if suffix else np.float32
    tight = 1e-6 if suffix else 1e-5
    objective = make_objective(tiny(name), WEIGHTS)
    # This optimiser keeps the gradients as its state, where the test can read them.
    kept = optax.GradientTransformation(lambda params: params, lambda grads, *_: (grads, grads))
    optimizer = optax.chain(kept, make_optimizer("sgd", momentum=0.9, decay=1e-4))
    rate, bias_rate = 3e-3, 7e-3
    update = make_update(objective, optimizer, lambda _: (rate, bias_rate))
    variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
    state = TrainState.create(variables, optimizer)
    inputs = {"real": jnp.asarray(reference["x"].transpose(0, 2, 3, 1), dtype)}
    labels = {"real": jnp.asarray(reference["labels"])}

    new, metrics = jax.jit(update)(state, inputs, labels, 0, jax.random.key(0))
    grads = flat(new.opt_state[0])

    np.testing.assert_allclose(metrics["loss"], reference[f"{prefix}_train_loss{suffix}"], rtol=tight)
    np.testing.assert_allclose(metrics["id_real"], reference[f"{prefix}_train_ce"], rtol=1e-5)
    np.testing.assert_allclose(metrics["triplet_real"], reference[f"{prefix}_train_triplet"], rtol=1e-5)
    old, moved, statistics = flat(variables["params"]), flat(new.params), flat(new.batch_stats)
    names, norms = reference[f"{prefix}_train_grad_names"], reference[f"{prefix}_train_grad_norms{suffix}"]
    paths = [path_of(slots[torch_name]) for torch_name in names.tolist()]
    for path, norm in zip(paths, norms, strict=True):
        np.testing.assert_allclose(np.linalg.norm(grads[path]), norm, rtol=tight, atol=2e-5, err_msg=path)
        step = bias_rate if "bias" in path else rate
        expected = old[path] - step * (grads[path] + 1e-4 * old[path])
        np.testing.assert_allclose(moved[path], expected, atol=1e-6, err_msg=path)
    # The bias of the neck is frozen.
    assert set(old) - set(paths) == {"bottleneck/bias"}
    np.testing.assert_array_equal(moved["bottleneck/bias"], old["bottleneck/bias"])

    for key in reference.files:
        kind, _, torch_name = key.partition("/")
        if kind == f"{prefix}_train_grad":
            path, theirs = path_of(slots[torch_name]), slots[torch_name].from_torch(reference[key])
            ours = grads[path][:, :5] if path == "base/pos_embed" else grads[path]
            # The official float32 gradients have errors of up to 5e-5, the largest in the stem.
            np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max() * bool(suffix) + 2e-5)
        if kind == f"{prefix}_train_buf":
            path = path_of(slots[torch_name])
            np.testing.assert_allclose(statistics[path], reference[key], atol=2e-5, rtol=1e-5)


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def path_of(slot):
    return "/".join(slot.path[1:])


def test_layer_norm_and_gelu_equal_pytorch(golden):
    g = golden("ops")
    np.testing.assert_allclose(jax.nn.gelu(g["gelu_x"], approximate=False), g["gelu_y"], atol=1e-6)
    weights = {"params": {"scale": g["block_w/norm1.weight"], "bias": g["block_w/norm1.bias"]}}
    np.testing.assert_allclose(LayerNorm().apply(weights, g["block_x"]), g["norm1_y"], atol=2e-5)


@pytest.mark.parametrize("axes", [(-1,), (1, 2), (0, 2, 3)])
@pytest.mark.parametrize("scale_of_x", [1.0, 0.0, 1e-6])
def test_the_gradients_of_normalize_equal_those_of_automatic_differentiation(axes, scale_of_x):
    def plain(x, scale, bias):
        mean = x.mean(axes, keepdims=True)
        var = jnp.square(x - mean).mean(axes, keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 3, 2, 4, 5, 6))
    arguments = scale_of_x * x + 3, *random.standard_normal((2, 6))
    with jax.enable_x64(True):
        ours, expected = (
            jax.jit(jax.grad(lambda *a, of=of: (of(*a) * weight).sum(), argnums=(0, 1, 2)))(*arguments)
            for of in (lambda *a: normalize(*a, axes, 1e-5)[0], plain)
        )
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_instance_batch_norm_equals_pytorch(golden):
    # A channel with a tiny variance shows a wrong epsilon, but in float32 it would also show rounding.
    with jax.enable_x64(True):
        check_instance_batch_norm(golden("ops"))


def check_instance_batch_norm(g):
    g = {name: g[name].astype(np.float64) for name in g.files if name.startswith("ibn")}
    variables = {
        "params": {n: {"scale": g[f"ibn_w/{n}.weight"], "bias": g[f"ibn_w/{n}.bias"]} for n in ("IN", "BN")},
        "batch_stats": {"BN": {"mean": g["ibn_w/BN.running_mean"], "var": g["ibn_w/BN.running_var"]}},
    }
    x = jnp.asarray(g["ibn_x"].transpose(0, 2, 3, 1))
    model = InstanceBatchNorm()
    channels_first = lambda y: y.transpose(0, 3, 1, 2)  # noqa: E731
    np.testing.assert_allclose(channels_first(model.apply(variables, x, False)), g["ibn_eval_y"], atol=3e-5)
    y, updates = model.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(channels_first(y), g["ibn_train_y"], atol=3e-5)
    np.testing.assert_allclose(updates["batch_stats"]["BN"]["mean"], g["ibn_train_running_mean"], atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["BN"]["var"], g["ibn_train_running_var"], rtol=1e-5)
    cotangent = jnp.asarray(g["ibn_cotangent"].transpose(0, 2, 3, 1))
    _, pullback = jax.vjp(lambda x: model.apply(variables, x, True, mutable=["batch_stats"])[0], x)
    np.testing.assert_allclose(
        channels_first(pullback(cotangent)[0]), g["ibn_train_dx"], atol=1e-5 * np.abs(g["ibn_train_dx"]).max()
    )


def test_batch_norm_updates_the_running_variance_with_the_unbiased_one(golden):
    g = golden("ops")
    model = BatchNorm()
    variables = model.init(jax.random.key(0), g["bn1d_x"], False)
    y, updates = model.apply(variables, g["bn1d_x"], True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, g["bn1d_train_y"], atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], g["bn1d_running_mean"], atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], g["bn1d_running_var"], rtol=1e-6)


def test_the_rates_of_stochastic_depth_equal_the_official_ones(golden, monkeypatch):
    # Each block drops two branches, except the first one, whose rate is 0.
    used = []
    monkeypatch.setattr(block, "drop_path", lambda key, x, samples, rate: used.append(rate) or x)
    model = create_model("vit_tiny", depth=12, drop_path=0.1)
    keys = {name: jax.random.key(0) for name in ("params", "drop_path")}
    jax.eval_shape(lambda images: model.init(keys, images, train=True), jnp.zeros((2, 32, 32, 3)))
    rates = golden("ops")["droppath_rates_depth12_0.1"]
    np.testing.assert_allclose(used, np.repeat(rates[1:], 2), atol=1e-9)
    assert rates[0] == 0


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    y = block.drop_path(jax.random.key(0), jnp.ones((8000, 3)), 4000, 0.4).reshape(4000, 2, 3)
    kept = np.asarray(y[:, 0, 0] != 0)
    np.testing.assert_array_equal(y, np.broadcast_to(kept[:, None, None] / np.float32(0.6), y.shape))
    assert abs(kept.mean() - 0.6) < 0.03


@pytest.mark.parametrize("sizes", ["16x8_to_24x8", "14x14_to_16x8", "16x8_to_8x4"])
def test_position_embedding_is_resized_as_by_the_official_loader(golden, sizes):
    g = golden("forward")
    source, target = (tuple(map(int, size.split("x"))) for size in sizes.split("_to_"))
    resized = position.resize_position_embedding(g[f"resize_{sizes}_src"], source, target)
    np.testing.assert_allclose(resized, g[f"resize_{sizes}_out"], atol=1e-5)


def count(name, classes=0, **options):
    shapes = jax.eval_shape(
        lambda k: initialise(create_model(name, classes=classes, **options), k, (256, 128)), jax.random.key(0)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


# Without heads, timm's vit_small_patch16_224 and vit_base_patch16_224 have 21,665,664 and 85,798,656 parameters and a
# position embedding of 197 tokens. The models here have 129 tokens, and their neck adds a scale and a bias.
PARAMETERS = {
    "vit_small": 21_665_664 - (197 - 129) * 384 + 2 * 384,
    "vit_base": 85_798_656 - (197 - 129) * 768 + 2 * 768,
}
# The stem has a 7×7 convolution from 3 to 64 channels, two 3×3 convolutions from 64 to 64 channels, and three norms.
# Its patches are projected from 8×8 pixels of 64 channels instead of 16×16 pixels of 3, as the test counts.
STEM = 64 * 3 * 49 + 2 * 64 * 64 * 9 + 3 * 2 * 64


@pytest.mark.parametrize("name", ["vit_small", "vit_base"])
def test_parameter_counts_equal_those_of_the_official_models(name):
    width = {"vit_small": 384, "vit_base": 768}[name]
    assert count(name) == PARAMETERS[name]
    assert count(f"{name}_ics") == PARAMETERS[name] + STEM + width * (64 * 64 - 3 * 256)
    assert count(name, classes=300) == PARAMETERS[name] + 300 * width
    # NRA adds one parameter, λ.
    assert count(name, norm_ratio=NormRatio()) == PARAMETERS[name] + 1


def test_initial_weights_have_the_official_spread():
    model = create_model("vit_tiny_ics", classes=200, depth=2)
    params = jax.jit(lambda key: initialise(model, key, (256, 128)))(jax.random.key(0))["params"]
    base = params["base"]
    assert abs(float(base["blocks_1"]["mlp"]["fc1"]["kernel"].std()) - 0.02) < 1e-3
    assert abs(float(params["classifier"]["kernel"].std()) - 1e-3) < 1e-4
    bound = (64 * 9) ** -0.5
    kernel = np.asarray(base["patch_embed"]["conv_3"]["kernel"])
    assert np.abs(kernel).max() <= bound
    assert abs(kernel.std() - bound / 3**0.5) < 0.02 * bound
    assert float(base["patch_embed"]["proj"]["bias"].std()) > 0
    assert not base["blocks_0"]["attn"]["qkv"]["bias"].any()


def test_only_the_tiny_backbones_have_an_option_for_depth():
    assert create_model("vit_tiny", depth=7).base.depth == 7
    with pytest.raises(InputError, match="the option works with: vit_tiny, vit_tiny_ics"):
        create_model("vit_small", depth=7)
    with pytest.raises(InputError, match="choose one of vit_tiny"):
        create_model("resnet50")


def test_bfloat16_features_are_close_and_the_weights_stay_float32(golden, official_weights):
    model = tiny("vit_tiny", dtype=jnp.bfloat16)
    out = jax.jit(model.apply)(official_weights("vit_tiny"), images(golden))
    reference = golden("forward")["vit_eval_global_feat"]
    assert out["embedding"].dtype == jnp.float32
    assert np.abs(out["embedding"] - reference).max() < 0.05 * np.abs(reference).max()
    shapes = jax.eval_shape(lambda key: initialise(model, key, (32, 32)), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
