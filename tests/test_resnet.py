"""Test that IDE, PCB, BoT and AGW equal the official PyTorch code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from tensors import at, close, nhwc, official_variables, random_variables

from nrsrd_jax import build
from nrsrd_jax.checkpoint import initialise_backbone, save_weights
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.losses import TERMS, center_loss, id_loss, triplet_loss, weighted_triplet_loss
from nrsrd_jax.models import MODELS
from nrsrd_jax.models.resnet import NonLocal, generalized_mean, strips
from nrsrd_jax.options import read_options
from nrsrd_jax.recipes import RECIPES
from nrsrd_jax.schedule import learning_rate, make_optimizer, scale_updates
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.state import TrainState
from nrsrd_jax.step import make_objective, make_update
from nrsrd_jax.weights import from_torch, to_torch, torch_file, torch_names

pytestmark = pytest.mark.slow

# PyTorch draws other random numbers, so the comparisons need networks without dropout.
NARROW = {"channels": 8, "width": 256, "blocks": (1, 2, 3, 1), "reduced": 32, "dropout": 0.0}
STATISTICS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
WEIGHTS = dict.fromkeys(TERMS, 0.0)
# For each golden file: the backbone and the weights of its losses.
METHODS = {
    "bot": ("bot_resnet50", {"id_real": 1.0, "triplet_real": 1.0, "center_real": 0.0005}),
    "agw": ("agw_resnet50", {"id_real": 1.0, "weighted_real": 1.0, "center_real": 0.0005}),
    "pcb": ("pcb_resnet50", {"id_real": 1.0}),
    "ide_stride2": ("ide_resnet50", {"id_real": 1.0}),
}
OPTIONS = {"margin": 0.3, "label_smoothing": 0.1, "weighted_form": "official"}


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """Make the ResNets as narrow and shallow as the golden networks, which have an eighth of the real width."""
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in MODELS.items():
            if "resnet50" in name:
                places = (0, 1, 2, 0) if name.startswith("agw") else (0, 0, 0, 0)
                patch.setitem(MODELS, name, dataclasses.replace(spec, **NARROW, nonlocal_blocks=places))
        yield


@pytest.fixture(scope="module")
def reference():
    files = {}

    def load(name):
        if name not in files:
            with np.load(GOLDEN / f"{name}.npz") as file:
                files[name] = dict(file)
        return files[name]

    return load


def images(file):
    return nhwc(file["images"])


def model_of(file, backbone):
    """Return the description of a golden network, its variables, and the slots by the official names."""
    size = file["images"].shape[2:]
    description = Description(backbone, 0, size, *STATISTICS, classes=9)
    slots = torch_names.slots(description)
    return description, official_variables(description, slots, functools.partial(weight_of, file)), slots


def weight_of(file, name):
    # The centres have no prefix.
    names = (f"w/{name}", f"w/{name.replace('base.', 'model.')}", name)
    return next(file[each] for each in names if each in file)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("method", METHODS)
def test_the_test_feature_equals_the_official_one(reference, method):
    file = reference(method)
    description, variables, _ = model_of(file, METHODS[method][0])
    out = jax.jit(description.create_model().apply)(variables, images(file))
    if method == "bot":
        close(out["embedding"], file["eval_after"])
        close(out["parts"][0]["features"], file["eval_before"])
    elif method == "agw":
        close(out["embedding"], file["eval_feature"])
        close(out["parts"][0]["features"], file["eval_pooled"])
    elif method == "pcb":
        close(out["embedding"], file["eval_feature"].reshape(len(file["labels"]), -1))
        for part in range(6):
            close(out["parts"][part]["logits"]["real"], file[f"eval_score_{part}"])
    else:
        close(out["embedding"], file["eval_one"])
        both = (
            out["embedding"]
            + jax.jit(description.create_model().apply)(variables, images(file)[:, :, ::-1])["embedding"]
        )
        close(both / jnp.linalg.norm(both, axis=1, keepdims=True), file["eval_feature"])
    assert out["embedding"].shape[1] == description.spec.embedding_width


@pytest.mark.parametrize("method", METHODS)
def test_an_official_file_is_imported_and_exported_without_change(reference, method, tmp_path):
    file, backbone = reference(method), METHODS[method][0]
    tensors = {name.removeprefix("w/"): value for name, value in file.items() if name.startswith("w/")}
    torch_file.save(tmp_path / "in.pth", tensors)
    description, variables, kept, report = from_torch.convert(tmp_path / "in.pth")
    assert not report.faults
    assert (description.backbone, description.classes) == (backbone, 9)
    _, expected, _ = model_of(file, backbone)
    for domain in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, variables[domain]["base"], expected[domain]["base"])
    save_weights(tmp_path / "jax", description, variables, kept)
    exported, _ = to_torch.export(tmp_path / "jax")
    assert exported.keys() == tensors.keys()
    assert all(exported[name].tobytes() == value.tobytes() for name, value in tensors.items())


@pytest.mark.parametrize("backbone", ["bot_resnet_tiny", "agw_resnet_tiny", "ide_resnet_tiny", "pcb_resnet_tiny"])
def test_an_exported_backbone_is_imported_again_without_change(tmp_path, backbone):
    description = Description(backbone, 0, (96, 48), *STATISTICS, classes=3)
    variables = random_variables(description, 0)
    save_weights(tmp_path / "jax", description, variables, {})
    tensors, headless = to_torch.export(tmp_path / "jax", backbone=True)
    to_torch.write(tmp_path / "out.pth", tensors, headless, backbone=True)
    again, back, _, report = from_torch.convert(tmp_path / "out.pth")
    assert not report.faults
    assert (again.backbone, again.classes, again.mean) == (backbone, 0, STATISTICS[0])
    for domain in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, back[domain]["base"], variables[domain]["base"])
    # The counters of the backbone's norms are there, those of the necks are not.
    norms = [name for name in tensors if name.endswith("running_mean")]
    assert len([name for name in tensors if name.endswith("num_batches_tracked")]) == len(norms)
    with pytest.raises(InputError, match=f"but the file names its backbone, {backbone}: leave --backbone out"):
        from_torch.convert(tmp_path / "out.pth", backbone="ide_resnet50")
    with pytest.raises(InputError, match="--source_size is for the position embedding of a ViT"):
        from_torch.convert(tmp_path / "out.pth", source_size=(96, 48))


def test_a_file_with_centres_is_imported_but_they_are_not_exported(tmp_path):
    description = Description("bot_resnet_tiny", 0, (96, 48), *STATISTICS, classes=3)
    save_weights(tmp_path / "jax", description, random_variables(description, 0), {})
    tensors, _ = to_torch.export(tmp_path / "jax")
    assert "centers" not in tensors
    for added in ({}, {"centers": np.ones((3, 512), np.float32)}):
        torch_file.save(tmp_path / "in.pth", tensors | added)
        _, variables, _, report = from_torch.convert(tmp_path / "in.pth")
        assert not report.faults
        # Centres that the file lacks start at 0.
        assert np.all(variables["params"]["centers"] == len(added))


def test_any_method_can_start_from_imagenet_weights(reference, tmp_path):
    names = ("conv1", "bn1", "layer")
    tensors = {
        name.removeprefix("w/model."): value
        for name, value in reference("ide_stride2").items()
        if name.removeprefix("w/model.").startswith(names) and name.startswith("w/")
    }
    torch_file.save(tmp_path / "in.pth", tensors | {"fc.weight": np.zeros((1000, 256), np.float32)})
    description, variables, _, report = from_torch.convert(tmp_path / "in.pth")
    assert not report.faults
    assert description.classes == 0
    for name in ("bot_resnet50", "agw_resnet50", "pcb_resnet50", "ide_resnet50_stride1"):
        own = Description(name, 0, (96, 48), *STATISTICS, classes=4)
        assert own.spec == description.spec
        fresh = random_variables(own, 0)
        started, _ = initialise_backbone(fresh, own, description, variables)
        assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, fresh)
        given = variables["params"]["base"]["layer3_1"]["conv2"]["kernel"]
        np.testing.assert_array_equal(started["params"]["base"]["layer3_1"]["conv2"]["kernel"], given)
        mean = variables["batch_stats"]["base"]["bn1"]["mean"]
        np.testing.assert_array_equal(started["batch_stats"]["base"]["bn1"]["mean"], mean)
    with pytest.raises(InputError, match="for a ResNet choose one of bot_resnet50"):
        from_torch.convert(tmp_path / "in.pth", backbone="vit_small")
    assert from_torch.convert(tmp_path / "in.pth", backbone="ide_resnet50")[0].backbone == "ide_resnet50"


@pytest.mark.parametrize("method", METHODS)
def test_losses_gradients_and_statistics_of_a_step_equal_the_official_ones(reference, method):
    file = reference(method)
    backbone, weights = METHODS[method]
    description, variables, slots = model_of(file, backbone)
    options = OPTIONS if method in ("bot", "agw") else {}
    objective = make_objective(description.create_model(), WEIGHTS | weights, loss_options=options)
    batch = {"real": images(file)}, {"real": file["labels"]}
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, (statistics, terms)), gradients = step(
        variables["params"], variables["batch_stats"], *batch, jax.random.key(0), None
    )
    prefix = "step1/" if method == "bot" else ""
    close(loss, file["losses"].sum() if method == "pcb" else file[f"{prefix}loss"])
    named = {"triplet_real": "triplet", "weighted_real": "wrt", "center_real": "center", "id_real": "id"}
    for ours, theirs in named.items():
        if f"{prefix}loss_{theirs}" in file:
            close(terms[ours], file[f"{prefix}loss_{theirs}"])
    norms = dict(zip(file[f"{prefix}grad_names"], file[f"{prefix}grad_norms"], strict=True))
    scale = max(norms.values())
    compared = 0
    for theirs, norm in norms.items():
        name = theirs.replace("model.", "base.")
        if name not in slots:
            assert not norm, f"{name} should have no gradient"
            continue
        ours = slots[name].to_torch(np.asarray(at(gradients, slots[name].path[1:])))
        np.testing.assert_allclose(np.linalg.norm(ours), norm, rtol=1e-4, atol=1e-5 * scale, err_msg=name)
        if f"{prefix}grad/{theirs}" in file:
            close(ours, file[f"{prefix}grad/{theirs}"])
            compared += 1
    assert compared == sum(name.startswith(f"{prefix}grad/") for name in file) > 0
    for name, value in file.items():
        found = name.removeprefix("after_step1/").removeprefix("after_train/").replace("model.", "base.")
        if name.startswith(("after_step1/", "after_train/")):
            close(at(statistics, slots[found].path[1:]), value)


def test_two_steps_of_bot_with_adam_and_sgd_for_centres_equal_the_official_ones(reference):
    file = reference("bot")
    description, variables, slots = model_of(file, "bot_resnet50")
    # The official code moves the centres at a rate of 0.5, and divides their gradients by the weight of the centre
    # loss.
    optimizer = make_optimizer("adam", momentum=0.9, decay=5e-4, centers=0.5 / 0.0005)
    objective = make_objective(description.create_model(), WEIGHTS | METHODS["bot"][1], loss_options=OPTIONS)
    update = jax.jit(make_update(objective, optimizer, lambda _: (3.5e-4, 3.5e-4)))
    state = TrainState.create(variables, optimizer)
    for step in (1, 2):
        state, metrics = update(state, {"real": images(file)}, {"real": file["labels"]}, 0, jax.random.key(0))
        close(metrics["loss"], file[f"step{step}/loss"])
    for name, slot in slots.items():
        if f"after_step2/{name}" in file:
            close(slot.to_torch(np.asarray(at(state.params, slot.path[1:]))), file[f"after_step2/{name}"])


def test_without_a_centre_loss_centres_stay_as_they_are():
    config = RECIPES["bot"].config()
    config.loss.center_real = 0.0
    optimizer = build.make_optimizer(read_options(config))
    params = {"centers": jnp.ones((3, 4)), "classifier": jnp.ones(2)}
    directions, _ = optimizer.update(params, optimizer.init(params), params)
    moved = scale_updates(directions, jnp.float32(0.1), jnp.float32(0.1))
    assert not moved["centers"].any()
    assert moved["classifier"].all()


def test_the_learning_rates_of_bot_and_agw_equal_the_official_ones(reference):
    choice = {"base": 3.5e-4, "group_factor": 1.0, "epochs": 120, "warmup_epochs": 10, "warmup_factor": 0.01}
    with jax.enable_x64(True):
        rates = [learning_rate(t, **choice, final_factor=0.0, milestones=(40, 70)) for t in range(1, 121)]
    np.testing.assert_allclose(rates, reference("losses_rivals")["schedule_bot_agw_f64"], rtol=1e-6)


@pytest.mark.parametrize("scale", ["0.1", "1", "2", "4"])
def test_losses_equal_the_official_ones_at_every_scale_of_the_features(reference, scale):
    file = reference("losses_rivals")
    features, labels = jnp.asarray(file["feats"] * np.float32(scale)), file["labels"]
    for name, loss in (
        ("wrt", lambda f: weighted_triplet_loss(f, labels, form="official")),
        ("triplet_m0.3", lambda f: triplet_loss(f, labels, margin=0.3)),
    ):
        value, gradient = jax.value_and_grad(loss)(features)
        close(value, file[f"{name}_x{scale}/loss"])
        close(gradient, file[f"{name}_x{scale}/grad"])


def test_centre_loss_and_smoothed_identity_loss_equal_the_official_ones(reference):
    file = reference("losses_rivals")
    value, (features, centers) = jax.value_and_grad(center_loss, (0, 2))(file["feats"], file["labels"], file["centers"])
    close(value, file["center/loss"])
    close(features, file["center/grad_feats"])
    close(centers, file["center/grad_centers"])
    value, gradient = jax.value_and_grad(lambda x: id_loss(x, file["labels"], label_smoothing=0.1))(file["logits"])
    close(value, file["label_smooth/loss"])
    close(gradient, file["label_smooth/grad"])


def test_exact_triplet_weights_do_not_vanish_if_features_are_far_apart():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(12, 64)) * 10, jnp.float32)
    labels = jnp.repeat(jnp.arange(3), 4)
    exact, official = (weighted_triplet_loss(features, labels, form=form) for form in ("exact", "official"))
    assert official > 50 > 20 > exact > 0


def test_pooling_equals_the_official_one_and_non_local_blocks_start_as_the_identity(reference):
    file = reference("agw")
    for power in ("1", "3", "6.5"):
        x, p = jnp.asarray(file["gem/x"].transpose(0, 2, 3, 1)), jnp.asarray([float(power)])
        close(generalized_mean(x, p), file[f"gem/y_p{power}"])
    block = NonLocal(1)
    x = jnp.asarray(file["nonlocal/x"].transpose(0, 2, 3, 1))
    assert not np.any(block.init_with_output(jax.random.key(0), x, False, 1)[0] - x)
    for height in (6, 8, 13, 16, 24):
        pooled = strips(jnp.asarray(reference("pcb")[f"pool/x_{height}"].transpose(0, 2, 3, 1)))
        close(pooled.swapaxes(1, 2), reference("pcb")[f"pool/y_{height}"], 1e-6)


def test_a_new_non_local_block_changes_nothing_but_can_learn(reference):
    block, x = NonLocal(4), jnp.asarray(reference("agw")["nonlocal/x"].transpose(0, 2, 3, 1))
    variables = block.init(jax.random.key(0), x, False, 1)

    def output(params):
        return block.apply({**variables, "params": params}, x, True, 1, mutable=["batch_stats"])[0]

    assert not np.any(output(variables["params"]) - x)
    gradient = jax.grad(lambda params: jnp.square(output(params)).sum())(variables["params"])
    assert np.any(gradient["W_1"]["scale"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train.instances": 1}, r"loss\.triplet_real compares images of one identity, but train\.instances is 1"),
        ({"train.instances": 0}, r"loss\.triplet_real compares images of one identity, but train\.instances is 0"),
        ({"loss.margin": -1.0}, r"loss\.margin is -1\.0; it must not be negative"),
        ({"loss.weighted_form": "official"}, r"loss\.weighted_form=official has no effect without loss\.weighted_real"),
        ({"model.drop_path": 0.5}, r"model\.drop_path=0\.5: bot_resnet50 has no stochastic depth"),
    ],
)
def test_options_that_make_no_sense_for_bot_are_refused(options, message):
    config = RECIPES["bot"].config()
    build.check_model(read_options(config))
    config.update_from_flattened_dict(options)
    with pytest.raises(InputError, match=message):
        build.check_model(read_options(config))


def test_a_resnet_that_cannot_start_from_a_vit_does_not_mention_its_blocks(model):
    config = RECIPES["bot"].config()
    config.init.checkpoint = str(model)
    words = r"is a vit_tiny of 1 block, but the model is a bot_resnet50: set model\.backbone and model\.depth to match"
    with pytest.raises(InputError, match=words):
        build.load_initial_backbone(read_options(config), make_mesh())
