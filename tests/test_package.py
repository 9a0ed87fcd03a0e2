"""Test that the wheel contains every file that the commands need, and works outside a clone."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from people import ROOT, write_night

pytestmark = pytest.mark.slow

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Build the source distribution from a copy of this tree, so that the build writes nothing into the clone."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("nrsrd_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    program = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", program], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist):
    """Build the wheel from the source distribution, which therefore lacks no file."""
    folder = sdist.parent
    # setuptools is among the test dependencies, so nothing is downloaded.
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*pip, "--wheel-dir", folder, sdist], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def files_of(folders) -> set[str]:
    """Return the files to distribute below each folder, with the folder's name in front."""
    return {
        f"{name}/{path.relative_to(folder)}"
        for name, folder in folders.items()
        for path in folder.rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js")
    }


def test_the_wheel_holds_every_file_of_the_package_and_every_config(wheel):
    expected = files_of({"nrsrd_jax": ROOT / "nrsrd_jax", "nrsrd_jax/configs": ROOT / "configs"})
    metadata = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    expected |= {f"nrsrd_jax-{VERSION}.dist-info/{name}" for name in metadata}
    assert set(wheel.namelist()) == expected


def test_the_source_distribution_holds_the_package_and_neither_tests_nor_pictures(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in names if name.startswith("nrsrd_jax.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    expected = files_of({"nrsrd_jax": ROOT / "nrsrd_jax", "configs": ROOT / "configs"})
    assert names - made == expected | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_installed_command_finds_the_shipped_configs(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    (scripts,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"nrsrd = nrsrd_jax.cli:main" in wheel.read(scripts)
    write_night(tmp_path / "night")
    # The first line of the output shows that this is the package of the wheel and not the clone's.
    program = "import sys; from nrsrd_jax.cli import main; print(sys.modules['nrsrd_jax'].__file__); main()"
    options = ["--config.data.root=night", "--config.model.backbone=vit_tiny", "--config.train.batch_size=16"]
    done = subprocess.run(
        [sys.executable, "-c", program, "check", "--config", "night600:baseline", *options],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(tmp_path / "site/nrsrd_jax/__init__.py")
    assert lines[-1].startswith("0 faults, ")
