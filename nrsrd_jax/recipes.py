"""The methods of the paper's table 1 whose code could be read: what each is, and how its official code trains it.

A recipe changes the options of `config.get_config("baseline")`. models/resnet.py, models/idf.py and
models/transreid.py name the sources.
"""

import dataclasses
from typing import Any

from .config import Config, get_config

IMAGENET = {"data.mean": "0.485,0.456,0.406", "data.std": "0.229,0.224,0.225"}
CROSS_ENTROPY = {"loss.id_real": 1.0, "loss.triplet_real": 0.0}
BNNECK = {"loss.id_real": 1.0, "loss.label_smoothing": 0.1, "loss.center_real": 0.0005}
# The base rate is that of the pretrained ResNet. New layers learn ten times as fast.
SGD = {"optim.head_factor": 10.0, "optim.bias_factor": 1.0, "optim.nesterov": True, "optim.weight_decay": 5e-4}
BOT_TRAINING = IMAGENET | {
    "optim.name": "adam",
    "optim.lr": 3.5e-4,
    "optim.bias_factor": 1.0,
    "optim.weight_decay": 5e-4,
    "optim.warmup_epochs": 10,
    "optim.milestones": (40, 70),
    "optim.lead": 1,
    "data.train_filter": "bilinear",
    "augment.erasing_area": (0.02, 0.4),
    "augment.erasing_aspect": "uniform",
    # The official code erases after normalisation, so these numbers do not stand for ImageNet's mean colour.
    "augment.erasing_fill": "0.485,0.456,0.406",
    "train.epochs": 120,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method, as options that differ from the baseline's.

    Attributes:
        method: the options that define the method.
        training: the options that its official code trains with.
        small: the name of the small form of its backbone, for a CPU; "" if the method works on any ViT.
    """

    method: dict[str, Any]
    training: dict[str, Any]
    small: str = ""

    def config(self) -> Config:
        """Return the config of the method as its official code trains it."""
        config = get_config("baseline")
        config.update_from_flattened_dict(self.training | self.method)
        return config


RECIPES = {
    # eval.flip belongs to IDE and IDF because their official tests add the features of the mirrored image.
    "ide": Recipe(
        CROSS_ENTROPY | {"model.backbone": "ide_resnet50", "eval.flip": True},
        IMAGENET
        | SGD
        | {"optim.lr": 0.005, "optim.warmup_epochs": 0, "optim.milestones": (40,)}
        | {"train.batch_size": 32, "train.instances": 0, "train.epochs": 60, "augment.erasing": 0.0},
        "ide_resnet_tiny",
    ),
    "pcb": Recipe(
        CROSS_ENTROPY | {"model.backbone": "pcb_resnet50"},
        IMAGENET
        | SGD
        | {"optim.lr": 0.01, "optim.warmup_epochs": 0, "optim.milestones": (40,), "train.instances": 0}
        | {"image_size": (384, 128), "train.epochs": 60, "augment.erasing": 0.0, "augment.pad": 0}
        | {"data.train_filter": "bilinear"},
        "pcb_resnet_tiny",
    ),
    "bot": Recipe(
        BNNECK | {"model.backbone": "bot_resnet50", "loss.triplet_real": 1.0, "loss.margin": 0.3},
        BOT_TRAINING,
        "bot_resnet_tiny",
    ),
    "agw": Recipe(
        BNNECK | {"model.backbone": "agw_resnet50", "loss.triplet_real": 0.0, "loss.weighted_real": 1.0},
        BOT_TRAINING | {"loss.weighted_form": "official"},
        "agw_resnet_tiny",
    ),
    "transreid": Recipe(
        {"model.jpm": True, "model.sie": True, "loss.id_real": 1.0, "loss.triplet_real": 1.0},
        {"model.backbone": "vit_base", "optim.lr": 0.008, "optim.warmup_epochs": 5, "optim.lead": 1},
    ),
    "idf": Recipe(
        CROSS_ENTROPY
        | {"model.backbone": "idf_resnet50", "data.mean": "0,0,0", "data.std": "1,1,1", "eval.flip": True}
        # The fill is part of the method, because noise of N(0, 1) does not fit pixels in 0..1.
        | {"augment.erasing_fill": "0,0,0"}
        | {"loss.enhance": 1.0, "loss.decode": 0.1, "loss.agree": 0.1},
        SGD
        | {"optim.lr": 0.005, "optim.warmup_epochs": 0, "optim.milestones": (80,)}
        | {"train.batch_size": 32, "train.instances": 0, "augment.erasing_area": (0.02, 0.4)}
        | {"augment.erasing_aspect": "uniform"},
        "idf_resnet_tiny",
    ),
}
