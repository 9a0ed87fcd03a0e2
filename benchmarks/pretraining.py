"""Measure the speed of pretraining without labels: reading crops, making views, and the whole step.

  python benchmarks/pretraining.py [--images 2000] [--config dino:small] [--config.KEY=VALUE …]

The crops are those of benchmarks/input.py. "read from files" decodes each crop in each epoch (data.cache=none), "read
from the cache" takes decoded crops from the disk. The device never waits if reading is faster than the step.
"""

import dataclasses
import functools
import sys
import tempfile
from pathlib import Path

import jax
from input import make_images, seconds

from nrsrd_jax.build import degradation_options, sharded
from nrsrd_jax.command import Parser, one_line, positive, read_config, split_config_arguments
from nrsrd_jax.data import pipeline
from nrsrd_jax.inputs import pixel_statistics, read_domains, read_records, reading_threads
from nrsrd_jax.options import read_options
from nrsrd_jax.pretraining import build
from nrsrd_jax.sharding import make_mesh, over_data, place

# Reading runs ahead of its use, so few batches would look too fast.
STEPS, READ = 20, 300


def main() -> None:
    of_config, own = split_config_arguments(sys.argv[1:])
    parser = Parser(__doc__)
    parser.add_argument("--images", type=positive, default=2000, help="number of crops; default: 2000")
    count = parser.parse_args(own).images
    named = any(argument.partition("=")[0] == "--config" for argument in of_config)
    config = read_config([*([] if named else ["--config=dino:small"]), *of_config])
    if not config.dino.enabled:
        parser.error("--config is not the config of a pretraining (dino.enabled is off); give one such as dino:small")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), count)
        config.data.root, config.data.cache_dir = folder, f"{folder}/cache"
        options = read_options(config)
        records, size = read_records(options), options.train.batch_size
        print(f"{options.model.backbone}, batches of {size} at {options.image_size}, {jax.devices()[0]}")
        domains = {}
        for cache, title in (("none", "read from files"), ("disk", "read from the cache")):
            chosen = dataclasses.replace(options, data=dataclasses.replace(options.data, cache=cache))
            domains = read_domains(chosen, records)
            served = pipeline.batches(domains, 0, READ, pixels=True, threads=reading_threads(chosen))
            report(title, size, seconds(functools.partial(next, served), READ))
        batch = next(pipeline.batches(domains, 0, 1, pixels=True))
        mean, std = pixel_statistics(options.data, domains["real"].sources["images"])
    mesh = make_mesh(size, 1, jax.devices())
    description = build.make_description(options, records, mean, std)
    degradation = degradation_options(options)
    _, _, create = sharded(functools.partial(build.make_state, options, description), mesh)
    batch["real"] = place(batch["real"], over_data(mesh))
    prepare = build.preparation(options, description, degradation)
    views = jax.jit(lambda key, images: prepare(key, images))
    images = batch["real"]["images"]
    jax.block_until_ready(views(jax.random.key(0), images))
    report("making views", size, seconds(lambda: views(jax.random.key(0), images), STEPS))
    state = create()
    step = jax.jit(build.make_step(options, description, degradation, 1000), donate_argnums=0)
    state, _ = step(state, batch, None)

    def next_step():
        nonlocal state
        state, metrics = step(state, batch, None)
        return metrics

    report("the step, with its views", size, seconds(next_step, STEPS))


def report(title: str, size: int, cost: float) -> None:
    print(f"{title:<26}{size / cost:>9.0f} images/s, {1e3 * cost:.1f} ms a batch")


if __name__ == "__main__":
    one_line(main)
