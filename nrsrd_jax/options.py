"""Define every option: type, default, meaning, range and choices, and whether a resumed run may change it.

`nrsrd train --options` prints all options. The command line and `configs/` set options by name on a ConfigDict
(`config.py`). `read_options` checks the ConfigDict and returns an `Options`, the only form that the rest of the program
sees.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from .data_options import Augment, Aux, Data, Degradation, check_curriculum, fixed_statistic, three_numbers
from .dino_options import Dino, check_views
from .errors import InputError
from .eval_options import Eval
from .option import check_parts, listed, option

Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    backbone: str = option("vit_base_ics", "The backbone network.")
    depth: int = option(
        0,
        "The number of transformer blocks, for vit_tiny and vit_tiny_ics; 0: the backbone's own (vit_tiny 4, others "
        "12).",
        unit="blocks",
        low=0,
    )
    stride: int = option(
        0, "The distance between patches of a ViT; 0: the backbone's own (16). With TransReID's 12 patches overlap.",
        unit="pixels", low=0, high=16,
    )  # fmt: skip
    jpm: bool = option(False, "Add TransReID's local features to a ViT: four more parts, made of shuffled patches.")
    sie: bool = option(
        False,
        "Add TransReID's camera embedding, in training and at test time. Every test camera must occur in training.",
    )
    sie_factor: float = option(
        3.0, "The factor of the camera embedding, which TransReID calls SIE_COE.", low=0.001, high=1000
    )
    norm_ratio: bool = option(True, "Use Norm-Ratio Attention in the last block.")
    drop_path: float = option(
        0.1,
        "The rate of stochastic depth in the last block; it rises linearly from 0 in the first block.",
        low=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class NormRatioOptions:
    """Norm-Ratio Attention."""

    init: float = option(1.0, "The initial value of λ, which is learned.")
    scope: str = option(
        "head",
        "Whether norms are those of each head's vector (head) or of the whole token's (token).",
        choices=("head", "token"),
    )
    epsilon: float = option(1e-6, "ε in the paper's equation 2.", positive=True)
    form: str = option(
        "ratio",
        "The penalty: λ‖K‖/(‖Q‖+ε) as in the paper (ratio), or λ(‖K‖ − mean)/deviation over the keys (standard).",
        choices=("ratio", "standard"),
    )


@dataclasses.dataclass(frozen=True)
class Loss:
    """The weights λ of the paper's equation 10, and the options of each loss."""

    id_real: float = option(0.5, "The weight of the identity loss on the real images.")
    triplet_real: float = option(0.5, "The weight of the triplet loss on the real images.")
    spread_real: float = option(
        0.0,
        "The weight of the spread loss on the real images, which keeps the features' standard deviation at 1 or more.",
        low=0,
    )
    weighted_real: float = option(
        0.0, "The weight of AGW's weighted regularised triplet loss on the real images.", low=0
    )
    center_real: float = option(0.0, "The weight of the centre loss on the real images, for bot and agw.", low=0)
    id_syn: float = option(0.5, "The weight of the identity loss on the auxiliary images.")
    triplet_syn: float = option(0.5, "The weight of the triplet loss on the auxiliary images.")
    spread_syn: float = option(0.0, "The weight of the spread loss on the auxiliary images.", low=0)
    distill: float = option(0.02, "The weight of the distillation from the teacher.")
    relation: float = option(
        0.0,
        "The weight of the relation loss, which makes the student's features as far apart as the teacher's.",
        low=0,
    )
    consistency: float = option(
        0.0,
        "The weight of the consistency loss, which pulls the features of dark auxiliary images to the model's own "
        "features of the bright ones. It takes one more forward pass.",
        low=0,
    )
    enhance: float = option(
        0.0,
        "The weight of IDF's loss on the enhanced images, which asks for smooth curves, even exposure, the contrast of "
        "the original and balanced colours.",
        low=0,
    )
    decode: float = option(
        0.0, "The weight of IDF's loss on the features that are decoded from the fused feature.", low=0
    )
    agree: float = option(
        0.0,
        "The weight of IDF's agreement loss, which makes the other parts predict identities as the fused feature does.",
        low=0,
    )
    label_smoothing: float = option(0.0, "The label smoothing ε of the identity losses.", low=0, below=1)
    margin: float | None = option(None, "The margin of the triplet losses; without a value, the soft margin.", low=0)
    normalize: bool = option(False, "Scale features to length 1 before the triplet losses.")
    weighted_form: str = option(
        "exact",
        "How loss.weighted_real weights pairs: by a softmax (exact), or as the official code does, where the weights "
        "vanish if features are far apart (official).",
        choices=("exact", "official"),
    )
    alpha: float = option(1.0, "The weight of the target-class part (TCKD) of the distillation.")
    beta: float = option(0.8, "The weight of the non-target-class part (NCKD) of the distillation.")
    temperature: float = option(1.0, "The temperature of the distillation.", positive=True)
    nckd_weight: str = option(
        "target",
        "Whether to multiply NCKD by the teacher's probability of the target, as in equation 6 (target), or not, as in "
        "DKD's code (none).",
        choices=("target", "none"),
    )


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser and its learning rate."""

    name: str = option(
        "sgd",
        "The optimiser. adam adds the weight decay to the gradient; adamw applies it separately.",
        choices=("sgd", "adam", "adamw"),
    )
    lr: float = option(
        4e-4,
        "The base learning rate, chosen for batches of 64. It is not rescaled with the batch size.",
        positive=True,
    )
    bias_factor: float = option(2.0, "The learning rate of biases.", unit="base rates")
    head_factor: float = option(
        1.0, "The learning rate of parameters that are not pretrained, such as classifiers.", unit="base rates", low=0
    )
    center_lr: float = option(0.5, "The learning rate of the centres of loss.center_real.", low=0)
    momentum: float = option(0.9, "The momentum of sgd.", low=0, high=1)
    nesterov: bool = option(False, "Use Nesterov momentum with sgd.")
    weight_decay: float = option(1e-4, "The weight decay.", low=0)
    warmup_epochs: int = option(20, "The length of the linear warm-up.", unit="epochs", low=0)
    warmup_factor: float = option(0.01, "The learning rate at the start of the warm-up.", unit="base rates")
    final_factor: float = option(0.002, "The learning rate at the end of the cosine.", unit="base rates")
    milestones: tuple[int, ...] | None = option(
        None,
        "Epochs at which to divide the learning rate by ten, like 40,70; without a value, it follows a cosine.",
        unit="epochs",
    )  # fmt: skip
    lead: int = option(
        0,
        "How far the schedule is ahead: 1 as in the code of TransReID and BoT, which steps it before each epoch.",
        unit="epochs", low=0, high=1,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Train:
    """The training run."""

    epochs: int = option(120, "How long to train.", unit="epochs", positive=True)
    batch_size: int = option(64, "The size of a batch of each domain, over all devices.", unit="images", positive=True)
    instances: int = option(
        4,
        "How many images of each identity a batch has. 0: any, because images are drawn in random order, as the codes "
        "of IDE, PCB and IDF do.",
        unit="images",
        low=0,
    )
    seed: int = option(0, "The seed of all random numbers.", low=0, high=2**32 - 1)
    precision: str = option(
        "auto",
        "The data type of matrix products. auto is bfloat16 on an accelerator and float32 on a CPU.",
        choices=("auto", "float32", "bfloat16"),
    )
    remat: bool = option(
        False,
        "Recompute each block in the backward pass. This takes less memory, but a third more computation.",
        resumable=True,
    )
    debug_nans: bool = option(False, "Stop at the first operation that gives NaN. This is slow.", resumable=True)
    model_parallel: int = option(
        1,
        "How many devices each parameter is split over. The batch is split over groups of that many devices.",
        unit="devices",
        positive=True,
        resumable=True,
    )  # fmt: skip
    log_every: int = option(10, "Steps between lines of metrics.jsonl.", unit="steps", positive=True, resumable=True)
    loggers: str = option(
        "auto",
        "The trackers that also get the numbers of metrics.jsonl: tensorboard, wandb and mlflow, separated by commas. "
        "Empty: no tracker. auto: tensorboard if tensorboardX is installed.",
        resumable=True,
    )
    save_every: int = option(5, "How often to save a checkpoint.", unit="epochs", positive=True, resumable=True)


@dataclasses.dataclass(frozen=True)
class Init:
    """What training starts from."""

    checkpoint: str = option(
        "", "The checkpoint or work directory to take the backbone's first weights from; empty: random weights."
    )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher of Semantic Recovery Distillation."""

    enabled: bool = option(True, "Distil from a teacher that sees the bright images of the auxiliary domain.")
    checkpoint: str = option(
        "runs/teacher", "The teacher's checkpoint or work directory. A resumed run compares a hash of its weights.",
        resumable=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """All options. The defaults are the paper's run on Night600."""

    variant: str = option("nrsrd", "A label for tables and plots; it has no other effect.", resumable=True)
    image_size: tuple[int, int] = option(
        (256, 128),
        "Height and width of the images that the network takes, multiples of what the backbone needs (a ViT: 16).",
        unit="pixels",
    )
    data: Data = Data()
    aux: Aux = Aux()
    degradation: Degradation = Degradation()
    augment: Augment = Augment()
    model: Model = Model()
    norm_ratio: NormRatioOptions = NormRatioOptions()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    eval: Eval = Eval()
    init: Init = Init()
    teacher: Teacher = Teacher()
    dino: Dino = Dino()


OPTIONS = {each.name: each for each in listed(Options)}
# A pretraining ignores the options that begin with WITHOUT_EFFECT, except those in IN_DINO.
WITHOUT_EFFECT = "loss.", "augment.", "norm_ratio.", "optim.", "train.instances"
IN_DINO = "optim.name", "optim.lr", "optim.weight_decay", "optim.warmup_epochs", "optim.final_factor"


def read_options(config: Any) -> Options:
    """Return the options that a ConfigDict sets.

    Raises:
        InputError: an option is missing, unknown or invalid, or two options conflict.
    """
    given = flatten(config)
    for name in sorted(given.keys() ^ OPTIONS.keys()):
        raise InputError(f"the config {f'sets {name}, which is not an option' if name in given else f'lacks {name}'}")
    options = _read(Options, config)
    if options.teacher.enabled and not options.aux.enabled:
        raise InputError("teacher.enabled needs aux.enabled: the teacher sees the auxiliary domain")
    if options.loss.consistency and not options.aux.enabled:
        raise InputError("loss.consistency needs aux.enabled: it compares dark auxiliary images with the bright ones")
    check_curriculum(options.aux, options.train.epochs)
    if options.model.sie and options.aux.enabled:
        raise InputError("model.sie needs aux.enabled=False: the auxiliary images have other cameras")
    if options.model.sie_factor != OPTIONS["model.sie_factor"].default and not options.model.sie:
        raise InputError("model.sie_factor has no effect without model.sie; set both")
    if options.model.sie and "," in options.data.name:
        raise InputError("model.sie needs a single data set: several data sets are joined with new camera numbers")
    changed = [name for name, value in flatten(options).items() if value != OPTIONS[name].default]
    if options.dino.enabled:
        _check_dino(options, changed)
    elif unused := [name for name in changed if name.startswith("dino.")]:
        raise InputError(f"{', '.join(unused)} would have no effect without dino.enabled; do not set it")
    elif options.data.include:
        raise InputError("data.include is only for pretraining; to leave out labelled images, set data.exclude")
    if not options.eval.data.name and (options.eval.data.root or options.eval.data.protocol):
        raise InputError("eval.data.root and eval.data.protocol need eval.data.name, the layout of the data set")
    check_parts(options.augment.erasing_area, "augment.erasing_area")
    if options.augment.erasing_fill:
        three_numbers(options.augment.erasing_fill, "augment.erasing_fill")
    fixed_statistic(options.data.mean, "data.mean")
    fixed_statistic(options.data.std, "data.std")
    return options


def _check_dino(options: Options, changed: list[str]) -> None:
    """Raise InputError if the options do not fit a pretraining. `changed` names those that differ from the default."""
    for name in ("aux.enabled", "teacher.enabled", "model.norm_ratio", "model.jpm", "model.sie"):
        group, _, last = name.partition(".")
        if getattr(getattr(options, group), last):
            raise InputError(f"dino.enabled needs {name}=False: it pretrains a plain ViT, without labels")
    if options.optim.name != "adamw":
        raise InputError(f"optim.name is {options.optim.name}; dino.enabled needs adamw")
    check_views(options.dino)
    if options.train.batch_size == 1 and (options.dino.swap or options.dino.koleo):
        raise InputError("train.batch_size is 1; dino.swap and dino.koleo need other images in the batch, so 2 or more")
    if options.data.holdout:
        raise InputError("data.holdout needs labels, which dino.enabled does not use")
    if unused := [name for name in changed if name.startswith(WITHOUT_EFFECT) and name not in IN_DINO]:
        raise InputError(f"dino.enabled: {', '.join(unused)} would have no effect; do not set it")
    if "dino.temperature" in changed and not options.dino.temperature_epochs:
        raise InputError(
            "dino.temperature would have no effect, as dino.temperature_epochs is 0; set both, or dino.temperature_end"
        )


def flatten(config: Any) -> dict[str, Any]:
    """Return the options of an Options or a ConfigDict by their full names, {"train.epochs": 120, …}."""
    return _flatten(dataclasses.asdict(config) if isinstance(config, Options) else config.to_dict())


def _flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in _flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _read(group: type[Group], config: Any, prefix: str = "") -> Group:
    values = {}
    for name, default in vars(group()).items():
        value = config[name]
        if dataclasses.is_dataclass(default):
            value = _read(type(default), value, f"{prefix}{name}.")
        else:
            OPTIONS[prefix + name].check(value)
        values[name] = value
    return group(**values)
