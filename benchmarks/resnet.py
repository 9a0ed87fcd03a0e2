"""Compare the speed of our ResNet-50 with torchvision's on this CPU. The two take turns in one process.

  python benchmarks/resnet.py [--batch 16] [--rounds 5]

"forward" computes the features of a batch; "step" computes cross-entropy over 300 classes and its gradients, and
updates by plain SGD. Both are in float32. The script prints the median seconds of each and their ratio: above 1, ours
is faster. It needs torch and torchvision, and lets both libraries use all cores.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nrsrd_jax.command import Parser, one_line, positive
from nrsrd_jax.errors import say
from nrsrd_jax.losses import id_loss
from nrsrd_jax.models import create_model, initialise

SIZE, CLASSES, RATE = (256, 128), 300, 0.01


def ours(images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return functions that run our forward pass and our training step once, on images [B, 3, h, w]."""
    # The official BoT has no activation after the first norm. This variant has one, as torchvision's network does.
    model = create_model("bot_resnet50_relu", classes=CLASSES)
    variables = initialise(model, jax.random.key(0), SIZE)
    inputs = jnp.asarray(images.transpose(0, 2, 3, 1))

    def loss(params, stats):
        out: Any = model.apply(
            {"params": params, "batch_stats": stats},
            inputs,
            train=True,
            rngs={"drop_path": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return id_loss(out[0]["parts"][0]["logits"]["real"], jnp.asarray(labels)), out[1]["batch_stats"]

    @jax.jit
    def step(params, stats):
        gradients, stats = jax.grad(loss, has_aux=True)(params, stats)
        return optax.apply_updates(params, jax.tree.map(lambda g: -RATE * g, gradients)), stats

    @jax.jit
    def embed(variables, x):
        out: Any = model.apply(variables, x)
        return out["embedding"]

    return {
        "forward": lambda: jax.block_until_ready(embed(variables, inputs)),
        "step": lambda: jax.block_until_ready(step(variables["params"], variables["batch_stats"])),
    }


def theirs(images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the same functions for torchvision's ResNet-50 with a last stride of 1."""
    import torch  # pyright: ignore[reportMissingImports]
    import torchvision  # pyright: ignore[reportMissingImports]

    network = torchvision.models.resnet50(num_classes=CLASSES)
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)

    def forward():
        network.eval()
        with torch.no_grad():
            return network(inputs)

    def step():
        network.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()

    return {"forward": forward, "step": step}


def main() -> None:
    parser = Parser(__doc__, "python benchmarks/resnet.py")
    parser.add_argument("--batch", type=positive, default=16, help="images per batch; default: 16")
    parser.add_argument("--rounds", type=positive, default=5, help="timed turns of each; default: 5")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, 3, *SIZE)).astype(np.float32)
    labels = rng.integers(0, CLASSES, options.batch)
    # The two take turns, so that other work on the machine slows both alike.
    pairs = ours(images, labels), theirs(images, labels)
    for name in ("forward", "step"):
        seconds: tuple[list[float], list[float]] = ([], [])
        for turn in range(options.rounds + 1):
            for each, times in zip(pairs, seconds, strict=True):
                begin = time.perf_counter()
                each[name]()
                # The first turn compiles, so it is not timed.
                if turn:
                    times.append(time.perf_counter() - begin)
        own, other = map(statistics.median, seconds)
        say(f"{name:8} ours {own:.3f} s, PyTorch {other:.3f} s, PyTorch/ours {other / own:.2f}")


if __name__ == "__main__":
    one_line(main)
