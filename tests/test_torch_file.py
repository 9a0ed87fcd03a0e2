"""Test that PyTorch files are read without PyTorch, and that hostile or damaged ones are refused and run no code."""

import codecs
import contextlib
import json
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nrsrd_jax.errors import InputError
from nrsrd_jax.weights import from_torch, tensor_pickle, torch_file, weights_file
from nrsrd_jax.weights.tensor_pickle import Refused, Tensor

GOLDEN = Path(__file__).parent / "golden"
FORMATS = ["plain_zip", "plain_legacy"]


def plain(value):
    """Replace the tensors of loaded content by arrays."""
    if isinstance(value, Tensor):
        return np.asarray(value)
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


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


def archive(path, content, records=(), compression=zipfile.ZIP_STORED):
    """Write a zip checkpoint with a given pickle and other records."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for name, data in records:
            file.writestr(name, data)
    return path


def tensor(kind="FloatStorage", key="0", count=4, offset=0, shape=(4,), strides=(1,), legacy=False):
    """Return the pickle instructions for {"w": a tensor}. Its numbers may be wrong."""
    parts = [torch_file._plain(part) for part in ("w", "storage", key, "cpu", count, offset, shape, strides)]
    name, storage, key, cpu, count, offset, shape, strides = parts
    end = b"N" if legacy else b""
    storage = b"(" + storage + f"ctorch\n{kind}\n".encode() + key + cpu + count + end + b"tQ"
    view = offset + shape + strides + b"\x89N"
    return b"\x80\x02}" + name + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."


FOUR = [("archive/data/0", np.arange(4, dtype=np.float32).tobytes())]


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
        assert isinstance(found, tensor_pickle.Inert)
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


def refusal(path):
    """Return why a file is refused, or "" if it is read."""
    try:
        plain(torch_file.load(path)[0])
    except Refused as error:
        return str(error)
    return ""


BOMBS = {
    # A C unpickler would allocate two billion entries.
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "nested tuple as a key": b"\x80\x02}" + b")" + b"\x85" * 10**6 + b"Ns.",
    "keys that collide": b"\x80\x02}("
    + b"".join(pickle.dumps((2**61 - 1) * i, 2)[2:-1] + b"N" for i in range(1, 10**5)) + b"u.",
    "long arguments, many times": b"\x80\x02](" + b"N" * 10**5 + b"tq\x00("
    + b"cpathlib\nPosixPath\nh\x00R" * 10**5 + b"t.",
    "nested": b"\x80\x02" + b"(" * 900_000 + b"t" * 900_000 + b".",
    "text": b"\x80\x02\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "many": b"\x80\x02](" + b"}" * 4 * 10**6 + b"e.",
    "number": b"\x80\x02\x8b" + struct.pack("<I", 10**8) + bytes(10**8) + b".",
    "copied by torch.Size": b"\x80\x02](" + b"N" * 10**5 + b"eq\x00(" + b"ctorch\nSize\nh\x00\x85R" * 10**4 + b"t.",
    "copied as arguments": b"\x80\x02(" + b"N" * 10**5 + b"tq\x00(" + b"ctorch\nSize\nh\x00R" * 10**4 + b"t.",
    "hashed by OrderedDict": b"\x80\x02)" + b"\x85" * 10**6 + b"q\x00ccollections\nOrderedDict\n"
    + b"](h\x00K\x01\x86e\x85R.",
    "copied by build": b"\x80\x02}(" + b"".join(b"M%sN" % struct.pack("<H", i) for i in range(50000)) + b"uq\x00("
    + b"cargparse\nNamespace\n)\x81h\x00b" * 10**4 + b"t.",
}  # fmt: skip
# The other bombs are harmless. The reason shows that each is refused by its own guard.
REASONS = {
    "nested tuple as a key": "a dictionary key that is neither text nor a number",
    "text": "a text of 4611686018427387904 bytes",
    "many": "more than 2000000 instructions",
    "number": "a text of 100000000 bytes",
    "copied by torch.Size": "a torch.Size that is not a short tuple of numbers",
    "copied as arguments": "calls torch.Size with 100000 arguments",
    "hashed by OrderedDict": "_ordered_dict() takes 0 positional arguments",
    "copied by build": "more than 2000000 instructions",
}
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from nrsrd_jax.weights import torch_file
try:
    torch_file.load(sys.argv[1])
except torch_file.Refused as error:
    print("refused:", error)
else:
    print("read")
"""


@pytest.mark.parametrize("name", BOMBS)
def test_no_pickle_hangs_or_fills_the_memory(name, tmp_path):
    """Load each bomb in a process that may use 1 GiB of addresses and 30 seconds."""
    pytest.importorskip("resource")
    path = archive(tmp_path / "a.pth", BOMBS[name])
    environment = os.environ | {"PYTHONPATH": str(Path(torch_file.__file__).parent), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: " if name in REASONS else "read"), done.stdout
    assert REASONS.get(name, "") in done.stdout
    assert len(done.stdout) < 300


def test_an_error_message_does_not_print_a_huge_value(tmp_path):
    """Use a few bytes that give a tuple of 2^60 elements, which would take years to print."""
    value = ()
    for _ in range(60):
        value = (value, value)
    doubled = pickle.dumps(value, 2)[2:-1]
    for content in (b"\x80\x04" + doubled + doubled + b"\x93.", tensor().replace(b"K\x00", doubled, 1)):
        assert 0 < len(refusal(archive(tmp_path / "a.pth", content, FOUR))) < 300


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_and_truncated_files_are_read_or_refused_cleanly(name, tmp_path, data):
    original = (GOLDEN / f"{name}.pth").read_bytes()
    mutated = bytearray(original[: data.draw(st.integers(0, len(original)))] if data.draw(st.booleans()) else original)
    for _ in range(data.draw(st.integers(0, 8))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.pth").write_bytes(mutated)
    refusal(tmp_path / "a.pth")


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_random_pickles_are_read_or_refused_cleanly(program):
    with contextlib.suppress(ValueError, LookupError, TypeError):
        tensor_pickle.run(tensor_pickle.Cursor(memoryview(b"\x80\x02" + program + b".")))


def safetensors(path, header, data=b""):
    """Write a safetensors file. Its header may be wrong."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def described(shape, begin=0, size=0, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, begin + size]}


@pytest.mark.parametrize("name", ["{}.cls_token", "{}.embeddings.cls_token", "a.{}.base.embeddings.cls_token"])
def test_a_file_with_thousands_of_vits_is_refused_quickly(tmp_path, name):
    path = safetensors(tmp_path / "a.safetensors", {name.format(i): described([0]) for i in range(20_000)})
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"it holds 20000 networks: .*, …; no more than 64 are read") as caught:
        from_torch.convert(path)
    assert time.monotonic() - begin < 10
    assert len(str(caught.value)) < 300


def test_vits_are_counted_over_all_parts_of_a_file(tmp_path):
    for count, said in ((64, "choose one with --key"), (65, "it holds 65 networks: 0, 1, 2, 3, …; no more than 64")):
        parts = b"".join(item(str(i), b"}" + item("cls_token")) for i in range(count))
        with pytest.raises(InputError, match=said):
            from_torch.convert(archive(tmp_path / "a.pth", b"\x80\x02}" + parts + b".", FOUR))


def item(name, value=None):
    value = value or tensor().partition(b"w")[2].removesuffix(b"s.")
    return b"X" + struct.pack("<I", len(name)) + name.encode() + value + b"s"


@pytest.mark.parametrize("where", ["a tensor", "a number beside tensors", "a list"])
def test_a_huge_name_is_refused_quickly(tmp_path, where):
    names = [f"{i}{'.' * 2**20}cls_token" for i in range(20)]
    values = {"a tensor": (), "a number beside tensors": (b"K\x01",), "a list": (b"]",)}
    content = b"\x80\x02}" + b"".join(item(name, *values[where]) for name in names) + item("cls_token") + b"."
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"a name in it has \d+ characters, and may have 1000: 0\.+…") as caught:
        from_torch.convert(archive(tmp_path / "a.pth", content, FOUR))
    assert time.monotonic() - begin < 10
    assert len(str(caught.value)) < 300


def test_many_tensors_that_are_only_kept_do_not_take_quadratic_time(tmp_path):
    header = {f"x{i}.num_batches_tracked": described([1], i, 1, "U8") for i in range(60_000)}
    header["base.cls_token"] = described([1, 1, 192], 60_000, 768)
    header["base.pos_embed"] = described([1, 2, 192], 60_768, 1536)
    begin = time.monotonic()
    assert len(from_torch.convert(safetensors(tmp_path / "a.safetensors", header, bytes(62_304)))[2]) == 60_000
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("shape", "message"), [
    ([1] * 9, "cls_token has 9 dimensions; no more than 8 are read"), ([1] * 100, "cls_token has 100 dimensions"),
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
