"""Test that PyTorch files are read without PyTorch, and that hostile or damaged ones are refused and run no code."""

import codecs
import os
import pathlib
import pickle
import re
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from weight_files import FORMATS, FOUR, archive, described, plain, refusal, safetensors, tensor

from nrsrd_jax.errors import InputError
from nrsrd_jax.weights import from_torch, pickle_types, torch_file, weights_file
from nrsrd_jax.weights.pickle_types import Refused

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", FORMATS)
def test_both_formats_of_torch_are_read(name):
    """Read files that torch 2.13.0 saved: every type, views of one storage, a parameter, an argparse.Namespace."""
    content = plain(torch_file.load(GOLDEN / f"{name}.pth")[0])
    state, base = content.pop("state"), np.arange(12, dtype=np.float32).reshape(3, 4)
    arguments = {"arch": "vit_small", "lr": 0.5, "sizes": [224, 112], "flag": True, "nothing": None}
    assert content == {"args": arguments, "epoch": 100}
    expected = {
        "whole": base, "transposed": base.T, "window": base[1:, ::2], "scalar": np.array(7),
        "empty": np.zeros((0, 2), np.float32), "half": np.array([0.5, -2], np.float16),
        "brain": np.array([1.5, 3], ml_dtypes.bfloat16), "parameter": np.array([1, 2], np.float32),
    }  # fmt: skip
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        np.testing.assert_array_equal(state[key], value)


def test_saved_tensors_are_read_again_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        # This tensor is not contiguous.
        "a.weight": rng.normal(size=(3, 5)).astype(np.float32).T,
        "scalar": np.array(2**40), "empty": np.zeros((0, 3), np.float32), "half": rng.normal(size=7).astype(np.float16),
        "brain": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16), "ünïcode": np.zeros(1, np.float32),
    }  # fmt: skip
    torch_file.save(tmp_path / "a.pth", tensors, wrapper="teacher", notes="{}")
    content, notes = torch_file.load(tmp_path / "a.pth")
    assert notes == "{}"
    assert list(content) == ["teacher"]
    for name, value in plain(content["teacher"]).items():
        assert value.dtype == tensors[name].dtype
        assert value.tobytes() == tensors[name].tobytes()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_that_calls_a_function_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps({"w": Payload()}, 2)
    legacy = b"".join(pickle.dumps(x, 2) for x in (torch_file.LEGACY_MAGIC, 1001, {"little_endian": True})) + program
    (tmp_path / "legacy.pth").write_bytes(legacy)
    named = f"'{os.mkdir.__module__}.mkdir'"
    for path in (archive(tmp_path / "zip.pth", program), tmp_path / "legacy.pth"):
        with pytest.raises(Refused, match=re.escape(named)):
            torch_file.load(path)
    assert not Path("executed").exists()


@pytest.mark.parametrize("asked", [
    b"c__builtin__\neval\n(X\x01\x00\x00\x001tR.", b"cnumpy.core.multiarray\nscalar\n)R.",
    b"ccopyreg\n_reconstructor\n.", b"ctorch\nload\n)R.", b"ctorch._utils\n__builtins__\n.",
    b"\x8c\x02os\x8c\x06system\x93.", b"cos\nsystem\n)\x81.",
    b"carparse.Namespace\nx\n.", b"}(X\x01\x00\x00\x00a}X\x01\x00\x00\x00bubb.", b"(ios\nsystem\n.", b"\x82\x01.",
    b"]]a}]s.", b"}\x85}s.", b"\x8a\x01\x05Q.", b"cargparse\nNamespace\n]R.", b"}]b.",
])  # fmt: skip
def test_unknown_instructions_and_names_are_refused(tmp_path, asked):
    assert refusal(archive(tmp_path / "a.pth", b"\x80\x04" + asked))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"offset": 1}, "in 4 numbers"), ({"shape": (5,)}, "in 4 numbers"), ({"strides": (2,)}, "in 4 numbers"),
    ({"strides": (-1,), "offset": 3}, "not a natural number"), ({"offset": -1}, "not a natural number"),
    ({"shape": (2**40,), "strides": (0,)}, "in 4 numbers"),
    ({"shape": (0, 2**40, 2**40), "strides": (0, 0, 0)}, "in 4 numbers"),
    ({"shape": (2**70,)}, "not a natural number"), ({"shape": (1,) * 9, "strides": (1,) * 9}, "9 dimensions"),
    ({"shape": (2, 2)}, "2 dimensions and 1 strides"), ({"count": 5}, "has 16 bytes; 5 × float32 take 20"),
    ({"count": 3}, "has 16 bytes"), ({"count": 2**47}, "has 16 bytes"), ({"key": "1"}, "storage '1' is not in"),
    ({"key": "../data/0"}, "is not in the archive"), ({"key": "/etc/passwd"}, "is not in the archive"),
    ({"kind": "QInt8Storage"}, "torch.QInt8Storage"), ({"kind": "load"}, "torch.load"),
])  # fmt: skip
def test_a_tensor_must_lie_inside_its_storage(tmp_path, wrong, message):
    good = torch_file.load(archive(tmp_path / "good.pth", tensor(), FOUR))[0]
    np.testing.assert_array_equal(np.asarray(good["w"]), np.arange(4))
    with pytest.raises(Refused, match=message):
        torch_file.load(archive(tmp_path / "bad.pth", tensor(**wrong), FOUR))


def test_compressed_doubled_overlapping_and_damaged_records_are_refused(tmp_path):
    # A compressed record may be a zip bomb.
    with pytest.raises(Refused, match="compressed"):
        torch_file.load(archive(tmp_path / "a.pth", tensor(), [("archive/data/0", bytes(10**8))], zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = archive(tmp_path / "b.pth", tensor(), FOUR * 2)
    with pytest.raises(Refused, match="two records"):
        torch_file.load(path)
    with pytest.raises(Refused, match="not little-endian"):
        torch_file.load(archive(tmp_path / "c.pth", tensor(), [*FOUR, ("archive/byteorder", b"big")]))
    with pytest.raises(Refused, match="0 records"):
        torch_file.load(without_folder(tmp_path / "d.pth"))
    data = archive(tmp_path / "f.pth", tensor(), FOUR).read_bytes()
    # Make the central entry of data/0 point to data.pkl.
    second = data.rindex(b"PK\x01\x02")
    (tmp_path / "f.pth").write_bytes(data[: second + 42] + struct.pack("<I", 0) + data[second + 46 :])
    with pytest.raises(Refused, match="overlaps"):
        torch_file.load(tmp_path / "f.pth")
    flipped = bytearray(data)
    flipped[data.index(FOUR[0][1]) + 5] ^= 1
    (tmp_path / "g.pth").write_bytes(flipped)
    with pytest.raises(Refused, match="checksum"):
        np.asarray(torch_file.load(tmp_path / "g.pth")[0]["w"])


def without_folder(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", tensor())
    return path


@pytest.mark.parametrize(("content", "message"), [
    (b"", "empty"), (b"<!DOCTYPE html><html>", "web page"), (b"\x89PNG\r\n", "not a PyTorch checkpoint"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (pickle.dumps({"a": 1}, 2), "not a PyTorch"),
    (b"PK\x03\x04 and nothing", "damaged"), (b"\x80", "damaged"),
])  # fmt: skip
def test_the_error_says_what_another_kind_of_file_is(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(Refused, match=message):
        torch_file.load(tmp_path / "a.pth")


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, name):
    """Truncate the file after it was opened. If it were memory-mapped, the process would die of a bus error."""
    path = tmp_path / "a.pth"
    path.write_bytes((GOLDEN / f"{name}.pth").read_bytes())
    content = torch_file.load(path)[0]
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(Refused, match="the file changed while it was read"):
        plain(content)


def test_objects_beside_the_weights_become_placeholders_and_import_nothing(tmp_path):
    """Check that each placeholder names the type of its object."""
    for value, name in (
        (np.float64(2), "numpy._core.multiarray.scalar"), (np.arange(3), "numpy._core.multiarray._reconstruct"),
        (np.dtype("f4"), "numpy.dtype"), (pathlib.PurePosixPath("/a/b"), "pathlib.PurePosixPath"), ({1, 2}, "set"),
    ):  # fmt: skip
        found = torch_file.load(archive(tmp_path / "a.pth", pickle.dumps(value, 2)))[0]
        assert isinstance(found, pickle_types.Inert)
        assert found.name.endswith(name)
    options = torch_file.load(
        archive(tmp_path / "a.pth", b"\x80\x02cyacs.config\nCfgNode\n)\x81X\x01\x00\x00\x00aK\x01s.")
    )
    assert options[0] == {"a": 1}
    assert "yacs" not in sys.modules


@pytest.mark.parametrize("asked", [
    b"cnumpy\nndarray\n)R.", b"ctorch\nfloat32\n)R.", b"c__builtin__\nlist\n)R.", b"ctorch\ndevice\n)R.",
    b"cnumpy.core.multiarray\n_reconstruct\nNR.", b"c__builtin__\ngetattr\n.", b"cpathlib\nos\n.",
    b"cdatetime\nsys\n.", b"c_codecs\nlookup\n.",
])  # fmt: skip
def test_placeholders_allow_no_other_names_and_calls(tmp_path, asked):
    assert refusal(archive(tmp_path / "a.pth", b"\x80\x04" + asked))


def test_dictionary_keys_become_text_or_small_integers(tmp_path):
    content = {2**32 - 1: 0, 2**32: 1, -1: 2, 0.5: 3, None: 4, "a": 5, np.int64(7): 6}
    found = torch_file.load(archive(tmp_path / "a.pth", pickle.dumps(content, 2)))[0]
    assert list(found)[:6] == [2**32 - 1, str(2**32), "-1", "0.5", "None", "a"]
    assert list(found.values()) == list(content.values())


@pytest.mark.parametrize(("shape", "message"), [
    ([1] * 9, "cls_token has 9 dimensions; at most 8 are supported"), ([1] * 100, "cls_token has 100 dimensions"),
    ([2**31, 0], "cls_token has shape .* too large"), ([2**63, 0], "cls_token has shape .* too large"),
    ([0, 2**30, 2**30, 2**30], "cls_token has shape .* too large"), ([1] * 8, "unknown kind"),
    ([2**31 - 1, 0], "unknown kind"), ([0, 0, 0], "unknown kind"),
])  # fmt: skip
def test_an_impossible_shape_is_refused(tmp_path, shape, message):
    size, data = (0, b"") if 0 in shape else (4, b"abcd")
    path = safetensors(tmp_path / "a.safetensors", {"cls_token": described(shape, 0, size)}, data)
    with pytest.raises(InputError, match=message):
        from_torch.convert(path)


def test_safetensors_with_null_for_metadata_are_read(tmp_path):
    path = safetensors(tmp_path / "a.safetensors", {"__metadata__": None, "a": described([1], 0, 4)}, b"\0\0\0\0")
    content, notes, _ = weights_file.load(path)
    assert (list(content), notes) == (["a"], "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("space", ["", "\r\n "])
def test_an_index_of_shards_is_read_in_the_encodings_of_windows(tmp_path, encoding, space):
    torch_file.save(tmp_path / "a.bin", {"a": np.ones(1, np.float32)})
    mark = codecs.BOM_UTF16_BE * (encoding == "utf-16-be")
    (tmp_path / "m.index.json").write_bytes(mark + f'{space}{{"weight_map": {{"a": "a.bin"}}}}'.encode(encoding))
    assert list(weights_file.load(tmp_path / "m.index.json")[0]) == ["a"]
