"""PyTorch weights in every usual form are imported, and come back bit for bit when they are exported."""

import contextlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from people import run

from nrsrd_jax.checkpoint import save_weights, weights_hash
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.weights import from_torch, identify, state_dict, to_torch, torch_file, torch_names

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def whole():
    """Return a whole Re-ID model as the official code saves it, {name: array}."""
    return {name: np.asarray(tensor) for name, tensor in torch_file.load(GOLDEN / "vit_tiny.pth")[0].items()}


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


def backbone_of(whole):
    base = {name.removeprefix("base."): value for name, value in whole.items() if name.startswith("base.")}
    return {name: value for name, value in base.items() if not name.startswith("fc.")}


def jpm_of(whole):
    """Make the tensors of TransReID's JPM model.

    b1 holds the trained last block and norm; base.blocks.3 and base.norm hold the stale tensors that b1 started from.
    """
    last = {name: value for name, value in whole.items() if name.startswith(("base.blocks.3.", "base.norm."))}
    branch = {n.replace("base.blocks.3.", "0.").replace("base.norm.", "1."): value for n, value in last.items()}
    stale = {name: value + 1 for name, value in last.items()}
    neck = {name.removeprefix("bottleneck"): value for name, value in whole.items() if name.startswith("bottleneck.")}
    parts = {f"bottleneck_{i}{name}": value for i in (1, 2, 3, 4) for name, value in neck.items()}
    parts |= {f"classifier_{i}.weight": np.ones((17, 192), np.float32) for i in (1, 2, 3, 4)}
    return whole | stale | prefixed(branch, "b1.") | prefixed({n: -v for n, v in branch.items()}, "b2.") | parts


def forms(whole):
    """Return {form: (tensors, the key of the file that holds them)}; the key is "" if the file is the state dict."""
    bare = backbone_of(whole)
    head = {"head.mlp.0.weight": np.ones((4, 192), np.float32), "head.last_layer.weight_g": np.ones((4, 1), np.float32)}
    return {
        "whole": (whole, ""),
        "whole under state_dict": (whole, "state_dict"),
        "whole, from DDP, under model": (prefixed(whole, "module."), "model"),
        "bare": (bare, ""),
        "bare with heads": (bare | {"head.weight": np.ones((5, 192), np.float32), "pre_logits.bias": np.ones(3)}, ""),
        "DINO teacher": (prefixed(bare, "backbone.") | head, "teacher"),
        "DINO teacher, from DDP": (prefixed(prefixed(bare, "backbone.") | head, "module."), "teacher"),
        "JPM": (jpm_of(whole), ""),
        "SIE": (whole | {"base.sie_embed": np.ones((6, 1, 192), np.float32)}, ""),
        "without counters and dead head": (
            {n: v for n, v in whole.items() if not n.startswith("base.fc.") and "num_batches" not in n}, ""),
    }  # fmt: skip


def plain(variables):
    """Return the variables without those that only TransReID's models have."""

    def chosen(tree):
        kept = {name: value for name, value in tree.items() if name[-2:] not in ("_1", "_2", "_3", "_4")}
        if "base" in tree:
            ours = ("sie_embed", "local_block", "local_norm")
            kept["base"] = {name: value for name, value in tree["base"].items() if name not in ours}
        return kept

    return {name: chosen(tree) for name, tree in variables.items()}


FORMS = list(forms(dict.fromkeys(["base.x"], np.zeros(1))))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_model_and_comes_back_bit_for_bit(tmp_path, whole, official_weights, form):
    tensors, wrapper = forms(whole)[form]
    torch_file.save(tmp_path / "in.pth", tensors, wrapper=wrapper)
    description, variables, kept, report = from_torch.convert(tmp_path / "in.pth")
    assert not report.faults
    headless, neck = "bare" in form or "DINO" in form, {}
    assert (description.backbone, description.depth, description.image_size) == ("vit_tiny", 4, (256, 128))
    assert description.classes == (0 if headless else 17)
    expected = official_weights("vit_tiny")
    if headless:
        expected = {"params": {"base": expected["params"]["base"]}, "batch_stats": {}}
        assert not any(variables["params"]["bottleneck"]["bias"])
        assert all(variables["batch_stats"]["bottleneck"]["var"] == 1)
        neck = variables
        variables = {"params": {"base": variables["params"]["base"]}, "batch_stats": {}}
    assert weights_hash(plain(variables)) == weights_hash(expected)
    save_weights(tmp_path / "jax", description, variables | neck, kept)
    exported, _ = to_torch.export(tmp_path / "jax", backbone=headless)
    original = {name.removeprefix("module."): value for name, value in tensors.items()}
    # A backbone is exported without heads, under the names of a DINO teacher.
    if headless:
        original = prefixed(backbone_of(whole), "backbone.")
    for name, value in original.items():
        assert exported[name].dtype == value.dtype
        assert exported[name].tobytes() == value.tobytes(), name
    added = exported.keys() - original.keys()
    assert all(name.startswith("base.fc.") or "num_batches" in name for name in added)
    assert not any(exported[name].any() for name in added)


def test_a_backbone_is_exported_as_a_dino_teacher_and_can_be_imported_again(tmp_path, whole):
    torch_file.save(tmp_path / "in.pth", jpm_of(whole))
    run("convert/from_torch.py", tmp_path / "in.pth", "--output", tmp_path / "jax")
    run("convert/to_torch.py", tmp_path / "jax", "--backbone", "--output", tmp_path / "out.pth")
    content = torch_file.load(tmp_path / "out.pth")[0]
    back = {name: np.asarray(tensor) for name, tensor in content["teacher"].items()}
    expected = prefixed(backbone_of(whole), "backbone.")
    assert back.keys() == expected.keys()
    assert all(back[name].tobytes() == expected[name].tobytes() for name in expected)
    description, _, _, report = from_torch.convert(tmp_path / "out.pth")
    assert not report.faults
    assert description.classes == 0


def test_the_official_dino_checkpoint_is_resized_to_another_grid(tmp_path, golden, official_weights):
    """The position embedding is resized as the official loader does, and the features are the official ones."""
    reference = golden("forward")
    path = GOLDEN / "vit_tiny_dino.pth"
    # Without an image size the grid of the file is kept.
    assert from_torch.convert(path)[0].image_size == (224, 112)
    description, variables, kept, report = from_torch.convert(path, (256, 128))
    assert not report.faults
    assert not kept
    base = variables["params"]["base"]
    np.testing.assert_allclose(base["pos_embed"], reference["dino_pos_embed_resized"], atol=1e-6)
    out = jax.jit(description.create_model().apply)(variables, jnp.asarray(reference["x"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(out["embedding"], reference["dino_eval_global_feat"], atol=2e-5, rtol=0)
    rows = {name: (verdict, note) for name, _, verdict, note in report.rows}
    assert rows["base.pos_embed"] == ("resized", "as it is, 14×7 → 16×8 patches, bilinear")
    assert rows["student"][0] == rows["args"][0] == rows["head.mlp.0.weight"][0] == "ignored"
    assert rows["base.blocks.0.attn.qkv.weight"] == ("mapped", "transposed")
    assert rows["bottleneck.weight"][0] == "new"


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_exported_in_their_own_type(tmp_path, whole, kind):
    half = {name: value.astype(kind) if value.dtype == np.float32 else value for name, value in whole.items()}
    torch_file.save(tmp_path / "in.pth", half)
    description, variables, kept, report = from_torch.convert(tmp_path / "in.pth")
    assert not report.faults
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    save_weights(tmp_path / "jax", description, variables, kept)
    exported, _ = to_torch.export(tmp_path / "jax")
    assert exported.keys() == half.keys()
    assert all(exported[n].dtype == half[n].dtype and exported[n].tobytes() == half[n].tobytes() for n in half)


def test_all_faults_are_listed_at_once_and_nothing_is_written(tmp_path, whole):
    broken = dict(whole)
    del broken["base.blocks.2.mlp.fc1.bias"]
    broken["base.blocks.0.norm1.weight"] = np.ones(191, np.float32)
    broken["base.blocks.1.norm1.bias"] = np.full(192, np.nan, np.float32)
    broken["base.norm.bias"] = np.zeros(192, np.int64)
    broken["base.blocks.1.attn.relative_position"] = np.ones(3, np.float32)
    broken["fcneck.weight"] = np.ones((4, 192), np.float32)
    broken["module.base.norm.weight"] = broken["base.norm.weight"]
    torch_file.save(tmp_path / "in.pth", broken)
    done = run("convert/from_torch.py", tmp_path / "in.pth", "--output", tmp_path / "jax", status=2)
    for fault in (
        "error: ", ": 7 faults, nothing was written",
        "base.blocks.2.mlp.fc1.bias: missing; the model expects shape (768,)",
        "base.blocks.0.norm1.weight: has shape (191,); the model expects (192,)", "base.norm.bias: is int64",
        "base.blocks.1.norm1.bias: contains numbers that are not finite", "fcneck.weight: unknown",
        "base.blocks.1.attn.relative_position: unknown", "base.norm.weight: occurs twice",
    ):  # fmt: skip
        assert fault in done.stderr
    assert not (tmp_path / "jax").exists()


@pytest.mark.parametrize(("change", "faults"), [
    (lambda w: without(jpm_of(w), "b1.0.mlp.fc1.bias"), ["b1.0.mlp.fc1.bias: missing"]),
    (lambda w: w | {"base.fc.bias": np.zeros((0, 3), np.float32)}, ["base.fc.bias: is empty"]),
    (lambda w: w | {"b2.\x1b[31m": np.ones(3, np.float32)}, ["b2.\\x1b[31m: its name has characters that"]),
    (lambda w: jpm_of(w) | {"b1.0.attn.scale": np.ones(1)}, ["b1.0.attn.scale: unknown"]),
    (lambda w: {n: v for n, v in w.items() if "bott" not in n}, ["bias", "running_mean", "running_var", "weight"]),
])  # fmt: skip
def test_a_model_with_missing_or_unknown_tensors_is_refused(tmp_path, whole, change, faults):
    torch_file.save(tmp_path / "in.pth", change(whole))
    report = from_torch.convert(tmp_path / "in.pth")[-1]
    assert len(report.faults) == len(faults)
    assert all(part in fault for part, fault in zip(sorted(faults), sorted(report.faults), strict=True))


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(("change", "message"), [
    (lambda w: w | {"base.cls_token": np.float32(1)}, "unknown kind: cls_token has shape ()"),
    (lambda w: w | {"base.pos_embed": np.ones((1, 0, 192), np.float32)}, "unknown kind"),
    (lambda w: {"conv1.weight": np.ones(3, np.float32)}, "no ViT and no ResNet: .* names are conv1.weight"),
    (lambda w: w | {"base.cls_token": np.ones((1, 1, 1024), np.float32)}, "its ViT has width 1024"),
    (lambda w: w | {"base.pos_embed": np.ones((1, 212, 192), np.float32)}, "211 patches do not form .* --source_size"),
    (lambda w: w | {"base.blocks.900.norm1.weight": np.ones(192, np.float32)}, "901 blocks are too many; at most 64"),
    (lambda w: {}, "no state dict"),
])  # fmt: skip
def test_an_unknown_model_is_refused_in_one_line(tmp_path, whole, change, message):
    torch_file.save(tmp_path / "in.pth", change(whole))
    with pytest.raises(InputError, match=message):
        from_torch.convert(tmp_path / "in.pth")


@pytest.mark.parametrize(("patches", "size"), [
    (128, (256, 128)), (98, (224, 112)), (192, (384, 128)), (196, (224, 224)), (32, (128, 64)), (72, (192, 96)),
    (1, (16, 16)), (2, (32, 16)),
])  # fmt: skip
def test_the_image_size_is_guessed_from_the_number_of_patches(patches, size):
    assert identify.guess_grid(patches, None, 0) == (size, 16)


def test_old_layouts_are_read_as_by_the_official_loader(tmp_path, whole, official_weights):
    """The patch projection is saved as a matrix, and the model is a distilled one, with one more token."""
    old = dict(whole)
    old["base.patch_embed.proj.weight"] = whole["base.patch_embed.proj.weight"].reshape(192, -1)
    old["base.dist_token"] = np.ones((1, 1, 192), np.float32)
    old["base.pos_embed"] = np.insert(whole["base.pos_embed"], 1, 9.0, axis=1)
    torch_file.save(tmp_path / "in.pth", old)
    _, variables, _, report = from_torch.convert(tmp_path / "in.pth")
    assert not report.faults
    assert weights_hash(variables) == weights_hash(official_weights("vit_tiny"))


# Orbax causes these warnings when it cannot read a file.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", ["weights", "torch", "model"])
def test_a_damaged_conversion_is_never_used(tmp_path, whole, part):
    """A file with changed bytes, a truncated, empty or missing file, and a missing folder are each an error."""
    torch_file.save(tmp_path / "in.pth", whole)
    *converted, _ = from_torch.convert(tmp_path / "in.pth")
    save_weights(tmp_path / "jax", *converted)
    files = [path for path in (tmp_path / "jax" / part).rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    middle = len(data) // 2
    for damage in (data[:middle] + bytes(8) + b"xxxxxxxx" + data[middle + 16 :], data[:middle], b"", None):
        largest.unlink()
        if damage is not None:
            largest.write_bytes(damage)
        with pytest.raises(InputError, match=r"damaged|no readable checkpoint"):
            to_torch.export(tmp_path / "jax")
        largest.write_bytes(data)
    to_torch.export(tmp_path / "jax")
    shutil.rmtree(tmp_path / "jax" / part)
    with pytest.raises(InputError, match=r"damaged|holds no checkpoint|no readable"):
        to_torch.export(tmp_path / "jax")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tensors_of_any_shape_are_converted_or_refused(tmp_path, monkeypatch, data):
    """Some tensors of a whole model are replaced, renamed or missing."""
    description = Description("vit_tiny", 1, (32, 16), (0.5,) * 3, (0.5,) * 3, 2)
    tensors = {name: np.zeros(slot.shape, np.float32) for name, slot in torch_names.slots(description).items()}
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=3, unique=True)):
        del tensors[name]
        if data.draw(st.booleans()):
            shape = data.draw(st.lists(st.integers(0, 4), max_size=5).map(tuple))
            kind = data.draw(st.sampled_from([np.float32, np.float16, np.int64, np.float64]))
            new = data.draw(
                st.sampled_from([name, "b1.x", "base.dist_token", "base.blocks.3.norm1.bias", "x\n\x1b[31m"])
            )
            tensors[new] = np.zeros(shape, kind)
    # The conversion hashes the file, although `read` is replaced.
    (tmp_path / "in.pth").write_bytes(b"")
    monkeypatch.setattr(from_torch, "read", lambda path, key: state_dict.StateDict(tensors, {}, {}, ""))
    try:
        report = from_torch.convert(tmp_path / "in.pth")[-1]
    except InputError:
        return
    assert "\x1b" not in "".join(report.lines())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_safetensors_and_indexes_are_read_or_refused_cleanly(tmp_path, whole, data):
    small = {name: value for name, value in whole.items() if value.size < 1000}
    safetensors.numpy.save_file(small, tmp_path / "a-00001-of-00002.safetensors")
    index = json.dumps({"weight_map": dict.fromkeys(small, "a-00001-of-00002.safetensors")}).encode()
    for path in (tmp_path / "a-00001-of-00002.safetensors", tmp_path / "a.safetensors.index.json"):
        content = bytearray(index if path.suffix == ".json" else path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            # The changes hit the header and the first tensors: changed numbers alone would be read without complaint.
            content[data.draw(st.integers(0, min(len(content), 3000) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 9, 1, 0]))])
    with contextlib.suppress(InputError):
        from_torch.convert(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ('{"weight_map": {"a": "../../etc/passwd"}}', "outside its own folder"),
    ('{"weight_map": {"a": "/dev/zero", "b": "x\\u0000y"}}', "outside its own folder"),
    ('{"weight_map": {"a": 3}}', "not an index"), ('{"weight_map": []}', "not an index"),
    ('{"architectures": ["ViTModel"]}', "not an index"), ('{"a":' * 100_000, "not an index"),
])  # fmt: skip
def test_an_invalid_index_gives_one_line(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        from_torch.convert(tmp_path)
    assert "\n" not in str(caught.value)
