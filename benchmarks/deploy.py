"""Measure how fast this CPU computes features: with JAX, and with exported files in ONNX Runtime and OpenVINO.

  python benchmarks/deploy.py [--model DIR] [--backbone vit_small_ics] [--batches 1,8,32] [--rounds 30]

Without --model the weights are random and the images have 256×128 pixels. The ways take turns, so that other work on
the machine slows all of them alike. OpenVINO is compared if it is installed. The int8 file is calibrated on generated
images, because its features do not matter here.
"""

import time
from collections.abc import Callable

import numpy as np

from nrsrd_jax.command import Parser, one_line, positive


def sizes(text: str) -> tuple[int, ...]:
    """Parse batch sizes like "1,8,32"."""
    return tuple(positive(part) for part in text.split(","))


Way = Callable[[np.ndarray], np.ndarray]


def ways(model: str, backbone: str, most: int) -> tuple[dict[str, Way], np.ndarray]:
    """Return the functions from uint8 crops to features by name, and `most` crops. Print what is compared."""
    import jax

    from nrsrd_jax.checkpoint import load
    from nrsrd_jax.description import Description
    from nrsrd_jax.errors import InputError
    from nrsrd_jax.export import parity
    from nrsrd_jax.export.onnx_file import build
    from nrsrd_jax.export.quantize import quantized
    from nrsrd_jax.export.runtime import onnxruntime, openvino_function
    from nrsrd_jax.models import initialise
    from nrsrd_jax.models.attention import NormRatio
    from nrsrd_jax.retrieval import Embedder
    from nrsrd_jax.sharding import make_mesh

    mesh = make_mesh()
    if model:
        description, variables = load(model, mesh)
    else:
        description = Description(backbone, 0, (256, 128), (0.5,) * 3, (0.5,) * 3, norm_ratio=NormRatio())
        start = jax.jit(lambda key: initialise(description.create_model(), key, description.image_size))
        variables = start(jax.random.key(0))
    print(f"{description.backbone}, {description.image_size[0]}×{description.image_size[1]} pixels")
    embedder = Embedder(description.create_model(), variables, description, mesh, batch_size=most, flip=False)
    choice = {"layout": "uint8-nhwc", "feature": "cls", "flip": False, "opset": 17, "batch": None}
    exact = build(description, variables, **choice)
    few = quantized(exact, parity.generated(description.image_size), None)

    def in_runtime(content: bytes) -> Way:
        options = onnxruntime.SessionOptions()
        # Only errors are logged, because warnings would break the table.
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda images: np.asarray(session.run(None, {"images": images})[0])

    # These names are the first column of the printed table.
    found: dict[str, Way] = {f"JAX {jax.__version__}": embedder}
    for kind, file in (("float32", exact), ("int8", few)):
        content = file.SerializeToString()
        found[f"ONNX Runtime {onnxruntime.__version__}, {kind}"] = in_runtime(content)
        try:
            run, name = openvino_function(content)
        # OpenVINO is not installed.
        except InputError as error:
            print(f"left out: {error}", flush=True)
            continue
        found[f"{name}, {kind}"] = run
    return found, parity.generated(description.image_size, most)


def main() -> None:
    parser = Parser(__doc__, "python benchmarks/deploy.py")
    parser.add_argument("--model", default="", help="a training run or a checkpoint; default: random weights")
    parser.add_argument("--backbone", default="vit_small_ics", help="of the random weights; default: vit_small_ics")
    parser.add_argument("--batches", type=sizes, default=(1, 8, 32), help="images per call; default: 1,8,32")
    parser.add_argument("--rounds", type=positive, default=30, help="timed calls of each; default: 30")
    arguments = parser.parse_args()
    functions, pictures = ways(arguments.model, arguments.backbone, max(arguments.batches))
    print("| way | batch | p50 (ms) | p95 (ms) | images/s |\n|---|---|---|---|---|")
    for batch in arguments.batches:
        images, seconds = pictures[:batch], {name: [] for name in functions}
        for round_ in range(arguments.rounds + 2):
            for name, function in functions.items():
                begin = time.perf_counter()
                function(images)
                # The first two calls compile and allocate memory, so they are not timed.
                if round_ >= 2:
                    seconds[name].append(time.perf_counter() - begin)
        for name, values in seconds.items():
            p50, p95 = np.percentile(values, [50, 95]) * 1000
            print(f"| {name} | {batch} | {p50:.1f} | {p95:.1f} | {batch / p50 * 1000:.0f} |", flush=True)


if __name__ == "__main__":
    one_line(main)
