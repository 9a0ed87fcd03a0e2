"""Settings and fixtures of all tests: eight CPU devices, and quick compilation."""

import functools
import importlib
import lzma
import os
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
import quick_steps
import quick_xla
from people import ABLATION_CONFIG, PATTERN, small_config, small_model, write_images, write_night
from weight_files import backbone_tensors, reid_tensors

from nrsrd_jax.checkpoint import save_weights
from nrsrd_jax.description import Description
from nrsrd_jax.weights import from_torch, torch_file

# Tests must not write to the home folder. Matplotlib needs a folder of its own, or it warns.
os.environ["XDG_CACHE_HOME"] = "/dev/null"
os.environ["MPLCONFIGDIR"] = os.path.join(tempfile.gettempdir(), "nrsrd-jax-matplotlib")
jax.config.update("jax_platforms", "cpu")
# Eight devices on any machine, so that sharding and padding to the devices are tested without an accelerator.
jax.config.update("jax_num_cpu_devices", 8)

# How long an example takes depends on the load of the machine, so no test may fail by it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Compilation would take most of the tests' time, so all processes share this cache of compiled programs. The workers of
# pytest-xdist inherit the variable, which `switch_on` sets.
GIVEN = os.environ.get("JAX_COMPILATION_CACHE_DIR")
COMPILED = GIVEN or tempfile.mkdtemp(prefix="nrsrd-jax-compiled-")
quick_xla.switch_on(COMPILED)
quick_steps.switch_on()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Slow files run first. The quick ones after them fill the time in which one worker would wait for the other.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_unconfigure() -> None:
    # Only the main process has made a folder, and it ends last. A developer's own cache must stay.
    if not GIVEN:
        shutil.rmtree(COMPILED, ignore_errors=True)


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def optimised():
    """Compile with all of XLA's optimisations, as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def golden():
    """Return a function: golden("losses") gives the arrays of tests/golden/losses.npz."""
    return lambda name: np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """Return a function: official("vit_tiny_ics") gives the description and variables that from_torch.py makes."""

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
    """Return a function: official_weights("vit_tiny_ics") gives our variables with the official model's weights."""
    return lambda name: official(name)[1]


# Tests copy what they change, so all files share the data set and the run.
@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Return a folder with a small data set, `night`, in Night600's layout."""
    return write_night(tmp_path_factory.mktemp("place") / "night").parent


@pytest.fixture(scope="session")
def finished(place):
    """Return a run of six epochs on one device, with the last two of its checkpoints, one of each epoch."""
    from nrsrd_jax.training import train

    train(small_config(place, train__epochs=6), place / "finished", jax.devices()[:1])
    return place / "finished"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Return a checkpoint of a small model with random weights."""
    path = tmp_path_factory.mktemp("models") / "model"
    save_weights(path, *small_model(), {})
    return path


@pytest.fixture
def nrsrd(monkeypatch, capsys):
    """Return a function: nrsrd("embed", …) runs a command and returns what it prints."""

    def call(verb, *arguments):
        module = importlib.import_module(f"nrsrd_jax.{verb}")
        monkeypatch.setattr(sys, "argv", [f"nrsrd {verb}", *map(str, arguments)])
        capsys.readouterr()
        module.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def crops(tmp_path):
    """Write twelve crops of three people from two cameras."""
    write_images(tmp_path / "crops", range(3))
    return tmp_path / "crops"


@pytest.fixture
def gallery(nrsrd, crops, model, tmp_path):
    """Embed the crops, with persons and cameras from their names, and return the gallery."""
    nrsrd("embed", crops, "--model", model, "--gallery", tmp_path / "g", "--pattern", PATTERN)
    return tmp_path / "g"


@pytest.fixture(scope="session")
def whole():
    """Return the tensors of a small Re-ID model under the official names, and its hash."""
    return reid_tensors()


@pytest.fixture(scope="session")
def bare(whole):
    """Return the tensors of that model's backbone alone, under timm's names."""
    return backbone_tensors(whole[0])


@pytest.fixture
def ablation_file(tmp_path):
    """Write a config file with the variants of table 2 and a vit_tiny, on small data, and return its path."""
    write_night(tmp_path / "night")
    write_images(tmp_path / "aux", range(50, 58))
    path = tmp_path / "config.py"
    path.write_text(ABLATION_CONFIG.format(place=str(tmp_path)))
    return str(path)


@pytest.fixture(scope="session")
def chromium():
    """Start Chromium. Without it, tests that need it fail in CI and are skipped elsewhere."""
    path = shutil.which("chromium")
    if path is None:
        reason = "Chromium, which opens the report, is not installed; install it: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    # Chromium's sandbox does not start as root, and tests in a container often run as root. The other flags keep
    # Chromium from connecting to servers by itself.
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags = [*options.split(), "--disable-component-update", "--disable-sync"]
    # Only tests of pages need Playwright, and the environments of matrix.py lack it.
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
