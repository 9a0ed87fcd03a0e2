"""IDF equals the official PyTorch code: enhancement network, losses, a training step and the feature for tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from people import small_config, write_night
from tensors import at, close, nhwc, official_variables

from nrsrd_jax.build import make_description
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.losses import TERMS, compute_terms, total_loss
from nrsrd_jax.models import MODELS, find_spec
from nrsrd_jax.models.enhance import EnhanceNet, colour, enhancement_loss, exposure, spatial, variation
from nrsrd_jax.training import check_run
from nrsrd_jax.weights import from_torch, to_torch, torch_file, torch_names

pytestmark = pytest.mark.slow

# PyTorch draws other random numbers, so the comparisons need networks without dropout.
NARROW = {"channels": 8, "width": 256, "blocks": (1, 2, 3, 1), "reduced": 32, "dropout": 0.0}
WEIGHTS = dict.fromkeys(TERMS, 0.0) | {"id_real": 1.0, "enhance": 1.0, "decode": 0.1, "agree": 0.1}


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """Make the networks as narrow and as shallow as those of tests/golden."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("idf_resnet50", "idf_resnet50_over255", "ide_resnet50"):
            patch.setitem(MODELS, name, dataclasses.replace(MODELS[name], **NARROW))
        yield


@pytest.fixture(scope="module")
def reference():
    with np.load(GOLDEN / "idf.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def official(reference):
    """Return the description of the golden network, its variables, and the slots by their official names."""
    size = reference["images"].shape[2:]
    description = Description("idf_resnet50", 0, size, (0.0,) * 3, (1.0,) * 3, classes=9)
    slots = torch_names.slots(description)
    return description, official_variables(description, slots, lambda name: reference[f"w/{name}"]), slots


def enhancing(reference):
    """Return the parameters of the full-width enhancement network."""
    params = {}
    for name, value in reference.items():
        if name.startswith("dce/w/"):
            layer, leaf = name.removeprefix("dce/w/").split(".")
            kernel = leaf == "weight"
            params.setdefault(layer, {})["kernel" if kernel else leaf] = (
                value.transpose(2, 3, 1, 0) if kernel else value
            )
    return params


@pytest.mark.parametrize(("name", "divisor"), [("unit", 1), ("over255", 255)])
def test_enhanced_images_and_curves_equal_the_official_ones(reference, name, divisor):
    images = nhwc(reference["dce/x"]) / divisor
    enhanced, curves = jax.jit(EnhanceNet().apply)({"params": enhancing(reference)}, images)
    close(enhanced, nhwc(reference[f"dce/{name}/enhanced"]))
    close(curves, nhwc(reference[f"dce/{name}/curves"]))


def test_enhancement_losses_and_their_gradients_equal_the_official_ones(reference):
    images, params = nhwc(reference["dce/x"]), enhancing(reference)

    def loss(params):
        enhanced, curves = EnhanceNet().apply({"params": params}, images)
        return enhancement_loss(enhanced, images, curves), (enhanced, curves)

    (value, (enhanced, curves)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close(value, reference["dce/loss"])
    close(200 * variation(curves), reference["dce/loss_tv"])
    close(10 * exposure(enhanced), reference["dce/loss_exp"])
    close(spatial(enhanced, images), reference["dce/loss_spa"])
    close(5 * colour(enhanced), reference["dce/loss_col"])
    for name, norm in zip(reference["dce/grad_names"], reference["dce/grad_norms"], strict=True):
        layer, leaf = name.split(".")
        ours = gradients[layer]["kernel" if leaf == "weight" else leaf]
        close(jnp.linalg.norm(ours.ravel()), norm)
        if f"dce/grad/{name}" in reference:
            theirs = reference[f"dce/grad/{name}"]
            close(ours, theirs.transpose(2, 3, 1, 0) if leaf == "weight" else theirs)


def test_the_colour_loss_of_grey_images_has_a_gradient_of_zero():
    grey = jnp.full((2, 16, 16, 3), 0.5)
    value, gradient = jax.jit(jax.value_and_grad(colour))(grey)
    assert value < 1e-12
    assert not np.any(gradient)
    # The official loader gives pixels in 0..1/255, whose colour loss is still far above the limit of `colour`.
    reddish = grey[:1].at[..., 0].add(0.05) / 255
    np.testing.assert_allclose(colour(reddish), np.sqrt(2) * (0.05 / 255) ** 2, rtol=1e-4)


@pytest.fixture(scope="module")
def trained(reference, official):
    """Return (the model's parts, the terms of the loss, the loss, its gradients) of a training step on two domains.

    The rows of the domains alternate. The golden images are the first domain, "real", to which IDF's losses belong.
    """
    description, variables, _ = official
    model, images = description.create_model(), nhwc(reference["images"])
    rows = jnp.stack([images, 1 - images], axis=1).reshape(-1, *images.shape[1:])
    wanted = [name for name, weight in WEIGHTS.items() if weight]

    @jax.jit
    def step(params):
        def objective(params):
            out, _ = model.apply(variables | {"params": params}, rows, train=True, domains=2, mutable=["batch_stats"])
            labels = {"real": reference["labels"]}
            terms = compute_terms(out["parts"], labels, ["real", "aux"], None, {}, wanted)
            return total_loss(terms, WEIGHTS), (out["parts"], terms)

        (loss, (parts, terms)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        return parts, terms, loss, gradients

    return step(variables["params"])


def test_outputs_and_losses_of_a_training_step_equal_the_official_ones(reference, official, trained):
    parts, terms, loss, _ = trained
    for part, letter in zip(parts, "evf", strict=True):
        close(part["logits"]["real"][::2], reference[f"train_x_{letter}"])
    close(terms["id_real"], sum(reference[f"loss_{part}"] for part in "vef"))
    close(terms["enhance"], reference["loss_dce"])
    close(terms["decode"], reference["loss_mse"])
    close(terms["agree"], reference["loss_kl"])
    close(loss, reference["loss"])
    params = {"params": official[1]["params"]["base"]["E_Net"]}
    enhanced, _ = jax.jit(EnhanceNet().apply)(params, nhwc(reference["images"][:2]))
    close(enhanced, nhwc(reference["train_en_img"]))


def test_gradients_of_a_training_step_equal_the_official_ones(reference, official, trained):
    slots, gradients = official[2], trained[3]
    norms = dict(zip(reference["grad_names"], reference["grad_norms"], strict=True))
    learnt = {name: norm for name, norm in norms.items() if ".fc." not in name}
    assert learnt.keys() == {name for name in slots if "running" not in name}
    for name, norm in learnt.items():
        ours = slots[name].to_torch(np.asarray(at(gradients, slots[name].path[1:])))
        # A gradient that should be 0 consists of rounding errors, whose size the largest gradient determines.
        np.testing.assert_allclose(np.linalg.norm(ours), norm, rtol=1e-4, atol=1e-6 * max(norms.values()), err_msg=name)
        if f"grad/{name}" in reference:
            close(ours, reference[f"grad/{name}"])


def test_the_feature_for_tests_equals_the_official_sum_of_image_and_mirror_image(reference, official):
    description, variables, _ = official
    images = nhwc(reference["images"])
    one = jax.jit(description.create_model().apply)(variables, images)
    close(one["parts"][2]["neck"], reference["eval_x_f_one"])
    # The other backbone divides pixels by 255 once more, so pixels that are 255 times as large give the same feature.
    other = dataclasses.replace(description, backbone="idf_resnet50_over255").create_model()
    both = one["embedding"] + jax.jit(other.apply)(variables, 255 * images[:, :, ::-1])["embedding"]
    close(both, reference["eval_feature_unnormalised"])
    close(both / jnp.linalg.norm(both, axis=1, keepdims=True), reference["eval_feature"])
    assert both.shape[1] == description.spec.embedding_width


def test_a_resnet_initialises_both_branches(official):
    description, variables, _ = official
    spec, resnet = description.spec, find_spec("ide_resnet50")
    assert spec.can_start_from(resnet)
    assert spec.can_start_from(spec)
    assert not resnet.can_start_from(spec)
    # `narrow` leaves this ResNet four times as wide.
    assert not spec.can_start_from(find_spec("bot_resnet50"))
    own = variables["params"]["base"]
    given = jax.tree.map(lambda x: x + 1, own["model_v"]) | {"reduce": {"kernel": 0}}
    base, notes = spec.start_from(own, given, (96, 48), (224, 224), resnet)
    branches = jax.tree.leaves([base["model_v"], base["model_e"]])
    # The training step donates every array, so the branches must not share one.
    assert len({id(array) for array in branches}) == len(branches)
    for branch in ("model_v", "model_e"):
        np.testing.assert_array_equal(base[branch]["conv1"]["kernel"], own["model_v"]["conv1"]["kernel"] + 1)
    assert base["reduce_v"] is own["reduce_v"]
    assert notes == ["E_Net, bfm, reduce_e, reduce_f, reduce_v new"]
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, own)


def test_an_idf_file_is_refused_by_name_and_an_idf_model_has_no_single_backbone(official, tmp_path):
    description, variables, _ = official
    save_weights(tmp_path / "jax", description, variables, {})
    tensors, described = to_torch.export(tmp_path / "jax")
    to_torch.write(tmp_path / "out.pth", tensors, described)
    for key in ("", "model_v"):
        with pytest.raises(InputError, match=r"contains an IDF model .* files of IDF cannot be imported"):
            from_torch.convert(tmp_path / "out.pth", key=key)
    with pytest.raises(InputError, match="is an IDF model, which has two backbones: leave --backbone out"):
        to_torch.export(tmp_path / "jax", backbone=True)
    resnet = {n.removeprefix("model_v."): value for n, value in tensors.items() if n.startswith("model_v.")}
    torch_file.save(tmp_path / "resnet.pth", resnet)
    with pytest.raises(InputError, match="for a ResNet choose one of bot_resnet50, ") as refused:
        from_torch.convert(tmp_path / "resnet.pth", backbone="idf_resnet50")
    assert "idf" not in str(refused.value).partition("choose")[2]


def test_the_parts_learn_at_the_official_rates():
    spec = find_spec("idf_resnet50")
    factor = {name: spec.rate_factor(("base", name, "kernel"), 10.0) for name in ("model_v", "model_e", "bfm", "E_Net")}
    assert factor == {"model_v": 1, "model_e": 1, "bfm": 10, "E_Net": 0.02}
    assert (
        spec.rate_factor(("base", "reduce_f", "kernel"), 10.0) == spec.rate_factor(("classifier_1", "bias"), 10.0) == 10
    )


IDF_OPTIONS = {"model__backbone": "idf_resnet50", "model__depth": 0, "augment__erasing_fill": "0,0,0"}
IDF_OPTIONS |= {"data__mean": "0,0,0", "data__std": "1,1,1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss__agree": 0.1}, r"loss\.agree is only for idf backbones, but model\.backbone is vit_tiny"),
        (IDF_OPTIONS | {"loss__center_real": 0.1}, r"loss\.center_real is only for bot and agw"),
        (IDF_OPTIONS | {"data__mean": "half"}, r"set data\.mean=0,0,0 and data\.std=1,1,1"),
        (IDF_OPTIONS | {"augment__erasing_fill": ""}, r"fills with N\(0, 1\) noise: set augment\.erasing_fill"),
    ],
)
def test_losses_and_pixels_that_do_not_fit_the_model_are_refused(tmp_path, options, message):
    write_night(tmp_path / "night")
    with pytest.raises(InputError, match=message):
        check_run(small_config(tmp_path, **options), tmp_path / "run")
    start = check_run(small_config(tmp_path, **IDF_OPTIONS, loss__agree=0.1), tmp_path / "run")
    assert make_description(start.options, start.records, (0.0,) * 3, (1.0,) * 3, None).std == (1, 1, 1)
