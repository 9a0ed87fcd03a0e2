"""Small pictures for a page, as many and as fine as fit in a number of bytes."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.sealed import THREADS

# The choices of height in pixels and WebP quality, the finest first.
LEVELS = ((128, 80), (128, 60), (96, 60), (64, 60), (64, 40), (64, 20))
# The share of an image's values that are below white after stretching.
WHITE = 0.99
# How many pictures are encoded to estimate the size of all.
SAMPLE = 64
# How many pictures are encoded at a time.
BLOCK = 512
# Bytes in the page of a picture's commas, quotes and factor.
OVERHEAD = 16


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as a WebP file in base64, stretched to the full range. Times `factor` it is as dark as recorded."""

    webp: str
    factor: float

    @property
    def size(self) -> int:
        """Return how many bytes the picture takes in the page."""
        return len(self.webp) + OVERHEAD


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of at most `height` pixels, in the order asked for. A picture that did not fit is None."""

    items: list[Picture | None]
    height: int


def make_pictures(images: Sequence[tuple[np.ndarray, int]], budget: int) -> Pictures:
    """Encode pictures with the finest of LEVELS at which all fit. If they never fit, leave out the last ones.

    Args:
        images: an array uint8 [N, H, W, 3] and an index into it for each picture, the most important picture first.
        budget: the most bytes of all pictures.
    """
    sample = [images[i] for i in np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).astype(int)]
    for height, quality in LEVELS:
        last = (height, quality) == LEVELS[-1]
        if not last and len(images) * np.mean([encode(a[i], height, quality).size for a, i in sample]) > budget:
            continue
        items = _encode_all(images, height, quality, budget)
        if last or len(items) == len(images):
            break
    return Pictures([*items, *[None] * (len(images) - len(items))], height)


def _encode_all(images: Sequence[tuple[np.ndarray, int]], height: int, quality: int, budget: int) -> list[Picture]:
    """Encode the pictures from the first on, as long as they fit in `budget` bytes."""
    items, left = [], budget
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(desc="pictures", total=len(images), unit="image", leave=False, disable=None) as bar,
    ):
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            for picture in pool.map(lambda image: encode(image[0][image[1]], height, quality), block):
                left -= picture.size
                if left < 0:
                    return items
                items.append(picture)
            bar.update(len(block))
    return items


def encode(image: np.ndarray, height: int, quality: int) -> Picture:
    """Encode an image, uint8 [H, W, 3], with at most `height` pixels of height.

    The image is stretched to the full range first, because a dark image has too few levels to lose any to compression.
    """
    counts = np.bincount(image.ravel(), minlength=256).cumsum()
    white = max(1, int(np.searchsorted(counts, WHITE * image.size)))
    stretched = np.minimum(np.arange(256) * (255 / white) + 0.5, 255).astype(np.uint8)[image]
    picture = Image.fromarray(stretched)
    if picture.height > height:
        width = max(1, round(picture.width * height / picture.height))
        picture = picture.resize((width, height), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "webp", quality=quality, method=2)
    return Picture(base64.b64encode(file.getvalue()).decode(), round(white / 255, 4))
