"""Define the options of pretraining without labels: dino.

options.py has the other options, and reads and checks all of them.
"""

import dataclasses

from .errors import InputError
from .option import Pair, check_parts, option


@dataclasses.dataclass(frozen=True)
class Dino:
    """Pretraining without labels (DINO): a student learns to answer for a view as its teacher does for other views."""

    enabled: bool = option(
        False,
        "Pretrain by DINO, without labels, instead of training with labels. The options loss, augment, norm_ratio, "
        "train.instances and optim (except name, lr, weight_decay, warmup_epochs and final_factor) then have no effect "
        "and must keep their defaults.",
    )
    prototypes: int = option(
        65536, "The number of prototypes, which are the outputs of the projection head.", positive=True
    )
    hidden: int = option(2048, "The width of the head's hidden layers.", positive=True)
    bottleneck: int = option(256, "The width of the head's last layer before the prototypes.", positive=True)
    free_length: bool = option(False, "Also learn the length of each prototype, which otherwise stays 1.")
    local_views: int = option(8, "The number of small views of an image, beside its two large views.", positive=True)
    local_size: tuple[int, int] = option((128, 64), "Height and width of the small views.", unit="pixels")
    global_scale: Pair = option((0.4, 1.0), "The smallest and largest part of the image's area in a large view.")
    local_scale: Pair = option((0.05, 0.4), "The smallest and largest part of the image's area in a small view.")
    ratio: Pair = option(
        (3 / 4, 4 / 3),
        "The smallest and largest width / height of the part of the image that a view shows. The default is that of "
        "the official code, with which no view of a standing person shows the whole body; 0.375,0.667 lets it.",
    )
    koleo: float = option(
        0.0,
        "The weight of the KoLeo loss of DINOv2, which spreads the features of a batch over all directions. It is not "
        "part of DINO; DINOv2 takes 0.1.",
        low=0,
    )
    swap: float = option(
        0.0,
        "The probability that a view gets the surroundings of another image of the batch, so that only the middle of "
        "an image, where the person stands, is common to its views. This is an idea of this project, not of DINO.",
        low=0,
        high=1,
    )
    night: float = option(
        0.0,
        "The probability that the student sees its second large view darkened (degradation.*), while the teacher sees "
        "it bright. This is an idea of this project, not of DINO.",
        low=0,
        high=1,
    )
    momentum: float = option(
        0.996, "The share of its weights that the teacher keeps in a step; it rises to 1 at the end.", low=0, high=1
    )
    temperature: float = option(
        0.04, "The teacher's temperature at the start, if dino.temperature_epochs is not 0.", positive=True
    )
    temperature_end: float = option(0.04, "The teacher's temperature after dino.temperature_epochs.", positive=True)
    temperature_epochs: int = option(
        0, "How long the teacher's temperature moves to dino.temperature_end.", unit="epochs", low=0
    )
    frozen_epochs: int = option(
        1, "How long the head's last layer is not trained, from the start.", unit="epochs", low=0
    )
    clip: float = option(3.0, "The largest norm of each tensor's gradient; 0: no limit.", low=0)
    weight_decay_end: float = option(
        0.4, "The weight decay at the end; optim.weight_decay is the one at the start.", low=0
    )


def check_views(dino: Dino) -> None:
    """Raise InputError if the sizes or the shape of the views are impossible."""
    check_parts(dino.global_scale, "dino.global_scale")
    check_parts(dino.local_scale, "dino.local_scale")
    # Narrower or flatter views of a small image would be empty.
    low, high = dino.ratio
    if not 0.1 <= low <= high <= 10:
        raise InputError(f"dino.ratio is {low},{high}; give two numbers, 0.1 <= low <= high <= 10")
