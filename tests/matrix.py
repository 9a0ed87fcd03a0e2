"""Run a few quick tests with each Python at hand, and with the lowest and the newest supported packages.

  make test-matrix        or  python tests/matrix.py [3.11-lowest 3.13-newest …]

Each combination gets an environment in build/matrix. Every Python gets the pins of constraints.txt; the oldest also the
lowest versions that pyproject.toml allows, the newest also the newest. uv makes the environments; it downloads a Python
that this machine lacks, if it can, and otherwise lists it as not at hand.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PACKAGE = f"{ROOT}[export,search,tensorboard]"
TOOLS = ("pytest", "pytest-xdist", "hypothesis")
# The losses, the options, a train step against the official code, and a training with checkpoints and evaluation.
TESTS = (
    *("tests/test_losses.py", "tests/test_schedule.py", "tests/test_options.py", "tests/test_step.py"),
    "tests/test_training.py::test_a_student_starts_from_a_backbone_compiles_its_step_once_and_logs_every_term",
)
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
VERSIONS = f"import importlib.metadata as m; print(*(f'{{name}} {{m.version(name)}}' for name in {SHOWN}), sep=', ')"
INSTALL = {
    "pinned": ["--constraint", str(ROOT / "constraints.txt")],
    "lowest": ["--resolution", "lowest-direct"],
    "newest": ["--upgrade"],
}


def find_uv() -> str:
    """Return the command uv, installed into build/matrix if this machine has none."""
    own = ROOT / "build/matrix/uv/bin/uv"
    found = shutil.which("uv") or (str(own) if own.exists() else "")
    if not found:
        subprocess.run([sys.executable, "-m", "venv", own.parents[1]], check=True)
        subprocess.run([own.with_name("pip"), "install", "--quiet", "uv"], check=True)
    return found or str(own)


def has_python(uv: str, version: str) -> bool:
    """Return whether uv finds a Python, or can download it."""
    found = subprocess.run([uv, "python", "find", "--quiet", version], capture_output=True, check=False)
    return not (
        found.returncode and subprocess.run([uv, "python", "install", "--quiet", version], check=False).returncode
    )


def try_one(uv: str, name: str) -> str:
    """Install and test one combination, such as "3.11-lowest". Return what came of it."""
    python, _, packages = name.partition("-")
    home = ROOT / "build/matrix" / name
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", python, home], check=True)
    own = str(home / "bin/python")
    # In one call, the lowest versions would be taken for the tools as well.
    for wanted in ([*INSTALL[packages], "--editable", PACKAGE], TOOLS):
        if subprocess.run([uv, "pip", "install", "--quiet", "--python", own, *wanted], check=False).returncode:
            return "failed to install"
    versions = subprocess.run([own, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip()
    # These environments have no pyright, which a test of the options starts.
    command = [own, "-m", "pytest", "--numprocesses", "0", "-k", "not pyright", *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    return f"{'failed' if done.returncode else 'passed'} with {versions}"


def main() -> None:
    uv, names, missing = find_uv(), sys.argv[1:], []
    if not names:
        here = [python for python in PYTHONS if has_python(uv, python)]
        names = [f"{here[0]}-lowest", *(f"{python}-pinned" for python in here), f"{here[-1]}-newest"]
        missing = [python for python in PYTHONS if python not in here]
    results = {f"Python {python}": "not at hand" for python in missing} | {name: try_one(uv, name) for name in names}
    for name, result in results.items():
        print(f"{name}: {result}")
    sys.exit(any(result.startswith("failed") for result in results.values()))


if __name__ == "__main__":
    main()
