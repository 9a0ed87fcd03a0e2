"""Test that hostile or damaged weights files are refused without hanging or filling the memory."""

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import time

import pytest
from conftest import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from people import ROOT
from weight_files import FORMATS, FOUR, archive, described, refusal, safetensors, tensor

from nrsrd_jax.errors import InputError
from nrsrd_jax.weights import from_torch, tensor_pickle

pytestmark = pytest.mark.slow

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
    # OpenBLAS reserves addresses for each of its threads, which would count against the limit.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
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


@pytest.mark.parametrize("name", ["{}.cls_token", "{}.embeddings.cls_token", "a.{}.base.embeddings.cls_token"])
def test_a_file_with_thousands_of_vits_is_refused_quickly(tmp_path, name):
    path = safetensors(tmp_path / "a.safetensors", {name.format(i): described([0]) for i in range(20_000)})
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"it contains 20000 networks: .*, …; at most 64 are allowed") as caught:
        from_torch.convert(path)
    assert time.monotonic() - begin < 10
    assert len(str(caught.value)) < 300


def test_vits_are_counted_over_all_parts_of_a_file(tmp_path):
    for count, said in ((64, "choose one with --key"), (65, "it contains 65 networks: 0, 1, 2, 3, …; at most 64")):
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
    with pytest.raises(InputError, match=r"a name has \d+ characters; the limit is 1000: 0\.+…") as caught:
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
