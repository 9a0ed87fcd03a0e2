"""README.md, the tutorials and the notebook: their commands run, and their links lead somewhere."""

import json
import re
import shlex
import shutil
import urllib.parse

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from people import ROOT, run, small_model, write_images, write_night

from nrsrd_jax.checkpoint import save_weights

pytestmark = pytest.mark.slow

INDEX = (ROOT / "docs/index.md").read_text(encoding="utf-8")
TUTORIALS = re.findall(r"^- \[.+?\]\((\S+\.md)\)", INDEX.split("## Tutorials")[1].split("\n## ")[0], re.MULTILINE)
PAGES = {"README.md": ROOT / "README.md"} | {name: ROOT / "docs" / name for name in TUTORIALS}
# Pages whose sh blocks a test runs; tests/test_own_crops.py runs those of own-crops.md.
RUN = ("own-data.md", "own-crops.md")
MARKDOWN = [
    *ROOT.glob("*.md"),
    *(path for folder in ("docs", "demo", "benchmarks") for path in ROOT.glob(f"{folder}/*.md")),
]
BLOCK = re.compile(r"(?:^ *(<!-- not run by .+? -->)\n)?^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# A run of seconds on a few small images. tests/test_commands.py has the same options, so the compiled step is shared.
SMALL = ("image_size=32,16", "model.backbone=vit_tiny", "model.depth=1", "train.batch_size=16", "train.instances=2")
SMALL += ("train.epochs=2", "data.cache_dir=cache")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """Return the fenced blocks of a page: (the mark in front, the language, the text)."""
    return BLOCK.findall(PAGES[name].read_text(encoding="utf-8"))


def commands(name: str) -> list[str]:
    """Return the commands of a page that tests run."""
    return [line for _, language, text in blocks(name) if language == "sh" for line in text.splitlines()]


@pytest.mark.parametrize("name", PAGES)
def test_each_shell_block_is_run_by_a_test_or_says_why_not(name):
    shells = [(mark, language) for mark, language, _ in blocks(name) if language in ("", "sh")]
    assert shells
    assert all((language == "sh") != bool(mark) for mark, language in shells)
    assert name in (*RUN, "README.md") or not commands(name)


def test_each_command_of_the_readme_stands_in_a_tutorial_that_a_test_runs():
    assert set(commands("README.md")) <= {command for name in RUN for command in commands(name)}
    # A README without commands would pass the line above.
    assert len(commands("README.md")) >= 6


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page):
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [urllib.parse.unquote(link.partition("#")[0]) for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if not re.match(r"\w+:", link) and not (page.parent / link).exists()]
    assert not missing


def test_index_lists_every_page():
    listed = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\((\S+?)\)", INDEX)}
    assert listed >= {*ROOT.glob("docs/*.md"), *ROOT.glob("docs/notebooks/*.ipynb")} - {ROOT / "docs/index.md"}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_commands_for_own_labelled_data_run(tmp_path, monkeypatch):
    """On a few images, and with a small network. The lines for Python give features of them."""
    write_night(tmp_path / "demo/night")
    write_images(tmp_path / "demo/aux", range(200, 208))
    options = [f"--config.{option}" for option in SMALL]
    for command in commands("own-data.md"):
        command = re.sub(r"\bDIR\b", "demo/night", re.sub(r"\bBRIGHT\b", "demo/aux", command))
        _, verb, *arguments = shlex.split(command)
        if verb == "compare":  # The other run would take the time of another training.
            shutil.copytree(tmp_path / "runs/mine", tmp_path / "runs/mine-nrsrd")
        # The data have fewer people than a batch of the default size takes.
        added = options if verb in ("train", "check") else []
        shown = run("-m", f"nrsrd_jax.{verb}", *arguments, *added, cwd=tmp_path).stdout
        assert shown.strip()
    assert (tmp_path / "out/index.html").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "compare.json").read_text())["differences"]) == 1
    monkeypatch.chdir(tmp_path)
    (lines,) = [text for _, language, text in blocks("own-data.md") if language == "python"]
    names: dict = {}
    exec(lines, names)
    assert names["features"].shape == (4, 192)


def test_the_check_of_imported_weights_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "weights/market", *small_model(1, classes=4), {})
    lines = (ROOT / "docs/weights.md").read_text(encoding="utf-8").split("## How to check")[1]
    names: dict = {}
    for _, language, text in BLOCK.findall(lines):
        if language == "python":
            exec(text, names)
    assert capsys.readouterr().out.startswith("(16, 192) (16, 192) (16, 192)\n{'real': (16, 4)}\n")
    assert np.isfinite(names["metrics"]["loss"])


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Outside a clone, from a file of weights and a folder of crops."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    matplotlib.use("Agg")
    notebook = json.loads((ROOT / "docs/notebooks/first-look.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for cell in cells:
        exec(cell, names)
    plt.close("all")
    assert names["gallery"].shape == (344, 192)
    assert sum(names["first"]) > 40
    assert names["attention"].shape == (4, 8, 4)
