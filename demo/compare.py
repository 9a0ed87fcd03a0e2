"""Compare the demo's three students with an untrained network, a colour histogram and the pretrained backbone.

python demo/compare.py     the last stage of `make demo`; needs the runs of configs/demo.py:baseline, :nrsrd and
                           :nrsrd_plus
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from nrsrd_jax.checkpoint import load
from nrsrd_jax.command import Parser, one_line
from nrsrd_jax.config import load_config
from nrsrd_jax.errors import say
from nrsrd_jax.inputs import read_targets
from nrsrd_jax.models import initialise
from nrsrd_jax.options import read_options
from nrsrd_jax.retrieval.comparison import compare
from nrsrd_jax.retrieval.comparison_tables import tables
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.retrieval.result import evaluate_run, table
from nrsrd_jax.retrieval.scoring import evaluate, headline, score
from nrsrd_jax.sharding import make_mesh


def colour_histograms(paths: tuple[Path, ...], stripes: int = 4, bins: tuple[int, int, int] = (8, 4, 4)) -> np.ndarray:
    """Return the square roots of HSV histograms of horizontal stripes, float32 [N, D], as features of images."""
    rows = []
    for path in paths:
        with Image.open(path) as image:
            hsv = np.asarray(image.convert("RGB").resize((64, 128)).convert("HSV")) / 256
        index = (hsv * bins).astype(int) @ (bins[1] * bins[2], bins[2], 1)
        parts = [np.bincount(part.ravel(), minlength=np.prod(bins)) for part in np.array_split(index, stripes)]
        # With square roots, the Euclidean distance of two histograms is the Hellinger distance.
        rows.append(np.sqrt(np.concatenate(parts) / index.size))
    return np.stack(rows).astype(np.float32)


def verdict(difference: dict) -> str:
    """Return a sentence on two students: the difference in mAP, its interval, and which of them ranks better."""
    a, b = difference["a"], difference["b"]
    gain, low, high = (100 * difference[key] for key in ("mAP", "low", "high"))
    order = f"{b} and {a} cannot be told apart"
    if low > 0 or high < 0:
        order = f"{b} ranks better than {a}" if low > 0 else f"{a} ranks better than {b}"
    return f"{b} − {a}: {gain:+.1f} mAP, between {low:+.1f} and {high:+.1f} with other people of this kind: {order}"


def main() -> None:
    Parser(__doc__).parse_args()
    runs = {name: Path("runs") / f"demo-{name}" for name in ("baseline", "nrsrd", "nrsrd_plus")}
    options = read_options(load_config(runs["nrsrd"] / "config.json"))
    targets = read_targets(options)
    (target,) = targets.values()
    mesh = make_mesh()
    description, _ = load(runs["nrsrd"], mesh)
    model = description.create_model()
    variables = jax.jit(lambda key: initialise(model, key, description.image_size))(jax.random.key(0))
    embed_options: Any = {"batch_size": options.eval.batch_size, "flip": False}
    untrained = Embedder(model, variables, description, mesh, **embed_options)
    backbone, weights = load(options.init.checkpoint, mesh)
    # nrsrd_plus brightens its images, so the backbone it starts from is also evaluated with brightening.
    bright = dataclasses.replace(backbone, brighten=0.4)
    histograms = {
        name: colour_histograms(split.paths) for name, split in (("query", target.query), ("gallery", target.gallery))
    }
    rows = {
        "untrained network": headline(evaluate(untrained, options, targets)),
        "colour histogram": score(histograms, target, options.eval).metrics.summary(),
    }
    for name, described in (("pretrained", backbone), ("… and brightened", bright)):
        embedder = Embedder(described.create_model(), weights, described, mesh, **embed_options)
        rows[name] = headline(evaluate(embedder, options, targets))
    for name, run in runs.items():
        rows[name], (result, report) = evaluate_run(str(run), report=str(run / "report"))
        # `make demo` writes stderr to the log of this stage and shows only stdout.
        say(f"{name}: the run is in {run}, its result in {result}, its report in {report}", error=True)
    say(*table(rows).split("\n"))
    compared, _ = compare(list(map(str, runs.values())), "runs/demo.json", by="identity")
    say(*tables(compared)[len(runs) + 1 :])
    # `compare` names the runs by their folders, the table above by their methods.
    short = {f"demo-{name}": name for name in runs}
    for each in compared["differences"]:
        say(verdict(each | {end: short[each[end]] for end in "ab"}))
    say(
        "not known from this: how other training seeds would do, and how any of it does on photographs of real people "
        "(docs/evidence.md has what is known)"
    )
    say(f"every query's ranked list, on a page: {runs['nrsrd'] / 'report' / 'index.html'}")
    # Programs read this last line, so it has fractions and not percentages.
    say(f"nrsrd mAP {rows['nrsrd']['mAP']:.3f} Rank-1 {rows['nrsrd']['rank1']:.3f}")


if __name__ == "__main__":
    one_line(main)
