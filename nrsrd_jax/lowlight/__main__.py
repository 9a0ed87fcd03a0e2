"""Darken images with each preset, write them on one sheet, and print their luminance and noise.

nrsrd lowlight IMAGE … --output sheet.png

Give at most 50 images. Compare the numbers with those of your own night images to choose a preset.
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ..command import Parser, one_line
from ..data.images import LUMINANCE, read_rgb
from ..errors import InputError, say
from ..files import writable_file, written_whole
from ..sheet import HEIGHT, WIDTH, brighten, sheet
from .degradation import PRESETS, degrade

# On a sheet of more images, each would be too small to see.
MAX_IMAGES = 50


def noise_level(grey: np.ndarray) -> float:
    """Estimate the standard deviation of the noise in a grey image, in the image's own units.

    Args:
        grey: [H, W], H and W at least 3.

    Returns:
        The estimate, at least 0.

    Source:
        Immerkær 1996.
    """
    g = np.asarray(grey, np.float64)
    # Second differences in both directions are 0 on smooth shading and along straight edges, so only noise remains.
    edges = g[:-2] - 2 * g[1:-1] + g[2:]
    mask = edges[:, :-2] - 2 * edges[:, 1:-1] + edges[:, 2:]
    return float(np.abs(mask).mean() * math.sqrt(math.pi / 2) / 6)


def light_and_noise(images: list[np.ndarray]) -> str:
    """Return a line with the luminance and noise of uint8 images [H, W, 3], in grey levels (0..255)."""
    grey = [image @ LUMINANCE for image in images]
    mean, spread = (np.mean([measure(image) for image in grey]) for measure in (np.mean, np.std))
    noise = np.median([noise_level(image) for image in grey])
    return f"luminance mean {mean:5.1f}, standard deviation {spread:5.1f}; noise {noise:4.1f}"


def main() -> None:
    """Write the sheet that the process's arguments ask for, and print a line of luminance and noise per version."""
    parser = Parser(__doc__, "nrsrd lowlight")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--output", type=Path, help="the image file to write the sheet to (default: sheet.png)")
    options = parser.parse_args()
    output = options.output or Path("sheet.png")
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--output {output}: name a .png, .jpg or .webp file")
    if len(options.images) > MAX_IMAGES:
        raise InputError(f"{len(options.images)} images are too many for one sheet; give at most {MAX_IMAGES}")
    output = writable_file(output, "--output")
    # Each image keeps its own size because resizing would smooth the noise.
    given = [np.asarray(read_rgb(path)) for path in options.images]
    for path, image in zip(options.images, given, strict=True):
        if min(image.shape[:2]) < 3:
            raise InputError(f"{path} is too small to measure its noise; give images of at least 3×3 pixels")
    versions = {"as given": given}
    for preset in PRESETS:
        # Equal keys for all presets, so that their versions of an image differ only by the presets.
        keys = jax.random.split(jax.random.key(0), len(given))
        dark = [degrade(k, jnp.asarray(x[None]) / 255, preset=preset)[0] for k, x in zip(keys, given, strict=True)]
        versions[preset] = [np.asarray(jnp.round(image * 255)).astype(np.uint8) for image in dark]
    rows = []
    for name, images in versions.items():
        say(f"{name:<10}{light_and_noise(images)}")
        small = np.stack([np.asarray(Image.fromarray(image).resize((WIDTH, HEIGHT))) for image in images])
        rows += [(name, small), (f"{name},\nbrightened", brighten(small))]
    picture = sheet(rows)
    with written_whole(output, follow=options.output is not None) as partial:
        picture.save(partial, {".png": "PNG", ".webp": "WEBP"}.get(output.suffix.lower(), "JPEG"))
    say(f"written to {output}")


def command() -> None:
    """Run `nrsrd lowlight` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
