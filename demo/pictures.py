"""Make two of the README's pictures from the demo's images: docs/crops.jpg, and docs/ranked.jpg of a trained run.

  python demo/pictures.py [WORKDIR]       default runs/demo-nrsrd

The other two are not made here: docs/report.jpg is a screenshot of the page that eval.py writes, docs/analysis.jpg is
images.png of `nrsrd analysis`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from nrsrd_jax.command import Parser, one_line
from nrsrd_jax.data import datasets
from nrsrd_jax.data.images import decode
from nrsrd_jax.data.protocol import make_target
from nrsrd_jax.errors import say
from nrsrd_jax.lowlight import PRESETS, degrade
from nrsrd_jax.report.ranked import LEFT_OUT, RIGHT, read_ranking
from nrsrd_jax.retrieval.distances import squared_distances
from nrsrd_jax.retrieval.embedding import Embedder
from nrsrd_jax.sheet import EDGE, HEIGHT, LEFT, WIDTH, brighten, sheet

ROOT = Path(__file__).parent.parent


def read(paths, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Decode images to uint8 [N, *size, 3]."""
    return np.stack([decode(path, size, "bilinear") for path in paths])


def crops() -> Image.Image:
    """Draw ten bright crops, their degraded versions by preset, and ten night crops."""
    bright = read(datasets.read_bright(ROOT / "demo/aux").paths[5::83][:10])
    night = read(datasets.read_dataset("night600", ROOT / "demo/night").train.paths[3::77][:10])
    rows = [("bright", bright)]
    for preset in PRESETS:
        dark = degrade(jax.random.key(1), jnp.asarray(bright, jnp.float32) / 255, preset=preset)
        rows.append((preset, np.asarray(dark * 255).astype(np.uint8)))
    return sheet([*rows, ("night", night), ("night,\nbrightened", brighten(night))])


def ranked(workdir: Path, queries: int = 6, top: int = 8) -> Image.Image:
    """Draw the nearest gallery images of other cameras for some queries. A right match has a tick and a thick frame."""
    data = datasets.read_dataset("night600", ROOT / "demo/night")
    embedder = Embedder.load(workdir)
    features = [embedder(read(split.paths, embedder.description.image_size)) for split in (data.query, data.gallery)]
    distances = squared_distances(features[0], features[1])
    lists, _ = read_ranking(distances, *make_target(data, "cross-camera").labels, top=top)
    rows, marks = [], []
    for q in np.linspace(0, len(data.query) - 1, queries).astype(int):
        # Images of the query's own camera do not count in the ranking, and are not shown.
        counted = [(g, word == RIGHT) for g, word in zip(lists[q].gallery, lists[q].outcome, strict=True)
                   if word != LEFT_OUT][:top]  # fmt: skip
        paths = [data.query.paths[q], *(data.gallery.paths[g] for g, _ in counted)]
        rows.append(("query,\nthen nearest", brighten(read(paths))))
        marks.append([right for _, right in counted])
    picture = sheet(rows)
    draw = ImageDraw.Draw(picture)
    for y, row in enumerate(marks):
        for x, right in enumerate(row, start=1):
            left, high = LEFT + x * (WIDTH + EDGE), y * (HEIGHT + EDGE)
            colour = "limegreen" if right else "orangered"
            draw.rectangle((left, high, left + WIDTH - 1, high + HEIGHT - 1), outline=colour, width=5 if right else 2)
            if right:
                # This line is the tick.
                line = [(left + 8, high + 20), (left + 14, high + 26), (left + 26, high + 10)]
                draw.line(line, fill=colour, width=4)
    return picture


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("workdir", type=Path, nargs="?", default=Path("runs/demo-nrsrd"), help="default: %(default)s")
    workdir = parser.parse_args().workdir
    crops().save(ROOT / "docs/crops.jpg", quality=88)
    ranked(workdir).save(ROOT / "docs/ranked.jpg", quality=88)
    say(f"wrote {ROOT / 'docs/crops.jpg'} and {ROOT / 'docs/ranked.jpg'}")


if __name__ == "__main__":
    one_line(main)
