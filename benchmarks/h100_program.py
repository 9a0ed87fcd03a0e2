"""Predict the time of a training step on an H100 from the program that XLA compiles for it. No GPU is needed.

  pip install -c constraints.txt -e '.[cuda13]'
  python benchmarks/h100_program.py [--backbone vit_base_ics …] [--batch 128 …] [--variant nrsrd …] [--plain] [--top 20]

It prints a line per step: GFLOP as in train_step.py; the GB that products (matrices, convolutions, attention) and all
other kernels read and write; and the expected time. That is the time of the products at 75 % of the data sheet's 989
TFLOP/s, plus the time of the other kernels' bytes at 90 % of its 3.35 TB/s. Without a GPU, XLA cannot tune kernels, so
the products use cuBLAS and never Triton. The script uses internals of the JAX version that constraints.txt pins.
"""

import collections
import itertools
import os
import re
from typing import Any

# JAX reads these variables when it is imported.
os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu,cuda"}
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_triton_gemm=false"

import jax
import numpy as np
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies
from train_step import BFLOAT16_PEAK, VITS, Case, Timed

from nrsrd_jax.command import Parser, one_line, positive
from nrsrd_jax.config import VARIANTS
from nrsrd_jax.errors import InputError
from nrsrd_jax.files import writable_file
from nrsrd_jax.models import attention

# What kernels are expected to reach, in FLOP/s and bytes/s.
FLOPS, BANDWIDTH = 0.75 * BFLOAT16_PEAK["H100"], 0.9 * 3.35e12
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000
  l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 28 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
WIDTHS = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
# An instruction of HLO: its name, shape, kind, operands and attributes.
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)")
NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}
PRODUCT = re.compile(r'custom_call_target="(__cublas|__cudnn)')


def pretend_an_h100_is_here() -> Any:
    """Return an H100 to compile for, and make JAX believe that it has one. InputError without a CUDA compiler."""
    known = xla_bridge.canonicalize_platform
    jax.default_backend = lambda: "gpu"
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name in ("gpu", "cuda") else known(name)
    cudnn.check_compute_capability = lambda capability: True
    cudnn.is_cuda_compute_capability_equal = lambda capability: False
    cudnn.check_cudnn_version = lambda: 92800
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1").devices[0]
    except (NotImplementedError, RuntimeError) as error:
        raise InputError("no CUDA compiler; install it: pip install -c constraints.txt -e '.[cuda13]'") from error


def size(shape: str) -> int:
    """Return the bytes of a shape in HLO notation; for a tuple, the sum over its elements."""
    return sum(
        WIDTHS.get(kind, 0) * int(np.prod([int(n) for n in dims.split(",") if n]))
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def kernels(program: str) -> list[tuple[str, int, bool]]:
    """Return (place in the model, bytes read and written, whether it is a product) of each kernel in an HLO text."""
    computations, name = {}, ""
    for line in program.splitlines():
        if line.endswith("{") and (head := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", line)):
            name = "ENTRY" if line.startswith("ENTRY") else head[1]
            computations[name] = []
        elif name and (found := INSTRUCTION.match(line)):
            computations[name].append((found[1], found[2], found[3], re.findall(r"%([\w.\-]+)", found[4]), found[5]))
    shapes = {instruction: shape for instruction, shape, *_ in computations["ENTRY"]}

    def read(operands: list[str], rest: str) -> int:
        # A fusion that only slices an operand reads only the slices.
        called = re.search(r"calls=%([\w.\-]+)", rest)
        inside = computations.get(called[1], []) if called else []
        parameters = [instruction for instruction, _, kind, *_ in inside if kind == "parameter"]
        total = 0
        for place, operand in enumerate(operands):
            users = [i for i in inside if place < len(parameters) and parameters[place] in i[3]]
            sliced = users and all(kind in ("slice", "dynamic-slice") for _, _, kind, *_ in users)
            whole = size(shapes.get(operand, ""))
            total += min(whole, sum(size(shape) for _, shape, *_ in users)) if sliced else whole
        return total

    found = []
    for _, shape, kind, operands, rest in computations["ENTRY"]:
        # The other instructions of the entry computation are launched as kernels.
        if kind not in NO_KERNEL:
            where = re.search(r'op_name="([^"]*)"', rest)
            found.append((where[1] if where else kind, size(shape) + read(operands, rest), bool(PRODUCT.search(rest))))
    return found


def place(where: str) -> str:
    """Return the place of a kernel in the model, without the number of the block, so that blocks add up."""
    direction = "backward" if "transpose(" in where else "forward"
    name = re.sub(r"blocks_\d+", "block", re.sub(r".*/base/", "", where))
    return f"{direction} {'/'.join(name.split('/')[:3])}"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--backbone", nargs="+", default=["vit_base_ics"], choices=VITS)
    parser.add_argument("--batch", type=positive, nargs="+", default=[128], help="images per domain; default: 128")
    parser.add_argument("--variant", nargs="+", default=["baseline"], choices=VARIANTS)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", action="store_true", help="set train.remat")
    parser.add_argument("--plain", action="store_true", help="compile attention without cuDNN")
    parser.add_argument("--top", type=int, default=0, help="list the TOP places that move the most bytes")
    parser.add_argument("--dump", default="", metavar="FILE", help="write the text of the last step's program")
    options = parser.parse_args()
    if options.dump:
        options.dump = writable_file(options.dump, "--dump")
    device = pretend_an_h100_is_here()
    # There is no GPU on which cuDNN's attention could be tried, so the option decides.
    attention.fusion_works = lambda: not options.plain

    def on_device(tree: Any) -> Any:
        sharding = jax.sharding.SingleDeviceSharding(device)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    print(
        "backbone       variant   batch kernels  GFLOP GB of products of others    GiB expected ms images/s % peak "
        "compiled in"
    )
    for backbone, variant, batch in itertools.product(options.backbone, options.variant, options.batch):
        case = Case(backbone, variant, options.precision, batch, (256, 128), options.remat)
        # Compiling needs only the shapes of the arguments.
        arguments = jax.eval_shape(case.create), case.data | {"epoch": np.int32(0)}, case.teacher_variables
        step = Timed(case.step, on_device(arguments), donated=True)
        program: Any = step.compiled.as_text()
        found = kernels(program)
        products, others = (sum(b for _, b, product in found if product == which) for which in (True, False))
        expected = 1e9 * case.gflop / FLOPS + others / BANDWIDTH
        print(
            f"{backbone:<14} {variant:<9} {batch:>5} {len(found):>7} {case.gflop:>6.0f} {products / 1e9:>14.1f} "
            f"{others / 1e9:>9.1f} {step.gib:>6.2f} "
            f"{1000 * expected:>11.1f} {case.domains * batch / expected:>8.0f} "
            f"{1e11 * case.gflop / expected / BFLOAT16_PEAK['H100']:>6.1f} {step.compile_seconds:>9.0f} s"
        )
        places = collections.Counter()
        for where, bytes_, _ in found:
            places[place(where)] += bytes_
        for name, bytes_ in places.most_common(options.top):
            print(f"    {bytes_ / 1e9:>6.2f} GB  {name}")
        if options.dump:
            with open(options.dump, "w") as file:
                file.write(program)


if __name__ == "__main__":
    one_line(main)
