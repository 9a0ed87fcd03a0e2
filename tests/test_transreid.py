"""Test that TransReID equals the official PyTorch code: patches, camera vectors, local features and schedule."""

import argparse
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensors
from people import small_config, write_night
from tensors import at, nhwc, random_variables

from nrsrd_jax import checkpoint, convert
from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.data import datasets
from nrsrd_jax.data.protocol import make_target
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.losses import TERMS
from nrsrd_jax.models import MODELS, find_spec, transreid, with_base
from nrsrd_jax.models.vit import ViTSpec, patch_grid
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval import embedding
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.scoring import evaluate
from nrsrd_jax.schedule import learning_rate
from nrsrd_jax.sharding import make_mesh
from nrsrd_jax.step import make_objective
from nrsrd_jax.weights import from_torch, identify, to_torch, torch_file, torch_names

pytestmark = pytest.mark.slow

STRIDES = [16, 12]
SIZE = (96, 48)
WEIGHTS = dict.fromkeys(TERMS, 0.0) | {"id_real": 1.0, "triplet_real": 1.0}


@pytest.fixture(scope="module", autouse=True)
def golden_width():
    """Add a backbone as narrow as the golden models, which are narrower than any real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "vit_128", ViTSpec(width=128, depth=3, choices=("depth", "stride", "jpm", "sie")))
        yield


@pytest.fixture(scope="module")
def reference():
    from conftest import GOLDEN

    with np.load(GOLDEN / "transreid.npz") as file:
        return dict(file)


def official_file(reference, stride, leave_out=()):
    weights = {n.removeprefix("s16/w/"): value for n, value in reference.items() if n.startswith("s16/w/")}
    weights |= {
        n.removeprefix(f"s{stride}/w/"): value for n, value in reference.items() if n.startswith(f"s{stride}/w/")
    }
    return {name: value for name, value in weights.items() if not name.startswith(tuple(leave_out))}


@pytest.fixture(scope="module")
def converted(reference, tmp_path_factory):
    """Convert whole official files. Return {stride: (description, variables, folder of the checkpoint)}."""
    models = {}
    for stride in STRIDES:
        folder = tmp_path_factory.mktemp("transreid")
        torch_file.save(folder / "in.pth", official_file(reference, stride))
        description, variables, kept, report = from_torch.convert(folder / "in.pth", source_size=SIZE)
        assert not report.faults
        save_weights(folder / "jax", description, variables, kept)
        models[stride] = description, variables, folder / "jax"
    return models


def images(reference):
    return nhwc(reference["images"])


def close(ours, theirs, tolerance=2e-5):
    tensors.close(ours, theirs, tolerance)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("stride", STRIDES)
def test_a_whole_official_file_gives_the_official_test_feature(reference, converted, stride):
    description, variables, _ = converted[stride]
    assert (description.stride or 16, description.jpm, description.sie) == (stride, True, True)
    assert description.cameras == tuple(range(8))
    out = jax.jit(description.create_model().apply)(variables, images(reference), cameras=reference["cameras"])
    close(out["embedding"], reference[f"s{stride}/eval_before"])
    # The official feature has a quarter of each local feature, also of those after the necks.
    after = embedding._chosen(out, variables, "neck")
    close(after, reference[f"s{stride}/eval_after"])
    # Centred features are the official ones minus a vector, the same for all images.
    shift = np.asarray(out["embedding"] - embedding._chosen(out, variables, "centred"))
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-5)
    means = [variables["batch_stats"][name]["mean"] for name in ("bottleneck", "bottleneck_4")]
    np.testing.assert_allclose(shift[0, :128], means[0], atol=1e-5)
    np.testing.assert_allclose(shift[0, -128:], means[1] / 4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "jpm", "sie"), [("sie_only", False, True), ("base", False, False), ("jpm_only", True, False)]
)
@pytest.mark.parametrize("stride", STRIDES)
def test_each_part_of_transreid_can_be_left_out(reference, converted, stride, name, jpm, sie):
    description, variables, _ = converted[stride]
    model = dataclasses.replace(description, jpm=jpm, sie=sie).create_model()
    out = jax.jit(model.apply)(variables, images(reference), cameras=reference["cameras"] if sie else None)
    close(out["embedding"], reference[f"s{stride}/eval_{name}"])


@pytest.mark.usefixtures("optimised")
def test_the_factor_of_the_cameras_vectors_can_be_chosen(reference, converted, tmp_path, capsys, monkeypatch):
    """TransReID's configs have a factor of 3. A file of weights does not show which one it was trained with."""
    torch_file.save(tmp_path / "in.pth", official_file(reference, 16))
    monkeypatch.setattr("sys.argv", f"convert {tmp_path}/in.pth --source_size 96,48 --sie_factor 1.5".split())
    convert.main()
    assert "each token gets 1.5 times the vector of its image's camera" in capsys.readouterr().out
    description, variables = checkpoint.load(tmp_path / "in", make_mesh())
    assert Description.from_json(description.to_json({})).sie_factor == 1.5
    # Half the factor gives the features of vectors that are half as long.
    table = converted[16][1]["params"]["base"]["sie_embed"]
    base = variables["params"]["base"] | {"sie_embed": np.asarray(table) / 2}
    halved = with_base(variables, base)
    ours, other = (
        jax.jit(each.create_model().apply)(values, images(reference), cameras=reference["cameras"])["embedding"]
        for each, values in ((description, variables), (converted[16][0], halved))
    )
    close(ours, other, 1e-6)
    # The exported file keeps the factor, and a line says how to load it in the official code.
    monkeypatch.setattr("sys.argv", f"to_torch {tmp_path}/in --output {tmp_path}/out.pth".split())
    to_torch.main()
    assert "set MODEL.SIE_COE 1.5 in the official code" in capsys.readouterr().out
    assert from_torch.convert(tmp_path / "out.pth")[0].sie_factor == 1.5


def test_a_factor_that_a_checkpoint_could_not_keep_is_refused():
    """Otherwise the checkpoints of a training with this factor could not be read."""
    for text in ("0.001", "1000"):
        values = Description("vit_tiny", 1, (32, 16), (0.5,) * 3, (0.5,) * 3, sie_factor=convert.factor(text)).to_json(
            {}
        )
        assert Description.from_json(values).sie_factor == float(text)
    for text in ("0", "1001", "nan"):
        with pytest.raises(
            argparse.ArgumentTypeError, match=rf"^{text} is not a factor; it must lie in 0\.001\.\.1000$"
        ):
            convert.factor(text)


@pytest.mark.parametrize("stride", STRIDES)
def test_losses_gradients_and_statistics_of_a_step_equal_the_official_ones(reference, converted, stride):
    description, variables, _ = converted[stride]
    objective = make_objective(description.create_model(drop_path=0.0), WEIGHTS)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, (statistics, terms)), gradients = step(
        variables["params"], variables["batch_stats"], {"real": images(reference)}, {"real": reference["labels"]},
        jax.random.key(0), None, {"real": reference["cameras"]},
    )  # fmt: skip
    close(loss, reference[f"s{stride}/loss"])
    close(terms["id_real"], reference[f"s{stride}/loss_id"])
    names = dict(zip(reference[f"s{stride}/grad_names"], reference[f"s{stride}/grad_norms"], strict=True))
    slots, scale = torch_names.slots(description), max(names.values())
    for name, norm in names.items():
        if name not in slots:
            assert not norm, f"{name} should have no gradient"
            continue
        slot = slots[name]
        ours = slot.to_torch(np.asarray(at(gradients, slot.path[1:])))
        # A neck subtracts the mean, so the gradient of a bias before it is only rounding error.
        np.testing.assert_allclose(np.linalg.norm(ours), norm, rtol=1e-4, atol=1e-6 * scale, err_msg=name)
        if f"s{stride}/grad/{name}" in reference:
            close(ours, reference[f"s{stride}/grad/{name}"], 1e-4)
    for name in reference:
        if name.startswith(f"s{stride}/after_train/"):
            slot = slots[name.removeprefix(f"s{stride}/after_train/")]
            close(at(statistics, slot.path[1:]), reference[name], 1e-5)


def test_the_training_outputs_of_every_part_equal_the_official_ones(reference, converted):
    for stride, (description, variables, _) in converted.items():
        model = description.create_model(drop_path=0.0)
        train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
        out, _ = train(variables, images(reference), cameras=reference["cameras"])
        for index, part in enumerate(out["parts"]):
            close(part["features"], reference[f"s{stride}/train_feat_{index}"])
            close(part["logits"]["real"], reference[f"s{stride}/train_score_{index}"], 1e-4)


@pytest.mark.parametrize("count", [8, 18, 21, 128, 210])
def test_patches_are_shuffled_as_in_the_official_code(reference, count):
    assert transreid.shuffled(count).tolist() == (reference[f"shuffle_order_{count}"] - 1).tolist()


def test_an_official_file_is_imported_and_exported_without_change(reference, converted):
    for stride, (*_, folder) in converted.items():
        tensors, _ = to_torch.export(folder)
        for name, value in official_file(reference, stride).items():
            assert tensors[name].tobytes() == value.tobytes(), name


def test_parts_beside_the_backbone_are_named_if_they_are_left_out(converted, tmp_path, capsys, monkeypatch):
    arguments = ["to_torch.py", str(converted[16][2]), "--backbone", "--output", str(tmp_path / "out.pth")]
    monkeypatch.setattr("sys.argv", arguments)
    to_torch.main()
    left_out = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(left_out) == 2
    assert "local features of JPM (b2)" in left_out[0]
    assert "cameras' vectors of SIE" in left_out[1]


def test_an_exported_model_has_all_tensors_of_the_official_one(reference, converted, tmp_path):
    description, variables, _ = converted[16]
    save_weights(tmp_path / "ours", dataclasses.replace(description, provenance={}), variables, {})
    assert official_file(reference, 16).keys() == to_torch.export(tmp_path / "ours")[0].keys()


def test_a_camera_embedding_without_cameras_is_refused(reference, tmp_path):
    tensors = official_file(reference, 16) | {"base.sie_embed": np.zeros((0, 1, 128), np.float32)}
    torch_file.save(tmp_path / "in.pth", tensors)
    with pytest.raises(InputError, match=r"base\.sie_embed has shape \(0, 1, 128\), but .* for each camera: convert"):
        from_torch.convert(tmp_path / "in.pth", source_size=SIZE)


def test_names_of_cameras_that_were_not_chosen_are_reported(converted, tmp_path, capsys):
    description, variables, _ = converted[16]
    called, views = from_torch.summary(description)[-2:]
    assert "cameras are called 0, 1, 2, 3, 4, 5, 6, 7 (0…N−1)" in called
    assert called.endswith("with --cameras 1,2,3,4,5,6,7,8")
    assert "camera · views + view" in views
    chosen = dataclasses.replace(description, cameras=tuple(range(1, 9)))
    assert from_torch.summary(chosen)[-2].endswith("called 1, 2, 3, 4, 5, 6, 7, 8")
    assert not chosen.camera_warning([1, 2])
    assert not description.camera_warning([0, 1])
    assert not dataclasses.replace(description, provenance={}).camera_warning([1, 2])

    data = datasets.read_dataset("night600", write_night(tmp_path / "night"))
    options = dataclasses.replace(read_options(small_config(tmp_path)), image_size=SIZE)
    for each, warnings in ((description, 1), (chosen, 0)):
        save_weights(tmp_path / f"jax{warnings}", each, variables, {})
        evaluate(Embedder.load(tmp_path / f"jax{warnings}"), options, {"night": make_target(data, "cross-camera")})
        shown = capsys.readouterr().err
        assert shown.count("night: warning: the first camera of the data is 1, the model's is 0") == warnings


def test_an_image_of_an_unknown_camera_is_refused(converted):
    embedder = Embedder.load(converted[16][2])
    crops = np.zeros((2, *SIZE, 3), np.uint8)
    # The features are a global one and four local ones, of 128 numbers each.
    assert embedder(crops, cameras=np.array([0, 7])).shape == (2, 640) == (2, embedder.width)
    with pytest.raises(InputError, match=r"camera, one of \[0, 1, .*camera is unknown"):
        embedder(crops)
    with pytest.raises(InputError, match=r"camera is \[8\]"):
        embedder(crops, cameras=np.array([0, 8]))


def test_a_file_that_fits_two_image_sizes_needs_the_right_one(reference, tmp_path):
    # Both image sizes give 18×9 patches.
    tensors = official_file(reference, 16) | {"base.pos_embed": np.zeros((1, 163, 128), np.float32)}
    torch_file.save(tmp_path / "in.pth", tensors)
    with pytest.raises(InputError, match=r"288,144 with patches 16 pixels apart, or images of 256,128 .* 14 pixels"):
        from_torch.convert(tmp_path / "in.pth")
    for size, stride in (((256, 128), 14), ((288, 144), 0)):
        assert from_torch.convert(tmp_path / "in.pth", source_size=size)[0].stride == stride


@pytest.mark.parametrize(("side", "stride", "other"), [(256, 12, 336), (384, 12, 496), (224, 12, 288), (192, 12, 240)])
def test_a_square_file_with_overlapping_patches_needs_its_image_size(side, stride, other):
    patches = math.prod(patch_grid((side, side), stride))
    with pytest.raises(InputError, match=f"images of {other},{other} .* of {side},{side} with patches {stride} "):
        identify.guess_grid(patches, None, 0)
    assert identify.guess_grid(patches, (side, side), 0) == ((side, side), stride)
    # The stem's patches cannot overlap, so the number of patches decides.
    assert identify.guess_grid(patches, None, 16) == ((other, other), 16)


def test_transreid_and_a_plain_vit_can_start_from_each_other(converted):
    """Check too that the local branch starts from the last block of the given weights."""
    description, variables, _ = converted[12]
    whole = description.spec
    plain = find_spec("vit_128")
    assert whole == plain
    own = random_variables(description, 0)["params"]["base"]
    other = dataclasses.replace(description, jpm=False, sie=False, stride=0)
    given = random_variables(dataclasses.replace(other, image_size=(224, 224)), 1)["params"]["base"]
    base, notes = whole.start_from(own, given, SIZE, (224, 224), plain)
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, own)
    np.testing.assert_array_equal(
        base["local_block"]["mlp"]["fc1"]["kernel"], given["blocks_2"]["mlp"]["fc1"]["kernel"]
    )
    assert notes[0] == "position embedding resized from 14×14 to 7×3"
    # The train step donates every array, so no array may occur twice.
    assert len({id(leaf) for leaf in jax.tree.leaves(base)}) == len(jax.tree.leaves(base))
    back, _ = plain.start_from(given, variables["params"]["base"], SIZE, SIZE, whole)
    assert back.keys() == given.keys()


@pytest.mark.parametrize(("rows", "columns"), [(21, 10), (16, 8)])
def test_square_position_embeddings_resize_as_in_the_official_loader(reference, rows, columns):
    from nrsrd_jax.models.position import resize_position_embedding

    ours = resize_position_embedding(reference["resize_14x14_src"], (14, 14), (rows, columns))
    close(ours, reference[f"resize_14x14_to_{rows}x{columns}"], 1e-6)


def test_the_learning_rates_equal_the_official_ones(reference):
    choice = {"base": 0.008, "epochs": 120, "warmup_epochs": 5, "warmup_factor": 0.01, "final_factor": 0.002}
    with jax.enable_x64(True):
        rates = [[learning_rate(t, group_factor=factor, **choice) for factor in (1.0, 2.0)] for t in range(1, 121)]
    np.testing.assert_allclose(rates, reference["schedule_f64"], rtol=1e-6)


def test_options_that_do_not_fit_the_backbone_are_refused():
    with pytest.raises(
        InputError, match=r"model\.stride=12: vit_small_ics does not have this option; the option works with"
    ):
        find_spec("vit_small_ics", stride=12)
    with pytest.raises(InputError, match=r"model\.jpm needs 8 patches"):
        find_spec("vit_small", jpm=True).check_size((32, 32))
    find_spec("vit_small", stride=12).check_size((250, 125))
    with pytest.raises(InputError, match="at least 16 pixels"):
        find_spec("vit_small", stride=12).check_size((250, 12))
    with pytest.raises(InputError, match="needs images whose cameras are known"):
        find_spec("vit_small", sie=True).module()


def test_transreid_with_cameras_cannot_be_exported_or_analysed(converted, tmp_path):
    from nrsrd_jax.analysis.maps import Probe
    from nrsrd_jax.export import onnx_file, stablehlo

    description, variables, folder = converted[16]
    choice = {"layout": "uint8-nhwc", "feature": "cls", "flip": False, "opset": 17, "batch": None}
    with pytest.raises(InputError, match="cannot be written as ONNX"):
        onnx_file.build(description, variables, **choice)
    with pytest.raises(InputError, match="needs the camera of each image"):
        stablehlo.build(Embedder.load(folder), 1)
    with pytest.raises(InputError, match="cannot be shown"):
        Probe.load(folder)
