"""Draw many small images as one sheet, to look at one PNG or JPEG instead of many files."""

import numpy as np
from PIL import Image, ImageDraw

# In pixels: height and width of an image, the gap between images, and the width of the column of names.
HEIGHT, WIDTH, EDGE, LEFT = 128, 64, 3, 110


def sheet(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Draw rows of images, uint8 [N, HEIGHT, WIDTH, 3] each, with the names of the rows on the left."""
    columns = max(len(images) for _, images in rows)
    canvas = Image.new("RGB", (LEFT + columns * (WIDTH + EDGE), len(rows) * (HEIGHT + EDGE)), "white")
    draw = ImageDraw.Draw(canvas)
    for y, (name, images) in enumerate(rows):
        draw.text((4, y * (HEIGHT + EDGE) + HEIGHT // 2 - 8), name, fill="black", font_size=15)
        for x, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (LEFT + x * (WIDTH + EDGE), y * (HEIGHT + EDGE)))
    return canvas


def brighten(images: np.ndarray) -> np.ndarray:
    """Scale each image so that its 98th percentile is white, because night crops look black on a screen."""
    top = np.percentile(images, 98, axis=(1, 2, 3), keepdims=True)
    return np.clip(images / np.maximum(top, 1) * 255, 0, 255).astype(np.uint8)
