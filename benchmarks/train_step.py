"""Measure the speed of the training step on this device, with a line per backbone, variant, precision and batch size.

  python benchmarks/train_step.py [--backbone vit_small …] [--batch 64 …] [--variant nrsrd …] [--precision auto …]
  python benchmarks/train_step.py --backbone vit_small vit_small_ics --batch 16 --torch --parts

GFLOP is the number of operations in a step's matrix products, counted by hand (`gmac` below). It leaves out
augmentation, remat and elementwise work. GFLOP/s and the percentage of the peak are computed from it. "program" is the
count that XLA reports, on devices where it does. Images are counted in all domains. The peak is that of the data sheet
for bfloat16 on a known device, and otherwise the measured speed of one large product.

--torch also measures plain PyTorch, which takes turns with ours in the same process. PyTorch's training step, which has
no augmentation, is compared with our whole "step" or with the "network" alone, and its "embedding" with ours. It needs
PyTorch: pip install -c constraints.txt -e '.[bench]'
"""

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nrsrd_jax.build import loss_function, make_optimizer, make_state, make_step, preparation, sharded
from nrsrd_jax.command import Parser, one_line, positive
from nrsrd_jax.config import VARIANTS, get_config
from nrsrd_jax.description import Description
from nrsrd_jax.errors import InputError
from nrsrd_jax.files import writable_folder
from nrsrd_jax.models import MODELS, initialise
from nrsrd_jax.models.attention import NormRatio
from nrsrd_jax.models.vit import PATCH, ViTSpec
from nrsrd_jax.options import read_options
from nrsrd_jax.precision import compute_dtype, one_order
from nrsrd_jax.sharding import make_mesh, over_data
from nrsrd_jax.step import Teacher, make_update

CLASSES, INSTANCES = 300, 4
# Dense FLOP/s of the data sheets.
# The first name that occurs in a device's name is taken, so L40S must stand before L4.
BFLOAT16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
ROUNDS = 3
VITS = {name: spec for name, spec in MODELS.items() if isinstance(spec, ViTSpec)}
# Our programs that plain PyTorch can be compared with.
COMPARED = ("step", "network", "embedding")


def gmac(backbone: str, size: tuple[int, int], all_tokens: bool = False) -> float:
    """Count the multiply-accumulates, in 1e9, of the products in one image's forward pass.

    Unless `all_tokens` is true, the last block computes only the CLS token, as in training.
    """
    spec = VITS[backbone]
    width, depth, stem = spec.width, spec.depth, spec.stem
    patches = size[0] // PATCH * (size[1] // PATCH)
    tokens = patches + 1
    block = 12 * width**2 * tokens + 2 * tokens**2 * width
    # Keys and values are needed of all tokens, everything else of the CLS token alone.
    last = block if all_tokens else 2 * width**2 * tokens + 10 * width**2 + 2 * tokens * width
    # The stem's maps have half the image's height and width.
    pixels = size[0] * size[1] / 4
    embed = pixels * 64 * (3 * 49 + 2 * 64 * 9) + patches * 64 * 64 * width if stem else patches * 768 * width
    return ((depth - 1) * block + last + embed) / 1e9


class Case:
    """A configuration of the step, and a batch of noise in `data` and `labels`. Its methods make timed programs."""

    def __init__(
        self,
        backbone: str,
        variant: str,
        precision: str,
        batch: int,
        size: tuple[int, int],
        remat: bool = False,
        consistency: float = 0.0,
    ):
        self.backbone, self.variant, self.batch, self.size = backbone, variant, batch, size
        config = get_config(variant)
        config.model.backbone, config.image_size, config.train.remat = backbone, size, remat
        config.train.precision, config.loss.consistency = precision, consistency
        options = read_options(config)
        self.dtype, self.consistency = compute_dtype(precision), consistency
        common = {"image_size": size, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.domains = 2 if options.aux.enabled else 1
        description = Description(
            backbone, VITS[backbone].depth, **common, classes=CLASSES,
            aux_classes=CLASSES * (self.domains - 1), norm_ratio=NormRatio() if options.model.norm_ratio else None,
        )  # fmt: skip
        mesh = make_mesh(batch)
        self.optimizer = make_optimizer(options)
        self.create = sharded(lambda: make_state(options, description), mesh)[2]
        # The teacher has random weights, because only its time matters.
        self.teacher = self.teacher_variables = None
        if options.teacher.enabled:
            model = Description(backbone, description.depth, **common, classes=CLASSES).create_model(dtype=self.dtype)
            self.teacher = Teacher(model, (0.5,) * 3, (0.5,) * 3)
            self.teacher_variables = jax.jit(lambda key: initialise(model, key, size))(jax.random.key(1))
        rng = np.random.default_rng(0)
        domain = {
            "images": rng.integers(0, 256, (batch, *size, 3), np.uint8),
            "labels": (np.arange(batch) // INSTANCES).astype(np.int32),
        }
        self.data = jax.device_put({"real": domain} | ({"aux": domain} if self.domains == 2 else {}), over_data(mesh))
        self.labels = {name: self.data[name]["labels"] for name in self.data}
        self.step = make_step(options, description, self.teacher, {})
        self.prepare = preparation(options, description, {})
        self.objective = loss_function(options, description, self.teacher)
        self.update = make_update(self.objective, self.optimizer, lambda _: (1e-3, 2e-3))
        self.model = description.create_model(dtype=self.dtype)

    @property
    def gflop(self) -> float:
        """The operations of a step's products in 1e9: forward, backward (twice as many), teacher's forward.

        The consistency loss adds a forward pass of the bright images.
        """
        passes = 3 * self.domains + bool(self.teacher) + bool(self.consistency)
        return 2 * gmac(self.backbone, self.size) * self.batch * passes

    def whole(self) -> "Timed":
        """Return the whole training step, with augmentation and degradation."""
        data = self.data | {"epoch": np.int32(0)}
        return Timed(self.step, (self.create(), data, self.teacher_variables), donated=True)

    def inputs(self) -> dict[str, jax.Array]:
        """Return the batch after augmentation and degradation."""
        return jax.jit(lambda key, data: self.prepare(key, data, self.teacher))(jax.random.key(0), self.data)

    def network(self) -> "Timed":
        """Return the step on prepared images, which corresponds to plain PyTorch's step."""

        # As in the train step, float32 products must not be computed in TF32 on a GPU.
        def update(state, inputs, teacher_variables):
            with jax.default_matmul_precision("highest"):
                return self.update(state, inputs, self.labels, 0, jax.random.key(0), teacher_variables)

        return Timed(update, (self.create(), self.inputs(), self.teacher_variables), donated=True)

    def embedding(self) -> "Timed":
        """Return the forward pass that embeds the prepared images."""

        def embed(variables, images):
            with jax.default_matmul_precision("highest"):
                out: Any = self.model.apply(variables, images)
                return out["embedding"]

        return Timed(embed, (self.create().variables, self.inputs()["real"]))

    def parts(self) -> dict[str, "Timed"]:
        """Return the pieces of the step by name.

        Their times add up to more than the whole step's, which does not write its intermediate results to memory.
        """
        state, inputs, key = self.create(), self.inputs(), jax.random.key(0)
        arguments = state.params, state.batch_stats, inputs, self.labels, key, self.teacher_variables

        def backward(*arguments):
            return jax.grad(self.objective, has_aux=True)(*arguments)

        def apply(state):
            # The parameters stand in for gradients, whose values do not change the time.
            directions, opt_state = self.optimizer.update(state.params, state.opt_state, state.params)
            return optax.apply_updates(state.params, directions), opt_state

        parts = {
            "augmentation, degradation": Timed(lambda k, data: self.prepare(k, data, self.teacher), (key, self.data)),
            "forward, teacher included": Timed(lambda *a: self.objective(*a)[0], arguments),
            "forward and backward, teacher included": Timed(backward, arguments),
            "optimiser": Timed(apply, (state,)),
        }
        if self.teacher:
            teach: Any = self.teacher.model.apply
            parts["teacher forward"] = Timed(
                lambda v, x: teach(v, x)["parts"][0]["logits"], (self.teacher_variables, inputs["teacher"])
            )
        return parts


class Timed:
    """A function, compiled for its arguments with the options of the training step.

    With `donated`, a call donates the first argument, and its first result replaces it in the next call.
    """

    def __init__(self, function: Callable, arguments: tuple, donated: bool = False):
        lowered = jax.jit(function, donate_argnums=(0,) if donated else ()).lower(*arguments)
        begin = time.perf_counter()
        self.compiled = lowered.compile(compiler_options=one_order())
        self.compile_seconds = time.perf_counter() - begin
        # Count before compilation, because XLA then replaces products by library calls, which it does not count. CUDA
        # reports only the compiled program.
        analysis: Any = lowered.cost_analysis() or self.compiled.cost_analysis() or {}
        self.gflop = analysis.get("flops", float("nan")) / 1e9
        self._arguments, self._donated = arguments, donated

    @property
    def gib(self) -> float:
        """The peak memory of the program in GiB, with its arguments; NaN if the device does not report it."""
        m = self.compiled.memory_analysis()
        if m is None:
            return float("nan")
        bytes_ = m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        return bytes_ / 2**30

    def __call__(self, count: int = 1) -> None:
        """Run the program `count` times in a row, and wait for the last."""
        result = None
        for _ in range(count):
            result = self.compiled(*self._arguments)
            if self._donated:
                self._arguments = (result[0], *self._arguments[1:])
        jax.block_until_ready(result)


def seconds(calls: Mapping[str, Callable[[int], None]], steps: int) -> dict[str, float]:
    """Time calls that take turns, and return the seconds of a step by name.

    A call is given the number of steps to run. Its time is the median over ROUNDS of the mean over `steps`. A first
    round is not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(ROUNDS + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call(steps)
            if round_:
                taken[name].append((time.perf_counter() - begin) / steps)
    return {name: statistics.median(times) for name, times in taken.items()}


def peak(dtype: jnp.dtype) -> tuple[float, str]:
    """Return the FLOP/s that all devices together can reach, and the source of that number."""
    kind = jax.devices()[0].device_kind
    known = [flops for name, flops in BFLOAT16_PEAK.items() if name in kind]
    if known and dtype == jnp.bfloat16:
        return known[0] * jax.device_count(), "data sheet"
    # No data sheet has the peak for this device and precision, so measure a large product.
    n = 4096
    x = jnp.ones((n, n), dtype)
    product = Timed(lambda x: jnp.matmul(x, x, precision="highest"), (x,))
    return 2 * n**3 / seconds({"": product}, 3)[""] * jax.device_count(), f"a product of {n}³"


def measure(case: Case, options: argparse.Namespace, highest: float) -> None:
    """Print the line of a case and what else `options` ask for. `highest` is the devices' peak in FLOP/s."""
    step, images = case.whole(), case.batch * case.domains
    ours = {"step": lambda: step, "network": case.network, "embedding": case.embedding}
    compared = {name: (ours[name](), theirs) for name, theirs in torch_calls(case, options.torch).items()}
    # --compile only fills the caches, so no time is measured or printed.
    if options.compile:
        for _, theirs in compared.values():
            theirs(1)
        print(f"compiled {case.backbone} {case.variant} {case.batch}", flush=True)
        return
    taken = seconds({"": step}, options.steps)[""]
    print(
        f"{case.backbone:<14} {case.variant:<9} {case.dtype.name:<9} {case.batch:>4}{1000 * taken:>10.1f}"
        f"{images / taken:>10.1f}{case.gflop:>10.0f}{step.gflop:>9.0f}{case.gflop / taken:>10.0f}"
        f"{1e11 * case.gflop / taken / highest:>7.1f}{step.gib:>8.2f}{step.compile_seconds:>7.0f}",
        flush=True,
    )
    for name, (program, theirs) in compared.items():
        times = seconds({"ours": program, "torch": theirs}, options.steps)
        count = case.batch if name == "embedding" else images
        print(
            f"    {name}: ours {count / times['ours']:.1f} images/s, plain PyTorch {count / times['torch']:.1f}, "
            f"ratio {times['torch'] / times['ours']:.2f}",
            flush=True,
        )
    if options.parts:
        parts = case.parts()
        for name, value in seconds(parts, options.steps).items():
            print(f"    {1000 * value:>8.1f} ms {parts[name].gflop:>8.0f} GFLOP  {name}", flush=True)
    if options.trace:
        with jax.profiler.trace(options.trace):
            step(3)
        print(f"    trace of three steps: {options.trace} (open it with xprof or Perfetto)")


def torch_calls(case: Case, wanted: list[str] | None) -> dict[str, Callable[[int], None]]:
    """Return plain PyTorch's functions, by the names of our programs that they are compared with."""
    if wanted is None:
        return {}
    import plain_torch

    spec = VITS[case.backbone]
    calls = plain_torch.calls(
        spec.width,
        spec.depth,
        spec.stem,
        case.size,
        np.arange(case.batch) // INSTANCES,
        CLASSES,
        case.domains,
        teacher=case.teacher is not None,
        bfloat16=case.dtype == jnp.bfloat16,
    )
    return {name: calls["infer" if name == "embedding" else "train"] for name in wanted or COMPARED[1:]}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--backbone", nargs="+", default=["vit_tiny", "vit_small"], choices=VITS)
    parser.add_argument("--batch", type=positive, nargs="+", default=[16], help="images per domain; default: 16")
    parser.add_argument("--variant", nargs="+", default=["baseline"], choices=VARIANTS)
    parser.add_argument("--precision", nargs="+", default=["auto"], choices=("auto", "float32", "bfloat16"))
    parser.add_argument(
        "--size", type=positive, nargs=2, default=[256, 128], metavar=("HEIGHT", "WIDTH"), help="in pixels"
    )
    parser.add_argument("--steps", type=positive, default=5, help=f"steps in each of {ROUNDS} rounds; default: 5")
    parser.add_argument("--remat", action="store_true", help="set train.remat")
    parser.add_argument(
        "--torch", nargs="*", choices=COMPARED, help="also measure plain PyTorch; default: network and embedding"
    )
    parser.add_argument("--compile", action="store_true", help="compile only, to fill the caches of JAX and PyTorch")
    parser.add_argument("--parts", action="store_true", help="also time the pieces of the step")
    parser.add_argument("--trace", default="", metavar="DIR", help="write a profile of three steps of each line")
    options = parser.parse_args()
    if any(side % PATCH for side in options.size):
        raise InputError(f"--size {options.size[0]} {options.size[1]}: height and width must be multiples of {PATCH}")
    if options.trace:
        options.trace = writable_folder(options.trace, "--trace")
    if options.torch is not None and not importlib.util.find_spec("torch"):
        raise InputError("--torch needs PyTorch: pip install -c constraints.txt -e '.[bench]'")
    print(f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}, {time.strftime('%F')}")
    for precision in options.precision:
        highest, source = peak(compute_dtype(precision))
        print(f"peak in {compute_dtype(precision).name}: {highest / 1e12:.3g} TFLOP/s ({source})")
        print(
            f"{'backbone':<14} {'variant':<9} {'precision':<9} {'batch':>5}{'ms/step':>9}{'images/s':>10}{'GFLOP':>10}"
            f"{'program':>9}{'GFLOP/s':>10}{'% peak':>7}{'GiB':>8}{'comp s':>7}"
        )
        for backbone, variant, batch in itertools.product(options.backbone, options.variant, options.batch):
            size = (options.size[0], options.size[1])
            measure(Case(backbone, variant, precision, batch, size, options.remat), options, highest)


if __name__ == "__main__":
    one_line(main)
