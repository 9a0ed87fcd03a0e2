"""The commands of docs/deploy.md run, and its ten lines for ONNX Runtime give the model's features."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from people import ROOT

from nrsrd_jax.data.images import decode
from nrsrd_jax.export.runtime import LAYOUTS, OnnxEmbedder

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/deploy.md").read_text()


def test_the_commands_run_and_the_lines_for_onnx_runtime_give_the_models_features(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for command in block.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
        verb = {"export": "export.__main__"}.get(sys.argv[0], sys.argv[0])
        importlib.import_module(f"nrsrd_jax.{verb}").main()
    assert "the nearest crop differs for 0 of 64" in capsys.readouterr().out
    lines = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    names: dict = {}
    exec(lines, names)
    assert capsys.readouterr().out.startswith("similarity 0.")
    crops = np.stack([decode(Path(path), (128, 64), "bilinear") for path in names["paths"]])
    # nrsrd export has compared the file's features with the model's own.
    own = OnnxEmbedder("night.onnx")(crops)
    np.testing.assert_allclose(names["features"], own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-5)


def test_the_page_lists_every_input_layout():
    assert set(re.findall(r"^\| `([a-z]\S+)` \|", PAGE, re.MULTILINE)) == set(LAYOUTS)
