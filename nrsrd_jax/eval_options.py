"""Define the options of the evaluation: eval.

options.py has the other options, and reads and checks all of them.
"""

import dataclasses

from .data.protocol import PROTOCOLS
from .option import option


@dataclasses.dataclass(frozen=True)
class Rerank:
    """Re-ranking by k-reciprocal neighbours."""

    enabled: bool = option(False, "Re-rank by k-reciprocal neighbours.")
    k1: int = option(20, "How many nearest images count as an image's neighbours.", unit="images", positive=True)
    k2: int = option(6, "Over how many nearest images to average the sets of neighbours.", unit="images", positive=True)
    lambda_value: float = option(
        0.3, "The weight of the original distance; the distance between neighbour sets has the rest.", low=0, high=1
    )


@dataclasses.dataclass(frozen=True)
class EvalData:
    """The data sets to evaluate on, one after the other, instead of data.name."""

    name: str = option(
        "", "The layout of the data set to evaluate on, as in data.name; empty: the data set of data.name."
    )
    root: str = option("", "The folder of the data set to evaluate on, as in data.root.", resumable=True)
    protocol: str = option("", "Which test of the data set to evaluate on, as in data.protocol.")


@dataclasses.dataclass(frozen=True)
class Eval:
    """The evaluation, while training and after it."""

    every: int = option(
        20, "How often to evaluate; 0: only after the last epoch.", unit="epochs", low=0, resumable=True
    )
    batch_size: int = option(
        256, "How many images to embed at once, over all devices.", unit="images", positive=True, resumable=True
    )
    protocol: str = option(
        "cross-camera",
        "Which gallery images count for a query: cross-camera leaves out those of its identity and camera, as "
        "Market-1501 does; all-cameras is for data without cameras.",
        choices=tuple(PROTOCOLS),
    )
    flip: bool = option(False, "Also embed each image mirrored, and average both features.")
    feature: str = option(
        "cls",
        "The features to compare: cls (the model's embedding, as in the paper), centred (the embedding minus its mean "
        "over the training images) or neck (the output of the BNNeck).",
        choices=("cls", "centred", "neck"),
    )
    normalize: str = option(
        "none",
        "Standardise features by the mean and standard deviation of the test images of the same camera (camera) or of "
        "similar brightness (brightness). This uses the whole test set, so the results are marked transductive.",
        choices=("none", "camera", "brightness"),
    )
    expand: int = option(
        0, "How many of its nearest gallery images to average each query's feature with.", unit="images", low=0
    )
    rerank: Rerank = Rerank()
    data: EvalData = EvalData()
