"""What all tests share: eight CPU devices, quick compiles, fixtures, and which test files are slow."""

import functools
import importlib
import lzma
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import quick_steps
import quick_xla
from people import small_config, small_model, write_night

from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.description import Description
from nrsrd_jax.weights import from_torch, torch_file

os.environ["XDG_CACHE_HOME"] = "/dev/null"  # no test writes to a home folder
os.environ["MPLCONFIGDIR"] = os.path.join(tempfile.gettempdir(), "nrsrd-jax-matplotlib")  # otherwise it warns
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Compiling would take most of the tests' time, so processes share what they compiled in this folder.
COMPILED = os.environ.get("JAX_COMPILATION_CACHE_DIR") or tempfile.mkdtemp(prefix="nrsrd-jax-compiled-")
quick_xla.switch_on(COMPILED)
quick_steps.switch_on()


# Tests that train, start processes or compile whole models. They begin first, the longest of them at the front, so that
# no worker waits for the last one; `make quick` leaves them out.
SLOW = (
    *(
        "training",
        "pretraining",
        "processes",
        "dino",
        "convert",
        "convert_command",
        "reliability",
        "page",
        "step_cost",
        "ablation",
        "models",
        "step",
    ),
    *(
        "attention",
        "analysis",
        "own_crops",
        "gallery",
        "search",
        "extending",
        "scoring",
        "run_folder",
        "standardize",
        "spec",
    ),
    *("docstrings", "compare", "holdout", "readers", "file_names", "sweep", "report", "check", "torch_file"),
    *("hostile_weights", "commands", "data", "lowlight", "result", "crops_page", "package", "jobs", "fuzz", "options"),
    *("weights", "foreign_weights", "calibrate", "calibration"),
    *("clustering", "cluster_command", "export", "export_features", "deploy", "search_order", "eval_gallery"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, len(SLOW)))
    for item in items:
        if item.path.stem in order:
            item.add_marker("slow")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(COMPILED, ignore_errors=True)


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def optimised():
    """Compile as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def golden():
    """golden("losses") -> the arrays of tests/golden/losses.npz."""
    return lambda name: np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """official("vit_tiny_ics") -> our description and variables of the official model, as from_torch.py makes them."""

    @functools.cache
    def load(name: str) -> tuple[Description, dict]:
        path = GOLDEN / f"{name}.pth"
        if not path.exists():
            path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
            with lzma.open(GOLDEN / f"{name}.npz.xz") as file:
                torch_file.save(path, dict(np.load(file, allow_pickle=False)))
        description, variables, _, report = from_torch.convert(path)
        assert not report.faults
        return description, variables

    return load


@pytest.fixture(scope="session")
def official_weights(official):
    """official_weights("vit_tiny_ics") -> our variables with the official model's weights."""
    return lambda name: official(name)[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_night(tmp_path_factory.mktemp("place") / "night").parent


@pytest.fixture(scope="module")
def finished(place):
    """A run of three epochs on one device, saved after each."""
    from nrsrd_jax.training import train

    train(small_config(place, train__epochs=3, model__depth=1), place / "finished", jax.devices()[:1])
    return place / "finished"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A small model whose weights are random."""
    path = tmp_path_factory.mktemp("models") / "model"
    save_weights(path, *small_model(), {})
    return path


@pytest.fixture
def nrsrd(monkeypatch, capsys):
    """nrsrd("embed", …) -> what the command prints."""

    def call(verb, *arguments):
        module = importlib.import_module(f"nrsrd_jax.{verb}")
        monkeypatch.setattr(sys, "argv", [f"nrsrd {verb}", *map(str, arguments)])
        capsys.readouterr()
        module.main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        reason = "no chromium is installed to open the report with: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags = [*options.split(), "--disable-component-update", "--disable-sync"]
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
