"""Measure how fast images reach the training step: decoding into the cache, reading batches, and augmentation.

  python benchmarks/input.py [--images 2000] [--size 256 128] [--batch 64]

A plain loader is measured for comparison: like a PyTorch DataLoader, it decodes each image of each batch with Pillow in
worker processes. The images are JPEG crops of noise and shapes, 64×128 to 128×256 pixels, made in a temporary folder.
"""

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from nrsrd_jax.command import Parser, one_line, positive
from nrsrd_jax.data.images import cached_images, decode
from nrsrd_jax.data.pipeline import Domain, batches
from nrsrd_jax.data.sampling import BatchPlan
from nrsrd_jax.data.sealed import THREADS
from nrsrd_jax.data_options import Augment
from nrsrd_jax.step import Preparation

HALF = (0.5, 0.5, 0.5)


def make_images(folder: Path, count: int) -> list[Path]:
    """Write JPEG crops to a folder and return their paths."""
    rng, paths = np.random.default_rng(0), []
    for index in range(count):
        width = int(rng.integers(64, 129))
        small = rng.integers(0, 256, (16, 8, 3), np.uint8)
        image = Image.fromarray(small).resize((width, 2 * width))
        ImageDraw.Draw(image).ellipse((8, 8, width - 8, 2 * width - 8), outline="white", width=5)
        paths.append(folder / f"{index:05d}.jpg")
        image.save(paths[-1], quality=90)
    return paths


def load_batch(paths: list[Path], size: tuple[int, int]) -> np.ndarray:
    """Decode a batch as the plain loader does, to uint8 [N, *size, 3]."""
    return np.stack([decode(path, size, "bicubic") for path in paths])


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """Return the mean seconds of a call."""
    begin = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(function())
    return (time.perf_counter() - begin) / repeats


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--images", type=positive, default=2000, help="number of images; default: 2000")
    parser.add_argument("--size", type=positive, nargs=2, default=(256, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=positive, default=64, help="images per batch; default: 64")
    options = parser.parse_args()
    size, batch, cores = tuple(options.size), options.batch, THREADS
    labels = (np.arange(options.images) // 8).astype(np.int32)
    # The plan comes first, because it raises if there are too few images.
    plan = BatchPlan(labels, batch, 4, 0)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_images(Path(folder), options.images)
        read = functools.partial(decode, size=size, resampling="bicubic")
        once = seconds(lambda: [read(path) for path in paths[:500]]) / min(500, len(paths))
        print(f"{cores} cores, {len(paths)} images, batches of {batch} at {size[0]}×{size[1]}, {jax.devices()[0]}")
        print(f"decoding, one thread          {1 / once:>9.0f} images/s")
        decoding = seconds(lambda: cached_images(paths, size, "bicubic", folder))
        rate = len(paths) / decoding
        print(f"decoding into the cache       {rate:>9.0f} images/s, {rate / cores:.0f} a core")

        images = cached_images(paths, size, "bicubic", folder)
        domain = Domain(plan, labels, np.zeros_like(labels), {"images": images})
        steps = min(50, plan.steps(20))
        served = batches({"real": domain}, 0, steps, pixels=True)
        host = seconds(lambda: jax.device_put(next(served)["real"]["images"]), steps)
        print(f"batches from the disk cache   {batch / host:>9.0f} images/s, {1e3 * host:.2f} ms a batch")
        everything, gather = jnp.asarray(images), jax.jit(lambda array, index: array[index])
        # The first call compiles, so it is not timed.
        gather(everything, plan.batch(0))
        served = batches({"real": domain}, 0, steps, pixels=False)
        device = seconds(lambda: gather(everything, next(served)["real"]["images"]), steps)
        print(f"batches from device memory    {batch / device:>9.0f} images/s, {1e3 * device:.2f} ms a batch")

        files = [[paths[i] for i in plan.batch(step)] for step in range(20)]
        # JAX has started threads in this process, so a fork could deadlock.
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            load = functools.partial(load_batch, size=size)
            # A first batch per worker makes sure that all of them have started.
            pool.map(load, files[:cores])
            plain = seconds(lambda: list(pool.imap(load, files))) / len(files)
        print(f"plain loader, {cores} processes     {batch / plain:>9.0f} images/s, {1e3 * plain:.1f} ms a batch")

    one = {"labels": np.zeros(batch, np.int32), "images": np.asarray(everything[:batch])}
    usual = Augment()
    preparation = Preparation(HALF, HALF, flip=usual.flip, pad=usual.pad, erasing=usual.erasing, degradation={})
    for name, data in (("augmentation", {"real": one}), ("and a degraded domain", {"real": one, "aux": one})):
        prepare = jax.jit(lambda key, data: preparation(key, data))
        data = jax.device_put(data)
        jax.block_until_ready(prepare(jax.random.key(0), data))
        cost = seconds(lambda prepare=prepare, data=data: prepare(jax.random.key(0), data), 10)
        print(f"{name:<30}{1e3 * cost:>9.1f} ms a step")


if __name__ == "__main__":
    one_line(main)
