"""The same network and losses in plain PyTorch, which `train_step.py --torch` measures for comparison.

It is what a user of PyTorch would write: fused attention, autocast to bfloat16, and torch.compile on a GPU.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-norm transformer block with heads of 64 numbers and drop path."""

    def __init__(self, width: int, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, -1, 64).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.drop(self.proj(y))
        return x + self.drop(self.mlp(self.norm2(x)))

    def drop(self, x):
        if not self.training or not self.drop_path:
            return x
        # The images that are kept are scaled up, so that the mean does not change.
        keep = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)


class InstanceBatchNorm(nn.Module):
    """IBN: instance norm for the first half of the channels, batch norm for the others."""

    def __init__(self, width: int):
        super().__init__()
        self.half = width // 2
        self.instance, self.batch = nn.InstanceNorm2d(self.half, affine=True), nn.BatchNorm2d(self.half)

    def forward(self, x):
        first, second = x.split(self.half, 1)
        return torch.cat([self.instance(first), self.batch(second)], 1)


def stem() -> list[nn.Module]:
    """Return the layers of the ICS stem, which halve the image's sides."""
    layers: list[nn.Module] = []
    for inputs, size, stride, norm in (
        (3, 7, 2, InstanceBatchNorm),
        (64, 3, 1, InstanceBatchNorm),
        (64, 3, 1, nn.BatchNorm2d),
    ):
        layers += [nn.Conv2d(inputs, 64, size, stride, size // 2, bias=False), norm(64), nn.ReLU(inplace=True)]
    return layers


class Network(nn.Module):
    """A ViT from images [B, 3, h, w] to features [B, D] and the logits [B, C] of `heads` classifiers."""

    def __init__(self, width: int, depth: int, has_stem: bool, tokens: int, classes: int, heads: int):
        super().__init__()
        patch = nn.Conv2d(64, width, 8, 8) if has_stem else nn.Conv2d(3, width, 16, 16)
        self.embed = nn.Sequential(*(stem() if has_stem else []), patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(Block(width, 0.1 * i / (depth - 1)) for i in range(depth)))
        self.norm, self.neck = nn.LayerNorm(width, eps=1e-6), nn.BatchNorm1d(width)
        self.heads = nn.ModuleList(nn.Linear(width, classes, bias=False) for _ in range(heads))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        features = self.norm(self.blocks(x))[:, 0]
        neck = self.neck(features)
        return features, [head(neck) for head in self.heads]


def triplet(features, labels):
    """Compute the batch-hard triplet loss with a soft margin."""
    features = features.float()
    distances = torch.cdist(features, features)
    same = labels[:, None] == labels[None]
    farthest = distances.masked_fill(~same, -torch.inf).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return F.softplus(farthest - nearest).mean()


def distill(student, teacher, labels):
    """Compute the decoupled distillation loss, eq. 5 and 6 of the paper with β = 0.8."""
    target = F.one_hot(labels, student.shape[1]).bool()

    def parts(logits):
        log_p = logits.float().log_softmax(1)
        log_target = log_p.gather(1, labels[:, None])[:, 0]
        binary = torch.stack([log_target, (-log_target.exp()).log1p()], 1)
        # −1e9 instead of −∞, because the difference of two infinities is NaN.
        return binary, log_p.masked_fill(target, -1e9).log_softmax(1)

    (b, o), (tb, to) = parts(student), parts(teacher)
    tckd = (tb.exp() * (tb - b)).sum(1)
    return (tckd + 0.8 * tb[:, 0].exp() * (to.exp() * (to - o)).sum(1)).mean()


def calls(
    width: int,
    depth: int,
    has_stem: bool,
    size: tuple[int, int],
    labels: np.ndarray,
    classes: int,
    domains: int,
    teacher: bool,
    bfloat16: bool,
) -> dict[str, Callable[[int], None]]:
    """Make functions that train or embed.

    Args:
        width, depth: of the ViT.
        has_stem: whether it has the ICS stem.
        size: height and width of the images, in pixels.
        labels: the identities [B] of a batch.
        classes: how many identities there are.
        domains: in how many domains a step learns; each has the same images.
        teacher: whether the second domain is distilled from a teacher.
        bfloat16: whether to compute in bfloat16 by autocast.

    Returns:
        {"train": …, "infer": …}. Each takes a number of steps or batches, runs them, and waits for the last.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    tokens = 1 + size[0] // 16 * (size[1] // 16)
    student = Network(width, depth, has_stem, tokens, classes, domains).to(device)
    master = Network(width, depth, has_stem, tokens, classes, 1).to(device).eval() if teacher else None
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    # PyTorch's convolutions are fastest in the channels_last layout.
    images = torch.randn(len(labels), 3, *size, device=device).to(memory_format=torch.channels_last)
    target = torch.as_tensor(labels, device=device)
    mixed = torch.autocast(device, torch.bfloat16, enabled=bfloat16)

    def loss():
        total = 0.0
        # Each domain has its own pass, because batch norms must not mix the statistics of domains.
        for domain in range(domains):
            features, logits = student(images)
            total = total + F.cross_entropy(logits[domain].float(), target) + triplet(features, target)
        # The last pass of the loop was that of the second domain, which the teacher teaches.
        if master:
            with torch.no_grad():
                taught = master(images)[1][0]
            total = total + distill(logits[1], taught, target)
        return total

    embed = student
    if device == "cuda":
        loss, embed = torch.compile(loss), torch.compile(student)

    def train() -> None:
        student.train()
        optimizer.zero_grad(set_to_none=True)
        with mixed:
            value = loss()
        value.backward()
        optimizer.step()

    def infer() -> None:
        student.eval()
        with torch.no_grad(), mixed:
            embed(images)

    def repeated(call: Callable[[], None]) -> Callable[[int], None]:
        def run(count: int) -> None:
            for _ in range(count):
                call()
            # CUDA calls return before the GPU has finished.
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    return {"train": repeated(train), "infer": repeated(infer)}
