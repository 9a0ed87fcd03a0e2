"""Small pictures for a page, as many and as fine as a number of bytes allows."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.images import THREADS

LEVELS = ((128, 80), (128, 60), (96, 60), (64, 60), (64, 40), (64, 20))  # height in pixels, WebP quality
WHITE = 0.99  # the share of an image's values that are stretched to less than white
SAMPLE = 64  # pictures that tell how large all will be
BLOCK = 512  # pictures at a time
OVERHEAD = 16  # bytes of a picture's commas, quotes and factor


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as base64 of a WebP file, stretched to the full range; times `factor` it is as recorded."""

    webp: str
    factor: float

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.webp) + OVERHEAD


@dataclasses.dataclass(frozen=True)
class Pictures:
    """`items` as they were asked for, None where the bytes did not reach; none is higher than `height` pixels."""

    items: list[Picture | None]
    height: int


def make_pictures(images: Sequence[tuple[np.ndarray, int]], budget: int) -> Pictures:
    """Pictures of `images`, (array uint8 [N, H, W, 3], index) each, the important first, in `budget` bytes.

    The finest of LEVELS that all fit in is taken; if none is coarse enough, the last ones are left out.
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
    """The first of the pictures, while they fit."""
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
    """An image, uint8 [H, W, 3], no higher than `height`. It is stretched first: a dark one has few levels to lose."""
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
