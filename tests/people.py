"""Small data sets, models and commands for the tests. Each identity has its own colour, which a model can learn."""

import functools
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import warm
from PIL import Image

from nrsrd_jax.config import flatten, get_config
from nrsrd_jax.description import Description
from nrsrd_jax.models import initialise

ROOT = Path(__file__).parent.parent
# The person and the camera in the names of `write_images`, for nrsrd embed --pattern.
PATTERN = r"^(?P<person>\d+)_(?P<camera>c\d+)"
# A config file for ablations, whose trainings may run in processes of their own.
ABLATION_CONFIG = """
import os
import quick_xla
from people import small_config
from pathlib import Path

quick_xla.switch_on(os.environ["JAX_COMPILATION_CACHE_DIR"])

def get_config(variant="nrsrd"):
    return small_config(Path({place!r}), variant, train__epochs=1)
"""


def write_images(folder: Path, identities, cameras=(1, 2), frames=2, seed=0, size=(40, 20), suffix=".jpg") -> None:
    """Write noisy crops in each identity's colour, named IDENTITY_cCAMERA_FRAME."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for identity in identities:
        # The colour depends on the identity alone, so that a person has it in every folder, whatever `seed` is.
        colour = np.random.default_rng(identity).integers(0, 256, 3)
        for camera in cameras:
            for frame in range(frames):
                noise = rng.integers(-20, 20, (*size, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{identity:04d}_c{camera}_{frame:06d}{suffix}")


def write_night(root: Path, identities=8, frames=2) -> Path:
    """Write a data set in Night600's layout to `root` and return it."""
    write_images(root / "bounding_box_train", range(identities), frames=frames)
    write_images(root / "query", range(100, 104), cameras=(1,), frames=1)
    write_images(root / "bounding_box_test", range(100, 106), frames=1)
    return root


def small_config(tmp_path: Path, variant: str = "baseline", **options):
    """Return the config of a run of seconds on `tmp_path`/night and `tmp_path`/aux.

    Options are written with two underscores for the dot: train__epochs=1.
    """
    config = get_config(variant)
    config.update_from_flattened_dict(
        {
            "image_size": (32, 16),
            "data.root": str(tmp_path / "night"),
            "data.cache_dir": str(tmp_path / "cache"),
            "aux.bright_root": str(tmp_path / "aux"),
            "teacher.checkpoint": str(tmp_path / "teacher"),
            "model.backbone": "vit_tiny",
            "model.depth": 1,
            "optim.name": "adamw",
            "optim.lr": 1e-3,
            "optim.warmup_epochs": 0,
            "train.epochs": 2,
            "train.batch_size": 16,
            "train.instances": 2,
            "train.log_every": 1,
            "train.save_every": 1,
        }
        | {name.replace("__", "."): value for name, value in options.items()}
    )
    return config


def paths_in(gallery: str | Path) -> list[str]:
    """Return the sorted paths of the crops in a gallery."""
    # LanceDB takes a second to import, and most tests do not need it.
    from nrsrd_jax.gallery.store import Gallery

    return sorted(Gallery.open(gallery).read()[0]["path"].to_pylist())


def train_command(config, workdir: Path) -> list[str]:
    """Return the script and the arguments that train the baseline with a `small_config`."""
    default = flatten(get_config("baseline"))
    options = [f"--config.{name}={value}" for name, value in flatten(config).items() if value != default[name]]
    run = ["--config", str(ROOT / "configs/night600.py:baseline"), "--workdir", str(workdir)]
    return ["train.py", *run, *options]


def start(command: Sequence[object], cwd: Path = ROOT, log: Path | None = None, **environment: str) -> warm.Command:
    """Start `SCRIPT …`, `-m MODULE …` or `-c CODE …` on the CPU, with these variables added to the environment."""
    script, *arguments = map(str, command)
    argv = [script if script in ("-m", "-c") else str(ROOT / script), *arguments]
    return warm.Command(argv, cwd, os.environ | {"JAX_PLATFORMS": "cpu"} | environment, log)


def run(*command: object, cwd: Path = ROOT, status: int = 0) -> subprocess.CompletedProcess:
    """Run `SCRIPT …` or `-m MODULE …` on the CPU, and check that its exit status is `status`."""
    process = start(command, cwd)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, output + errors
    return subprocess.CompletedProcess(command, status, output, errors)


def small_model(depth=1, size=(32, 16), seed=0, **fields):
    """Return the description of a vit_tiny, with these `fields`, and random variables."""
    description = Description("vit_tiny", depth, size, (0.5,) * 3, (0.5,) * 3, **fields)
    start = _initialise(description.create_model(), size)
    return description, start(jax.random.key(seed))


# Equal models are equal as keys, so each initialisation is compiled once.
@functools.cache
def _initialise(model, size):
    return jax.jit(lambda key: initialise(model, key, size))


def write_calibration(place, model, **changes):
    """Write a calibration of a model: similarity 0.5 has a false-match rate of 1 in 10, and 0.9 of 1 in 100."""
    from nrsrd_jax.retrieval import Embedder

    identity = Embedder.load(model).identity() | changes
    curve = {"threshold": [-1.0, 0.5, 0.9], "fmr": [1.0, 0.1, 0.01]}
    points = {"similarity": [-1.0, 1.0], "probability": [0.0, 1.0]}
    place.write_text(json.dumps({"model": identity, "people": 200, "curve": curve, "probability": points}))
    return place
