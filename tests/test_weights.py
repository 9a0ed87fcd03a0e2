"""Test that checkpoints in the forms that people share are read, and that other files give a one-line error."""

import argparse
import collections
import datetime
import json
import pathlib
import pickle
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from people import run
from weight_files import backbone_hash, prefixed, rows, save, zeros

from nrsrd_jax.checkpoint import weights_hash
from nrsrd_jax.errors import InputError
from nrsrd_jax.weights import from_torch, torch_file

pytestmark = pytest.mark.slow

NESTED = {
    "bare": lambda w: w,
    "under an unknown name": lambda w: {"my weights": w, "epoch": 3},
    "two levels deep": lambda w: {"checkpoint": {"net": w}, "lr": 0.1},
    "in a list": lambda w: {"models": [w]},
    "DeepSpeed": lambda w: {"module": w, "ds_version": "0.9"},
    "with an optimiser of tensors": lambda w: {
        "model": w, "optimizer": {"state": {0: {"exp_avg": np.ones(3, np.float32)}}, "param_groups": [{"lr": 1}]}},
    "EMA alone": lambda w: {"state_dict_ema": w},
    "EMA of timm": lambda w: {"model_ema": prefixed("module.", w)},
    "torch.compile": lambda w: prefixed("_orig_mod.", w),
    "DDP, then compiled, twice": lambda w: prefixed("_orig_mod.module.module.", w),
    "FSDP": lambda w: prefixed("_fsdp_wrapped_module.", w),
    "SWA": lambda w: {"n_averaged": np.array(7), **prefixed("module.", w)},
    "Lightning": lambda w: {"state_dict": prefixed("model.", w), "pytorch-lightning_version": "2.1", "loops": {}},
    "Lightning, compiled inside": lambda w: {"state_dict": prefixed("net._orig_mod.", w)},
    "a deep prefix": lambda w: {"state_dict": prefixed("system.student_net.encoder.", w)},
    # The student's weights are zeros, which would show if they were taken.
    "DINO": lambda w: {"student": prefixed("module.backbone.", zeros(w)), "teacher": prefixed("backbone.", w)},
    "Lightning's DINO": lambda w: {"state_dict": prefixed("student.vit.", zeros(w)) | prefixed("teacher.vit.", w)},
}  # fmt: skip


@pytest.mark.parametrize("form", NESTED)
def test_the_weights_are_found_in_every_common_form(tmp_path, bare, whole, form):
    save(tmp_path / "in.pth", NESTED[form](bare))
    _, variables, _, report = from_torch.convert(tmp_path / "in.pth")
    assert not report.faults
    assert backbone_hash(variables) == backbone_hash(from_torch.convert(save(tmp_path / "w.pth", whole[0]))[1])


@pytest.mark.parametrize("prefix", ["model.", "module.model._orig_mod.", "net.reid."])
def test_a_whole_model_inside_another_keeps_its_neck_and_classifier(tmp_path, whole, prefix):
    save(tmp_path / "in.ckpt", {"state_dict": prefixed(prefix, whole[0])})
    description, variables, _, report = from_torch.convert(tmp_path / "in.ckpt")
    assert not report.faults
    assert description.classes == 5
    assert weights_hash(variables) == whole[1]
    assert "state_dict" in report.lines()[0]


@pytest.mark.parametrize(("form", "keys"), [
    (lambda a, b: {"model": a, "model_ema": b}, ("model", "model_ema")),
    (lambda a, b: {"state_dict": a, "state_dict_ema": b, "epoch": 1}, ("state_dict", "state_dict_ema")),
    (lambda a, b: {"state_dict": prefixed("model.", a) | prefixed("ema.module.", b)},
     ("state_dict/model", "state_dict/ema")),
    (lambda a, b: a | prefixed("ema.", b), (".", "ema")),
    (lambda a, b: {"x": {"m": a}, "y": {"m": b}}, ("x/m", "y/m")),
    (lambda a, b: {"state_dict": prefixed("base_encoder.", a) | prefixed("momentum_encoder.", b)},
     ("state_dict/base_encoder", "state_dict/momentum_encoder")),
])  # fmt: skip
def test_the_option_key_chooses_one_of_several_models(tmp_path, bare, form, keys):
    save(tmp_path / "in.pth", form(bare, zeros(bare)))
    with pytest.raises(InputError, match="2 networks") as caught:
        from_torch.convert(tmp_path / "in.pth")
    assert all(f"{key} ({len(bare)} tensors)" in str(caught.value) for key in keys)
    assert "choose one with --key" in str(caught.value)
    for key, empty in zip(keys, (False, True), strict=True):
        _, variables, _, report = from_torch.convert(tmp_path / "in.pth", key=key)
        assert not report.faults
        assert bool(variables["params"]["base"]["pos_embed"].any()) is not empty
    with pytest.raises(InputError, match="--key nothing names no network in it; choose one of: "):
        from_torch.convert(tmp_path / "in.pth", key="nothing")


@pytest.mark.parametrize("content", [3, "text", None, [1, [2]], {}, np.ones(3, np.float32), [np.ones(3, np.float32)]])
def test_a_file_without_names_for_its_tensors_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="it contains no state dict"):
        from_torch.convert(save(tmp_path / "in.pth", content))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_by_their_index_or_their_folder(tmp_path, bare, suffix):
    folder, half = tmp_path / "vit", len(bare) // 2
    folder.mkdir()
    shards = [f"model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    parts = [dict(list(bare.items())[:half]), dict(list(bare.items())[half:])]
    for name, part in zip(shards, parts, strict=True):
        if suffix == "bin":
            torch_file.save(folder / name, part)
        else:
            safetensors.numpy.save_file(part, folder / name)
    places = {name: shard for shard, part in zip(shards, parts, strict=True) for name in part}
    index = folder / f"model.{suffix}.index.json"
    with pytest.raises(InputError, match=f"one of 2 shards: put all of them and model.{suffix}.index.json into one"):
        from_torch.convert(folder / shards[0])
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    for given in (index, folder):
        description, variables, _, report = from_torch.convert(given)
        assert not report.faults
        np.testing.assert_array_equal(variables["params"]["base"]["cls_token"], bare["cls_token"])
        assert description.provenance["source"]["sha256"] == from_torch.sha256(index, *(folder / s for s in shards))
    with pytest.raises(InputError, match="this is one of 2 shards: give "):
        from_torch.convert(folder / shards[1])
    (folder / shards[1]).rename(tmp_path / "away")
    with pytest.raises(InputError, match=f"names 2 shards, but {shards[1]} is missing"):
        from_torch.convert(index)
    (tmp_path / "away").rename(folder / shards[1])
    index.write_text(json.dumps({"weight_map": places | {"more": shards[1]}}))
    with pytest.raises(InputError, match="differ about more"):
        from_torch.convert(index)


def test_a_folder_must_hold_exactly_one_file_of_weights(tmp_path, bare):
    with pytest.raises(InputError, match="a folder with 0 files of weights"):
        from_torch.convert(tmp_path)
    torch_file.save(tmp_path / "model.pth", bare)
    assert not from_torch.convert(tmp_path)[-1].faults
    torch_file.save(tmp_path / "model_ema.pth", bare)
    with pytest.raises(InputError, match=r"2 files of weights: model.pth, model_ema.pth; name a file"):
        from_torch.convert(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_float64_is_rounded_with_a_note(tmp_path, whole, suffix):
    doubled = {name: value.astype(np.float64) for name, value in whole[0].items()}
    if suffix == ".pth":
        torch_file.save(tmp_path / "in.pth", doubled)
    else:
        safetensors.numpy.save_file(doubled, tmp_path / "in.safetensors")
    shown = run("convert/from_torch.py", tmp_path / f"in{suffix}", "--dry_run").stdout
    assert f"{len(doubled)} tensors in float64 were rounded to float32" in shown
    assert "from float64, rounded to float32" in shown
    doubled["base.cls_token"][0, 0, 0] = 1e300
    report = from_torch.convert(save(tmp_path / "big.pth", doubled))[-1]
    assert report.faults == ["base.cls_token: contains numbers that are not finite, or beyond float32"]


def test_safetensors_in_bfloat16_are_read(tmp_path, bare):
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in bare.items()}
    header, data = {}, b""
    for name, value in half.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "in.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    _, variables, _, report = from_torch.convert(tmp_path / "in.safetensors")
    assert not report.faults
    np.testing.assert_array_equal(variables["params"]["base"]["cls_token"], half["cls_token"].astype(np.float32))


def test_ignore_leaves_out_tensors_without_a_rule_and_shows_them(tmp_path, bare):
    extra = {"criterion.centers": np.ones(3, np.float32), "model.aux.weight": np.ones(3, np.float32)}
    save(tmp_path / "in.ckpt", {"state_dict": prefixed("model.", bare) | extra})
    faults = from_torch.convert(tmp_path / "in.ckpt")[-1].faults
    assert len(faults) == 2
    assert all("--ignore leaves it out" in fault for fault in faults)
    report = from_torch.convert(tmp_path / "in.ckpt", ignored=["criterion.*", "model.aux.*"])[-1]
    assert not report.faults
    assert rows(report)["criterion.centers"] == ("ignored", "--ignore criterion.*")
    assert rows(report)["base.aux.weight"] == ("ignored", "--ignore model.aux.*")
    shown = run(
        "convert/from_torch.py", tmp_path / "in.ckpt", "--dry_run", "--ignore", "criterion.*", "--ignore", "*.aux.*"
    )
    assert "criterion.centers" in shown.stdout


@pytest.mark.parametrize("pattern", ["nothing.*", "base.blocks.*", "base.cls_token"])
def test_ignore_does_not_apply_to_tensors_of_the_model(tmp_path, bare, pattern):
    report = from_torch.convert(save(tmp_path / "in.pth", bare), ignored=[pattern])[-1]
    assert report.faults == [f"--ignore {pattern}: matches no unknown tensor"]


BESIDE = {
    "a NumPy scalar": np.float64(0.93), "a NumPy int": np.int64(3), "a NumPy bool": np.bool_(True),
    "a NumPy array": np.arange(5.0), "a large NumPy array": np.arange(50_000.0), "NumPy text": np.array(["a", "bc"]),
    "a NumPy dtype": np.dtype("float16"), "a NumPy type": np.float32, "a date": np.datetime64("2024-01-01"),
    "a path": pathlib.PurePosixPath("/data/people/of/many/parts/and/more/of/them"), "no path": pathlib.PurePosixPath(),
    "a Windows path": pathlib.PureWindowsPath("C:/data"), "a local path": pathlib.Path("runs"),
    # PyTorch is not installed, so these pickles are written by hand.
    "a device": b"ctorch\ndevice\n(X\x04\x00\x00\x00cudaK\x00tR", "a type": b"ctorch\nbfloat16\n",
    "a version": b"ctorch.torch_version\nTorchVersion\n(X\x03\x00\x00\x002.1t\x81",
    "options": argparse.Namespace(root=pathlib.PurePosixPath("a"), best=np.float32(1), classes={1, 2}),
    "a simple namespace": SimpleNamespace(a=1), "an ordered dict": collections.OrderedDict(a=np.float64(2)),
    "a default dict": collections.defaultdict(list, {"loss": [np.float32(1)]}), "a counter": collections.Counter("aab"),
    "a deque": collections.deque([1, 2], 5), "sets": [{1}, frozenset({2})], "numbers": [1j, range(3), b"x", 2**70],
    "a time": [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC), datetime.timedelta(1)],
    "odd keys": {0.5: 1, None: 2, True: 3, -1: 4, 2**65: 5, np.int64(3): 6},
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
def test_plain_data_beside_the_weights_are_ignored(tmp_path, bare, what):
    value = BESIDE[what]
    program = value if type(value) is bytes else pickle.dumps(value, 2)[2:-1]
    save(tmp_path / "in.pth", {"what": program, "model": bare})
    report = from_torch.convert(tmp_path / "in.pth")[-1]
    assert not report.faults
    assert rows(report)["what"] == ("ignored", "beside the weights, which are in 'model'")


def test_a_number_among_the_tensors_is_reported_and_left_out(tmp_path, bare):
    report = from_torch.convert(save(tmp_path / "in.pth", bare | {"epoch": 3, "best": np.float64(1)}))[-1]
    assert not report.faults
    assert rows(report)["epoch"] == ("ignored", "not a tensor but int")
    assert rows(report)["best"][1].startswith("not a tensor but numpy.")
