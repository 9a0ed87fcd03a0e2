"""How fast the training step is on this machine: one line per backbone.

  python benchmarks/train_step.py [--backbone vit_tiny] [--batch 64] [--variant nrsrd] [--size 256 128] [--steps 10]

GFLOP is what the compiler counts for the whole step, augmentation and degradation included; images count both domains.
"""

import argparse
import time

import jax
import numpy as np

from nrsrd_jax.build import make_step, state_builder
from nrsrd_jax.command import one_line
from nrsrd_jax.config import VARIANTS, get_config
from nrsrd_jax.description import Description
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.models.reid import BACKBONES, initialise
from nrsrd_jax.precision import compute_dtype
from nrsrd_jax.schedule import make_optimizer
from nrsrd_jax.sharding import make_mesh, over_data
from nrsrd_jax.step import Teacher

CLASSES, INSTANCES = 300, 4


def measure(backbone: str, batch: int, variant: str, size: tuple[int, int], steps: int) -> str:
    config = get_config(variant)
    config.model.backbone, config.image_size = backbone, size
    statistics = {"image_size": size, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    aux_classes = CLASSES * config.aux.enabled
    description = Description(
        backbone, BACKBONES[backbone]["depth"], **statistics, classes=CLASSES, aux_classes=aux_classes,
        norm_ratio=NormRatio() if config.model.norm_ratio else None,
    )  # fmt: skip
    mesh = make_mesh(batch)
    optimizer = make_optimizer("sgd")
    _, _, create = state_builder(config, description, optimizer, mesh)
    state, teacher, teacher_variables = create(), None, None
    if config.teacher.enabled:
        model = Description(backbone, description.depth, **statistics, classes=CLASSES).create_model(
            dtype=compute_dtype(config.train.precision)
        )
        teacher = Teacher(model, (0.5,) * 3, (0.5,) * 3)
        teacher_variables = jax.jit(lambda key: initialise(model, key, size))(jax.random.key(1))

    rng = np.random.default_rng(0)
    domain = {
        "images": rng.integers(0, 256, (batch, *size, 3), np.uint8),
        "labels": (np.arange(batch) // INSTANCES).astype(np.int32),
    }
    data = jax.device_put({"real": domain} | ({"aux": domain} if aux_classes else {}), over_data(mesh))
    data["epoch"] = np.int32(0)

    begin = time.perf_counter()
    step = jax.jit(make_step(config, description, teacher, optimizer, {}), donate_argnums=0)
    compiled = step.lower(state, data, teacher_variables).compile()
    compile_seconds = time.perf_counter() - begin
    for _ in range(2):
        state, _ = compiled(state, data, teacher_variables)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for _ in range(steps):
        state, _ = compiled(state, data, teacher_variables)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begin) / steps
    analysis = compiled.cost_analysis()
    gflop = float(analysis["flops"] if analysis else float("nan")) / 1e9
    images = batch * (2 if aux_classes else 1)
    return (
        f"{backbone:<14} {variant:<9} batch {batch:>4} {1000 * seconds:>8.1f} ms/step {images / seconds:>8.1f} images/s"
        f"  {gflop:>8.1f} GFLOP  {gflop / seconds:>8.1f} GFLOP/s  compiled in {compile_seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", default=["vit_tiny", "vit_small"], choices=BACKBONES)
    parser.add_argument("--batch", type=int, default=16, help="images per domain")
    parser.add_argument("--variant", default="baseline", choices=VARIANTS)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128], metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    size = (arguments.size[0], arguments.size[1])
    print(f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}")
    for backbone in arguments.backbone:
        print(measure(backbone, arguments.batch, arguments.variant, size, arguments.steps), flush=True)


if __name__ == "__main__":
    one_line(main)
