"""Every option: its type, default, meaning, range and choices, and whether it may change when a run is resumed.

`nrsrd train --options` prints them. The command line and `configs/` set them by name on a ConfigDict (`config.py`);
`read_options` checks that and returns an `Options`, which is all that the rest of the program sees.
"""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any, TypeVar

from .data.protocol import PROTOCOLS
from .data.readers import LAYOUTS
from .errors import InputError
from .option import Pair, listed, option

Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Data:
    """The images to learn from, and to test on if eval.data names no others."""

    name: str = option(
        "night600",
        "The layout of the data set, or several: market1501,msmt17. bright has training images only, folders is one "
        "folder per identity, manifest a CSV file; crops, for dino, any folders or lists of crops without labels.",
    )
    root: str = option(
        "data/Night600",
        "Its folder, or a manifest's CSV file; for several data sets one each, separated by commas.",
        resumable=True,
    )
    protocol: str = option(
        "",
        "Which test of a data set that has several: nightreid 528, 528-no-distractors, 1000, …; knight 1-2, 1-3, 2-3.",
    )
    exclude: str = option(
        "", "A file of image paths to leave out, as nrsrd check --fix-list writes it.", resumable=True
    )
    include: str = option(
        "",
        "For dino: a list of crops (.csv with a column path), as nrsrd select writes it; only these are learnt from.",
        resumable=True,
    )
    holdout: float = option(
        0.0,
        "The share of the training people to leave out of training. While training only they are evaluated, across "
        "cameras, so that the best checkpoint is not chosen by the test data, as the official code does (0).",
        low=0,
        below=1,
    )
    cache: str = option(
        "disk",
        "Where decoded images are kept: in device memory, on disk as a memory map, or nowhere, so that each use "
        "decodes again.",
        choices=("device", "disk", "none"),
        resumable=True,
    )
    cache_dir: str = option("", "The folder of decoded images; empty: ~/.cache/nrsrd_jax.", resumable=True)
    mean: str = option(
        "half",
        "What is subtracted from pixels in 0..1: half (0.5), dataset (the mean of the training images) or a number "
        "in 0..1 for each channel, like 0.1,0.1,0.1.",
    )
    std: str = option("half", "What pixels are then divided by: half, dataset or three numbers, as data.mean.")
    train_filter: str = option(
        "bicubic",
        "How training images are resized; test images are resized bilinearly.",
        choices=("bicubic", "bilinear"),
    )
    brighten: float = option(
        0.0,
        "The mean in 0..1 that each darker image is brightened to by a power of its pixels, before normalisation, in "
        "training and at test time; 0: no change. It depends on no other image.",
        low=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class Aux:
    """The auxiliary domain: well-lit images and their dark versions."""

    enabled: bool = option(True, "Also learn from dark versions of a bright auxiliary domain.")
    bright_root: str = option(
        "data/Syn_Dark/bright", "The folder of its bright images, named <pid>_c<camera>_*.jpg.", resumable=True
    )
    dark_root: str = option(
        "",
        "The folder of their dark twins, with the same file names; empty: the training step darkens the bright images.",
        resumable=True,
    )


@dataclasses.dataclass(frozen=True)
class Degradation:
    """How a bright image is darkened. An option without a value takes the preset's (lowlight.PRESETS)."""

    preset: str = option("maet", "The sensor and light to imitate: maet or low_noise.")
    inverse_tone: bool | None = option(None, "Undo a tone curve first.")
    gamma: Pair | None = option(None, "Low and high end of the exponent from sRGB to linear light, 0 < low <= high.")
    gain: Pair | None = option(None, "Mean and standard deviation of the sensor's gain.")
    red_gain: Pair | None = option(None, "Low and high end of red's white balance, 0 < low <= high.")
    blue_gain: Pair | None = option(None, "Low and high end of blue's white balance, 0 < low <= high.")
    light_unit: str | None = option(None, "What the light's intensity scales: linear light or srgb values.")
    light_distribution: str | None = option(None, "How the intensity is drawn: normal or uniform.")
    light_moments: Pair | None = option(None, "Mean and standard deviation of a normal intensity.")
    light: Pair | None = option(None, "Low and high end of the intensity; 1 is full light.")
    shot: Pair | None = option(None, "Low and high end of the shot noise's variance, per unit of light.")
    read_line: Pair | None = option(None, "Slope and offset of the read noise's log-variance over the shot noise's.")
    read_spread: float | None = option(None, "Standard deviation around that line.")
    row: Pair | None = option(None, "Low and high end of a row's noise, in standard deviations of the read noise.")
    cast: float | None = option(None, "Standard deviation of the logarithm of a smooth colour cast.")
    bits: tuple[int, ...] | None = option(None, "The bit depths of the sensor's converter to draw from.")


@dataclasses.dataclass(frozen=True)
class Augment:
    """How training images are varied."""

    flip: float = option(0.5, "The probability of mirroring.", low=0, high=1)
    pad: int = option(10, "The black margin on each side before the random crop.", unit="pixels", low=0)
    erasing: float = option(0.5, "The probability of erasing a rectangle.", low=0, high=1)
    erasing_area: Pair = option((0.02, 1 / 3), "Its smallest and largest area, as a part of the image's.")
    erasing_aspect: str = option(
        "log", "How its height/width is drawn from 0.3 to 3.3: log-uniform or uniform.", choices=("log", "uniform")
    )
    erasing_fill: str = option(
        "", "The colour that it is filled with after normalisation, like 0.485,0.456,0.406 as in BoT; empty: noise."
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    backbone: str = option("vit_base_ics", "The backbone.")
    depth: int = option(
        0, "The number of blocks, for a vit_tiny; 0: the backbone's own (vit_tiny 4, others 12).", unit="blocks", low=0
    )
    stride: int = option(
        0, "The distance between patches of a ViT; 0: the backbone's own (16). TransReID's 12 lets them overlap.",
        unit="pixels", low=0, high=16,
    )  # fmt: skip
    jpm: bool = option(False, "TransReID's local features: a ViT with four more parts, of shuffled patches.")
    sie: bool = option(
        False, "TransReID's vector of the image's camera, in training and at test time; all cameras must be trained."
    )
    norm_ratio: bool = option(True, "Norm-Ratio Attention in the last block.")
    drop_path: float = option(
        0.1, "The rate of stochastic depth in the last block; it rises from 0 in the first.", low=0, below=1
    )


@dataclasses.dataclass(frozen=True)
class NormRatioOptions:
    """Norm-Ratio Attention."""

    init: float = option(1.0, "λ at the start; it is learned.")
    scope: str = option(
        "head", "Whether norms are of each head's vector or of the whole token's.", choices=("head", "token")
    )
    epsilon: float = option(1e-6, "ε of the paper's equation 2.", positive=True)
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
        0.0, "The weight of the spread loss on the real images: their features keep a deviation of 1.", low=0
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
        0.0, "The weight of the relation loss: the student's features are as far apart as the teacher's.", low=0
    )
    enhance: float = option(
        0.0, "The weight of IDF's loss of the enhanced images: even curves, exposure, contrast and colour.", low=0
    )
    decode: float = option(0.0, "The weight of IDF's loss of the features decoded from the fused one.", low=0)
    agree: float = option(
        0.0, "The weight of IDF's agreement loss: the other parts predict the identities as the fused one does.", low=0
    )
    label_smoothing: float = option(0.0, "The label smoothing ε of the identity losses.", low=0, below=1)
    margin: float | None = option(None, "The margin of the triplet losses; without a value the soft margin.")
    normalize: bool = option(False, "Scale features to length 1 for the triplet losses.")
    weighted_form: str = option(
        "exact",
        "The weights of loss.weighted_real: a softmax (exact), or the official code's, which vanish where features are "
        "far apart (official).",
        choices=("exact", "official"),
    )
    alpha: float = option(1.0, "The weight of TCKD in the distillation.")
    beta: float = option(0.8, "The weight of NCKD in the distillation.")
    temperature: float = option(1.0, "The temperature of the distillation.", positive=True)
    nckd_weight: str = option(
        "target",
        "Whether NCKD is multiplied by the teacher's probability of the target (equation 6), or not (DKD's code).",
        choices=("target", "none"),
    )


@dataclasses.dataclass(frozen=True)
class Dino:
    """Pretraining without labels: a student learns to see in every view of an image what its teacher sees in others."""

    enabled: bool = option(
        False,
        "Pretrain by DINO instead, without labels. loss, augment, norm_ratio, train.instances and all of optim but "
        "name, lr, weight_decay, warmup_epochs and final_factor then have no effect, and must have their defaults.",
    )
    prototypes: int = option(65536, "The outputs of the head.", positive=True)
    hidden: int = option(2048, "The width of the head's hidden layers.", positive=True)
    bottleneck: int = option(256, "The width of the head before the prototypes.", positive=True)
    free_length: bool = option(False, "Learn the length of each prototype too.")
    local_views: int = option(8, "The small views of an image, beside two large ones.", positive=True)
    local_size: tuple[int, int] = option((128, 64), "Height and width of small views.", unit="pixels")
    global_scale: Pair = option((0.4, 1.0), "The least and the largest part of the image that a large view shows.")
    local_scale: Pair = option((0.05, 0.4), "The least and the largest part of the image that a small view shows.")
    night: float = option(
        0.0,
        "The probability that the student sees its second large view darkened (degradation.*), as the teacher does "
        "not: this project's idea, not DINO's.",
        low=0,
        high=1,
    )
    momentum: float = option(0.996, "What part of itself the teacher keeps in a step; it ends at 1.", low=0, high=1)
    temperature: float = option(
        0.04, "The teacher's temperature at the start, if temperature_epochs is not 0.", positive=True
    )
    temperature_end: float = option(0.04, "The teacher's temperature after temperature_epochs.", positive=True)
    temperature_epochs: int = option(0, "How long the teacher's temperature changes.", unit="epochs", low=0)
    frozen_epochs: int = option(1, "How long the head's last layer is not trained.", unit="epochs", low=0)
    clip: float = option(3.0, "The largest norm of each tensor's gradient; 0: any.", low=0)
    weight_decay_end: float = option(0.4, "The weight decay at the end; optim.weight_decay is the first.", low=0)


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser and its learning rate."""

    name: str = option(
        "sgd",
        "The optimiser; adam adds the weight decay to the gradient, adamw keeps them apart.",
        choices=("sgd", "adam", "adamw"),
    )
    lr: float = option(
        4e-4, "The base learning rate, meant for batches of 64; it is not rescaled with the batch.", positive=True
    )
    bias_factor: float = option(2.0, "The learning rate of parameters called bias.", unit="base rates")
    head_factor: float = option(
        1.0, "The learning rate of parameters that no pretraining made, such as classifiers.", unit="base rates", low=0
    )
    center_lr: float = option(0.5, "The learning rate of the centres of loss.center_real.", low=0)
    momentum: float = option(0.9, "The momentum of sgd.", low=0, high=1)
    nesterov: bool = option(False, "Nesterov's form of the momentum of sgd.")
    weight_decay: float = option(1e-4, "The weight decay.", low=0)
    warmup_epochs: int = option(20, "The length of the linear warm-up.", unit="epochs", low=0)
    warmup_factor: float = option(0.01, "The rate of the first epoch.", unit="base rates")
    final_factor: float = option(0.002, "The rate at which the cosine ends.", unit="base rates")
    milestones: tuple[int, ...] | None = option(
        None, "Epochs from which the rate is a tenth of that before, like 40,70; without a value a cosine.",
        unit="epochs",
    )  # fmt: skip
    lead: int = option(
        0,
        "How far the schedule is ahead: 1 as in the codes of TransReID and BoT, which step it before an epoch.",
        unit="epochs", low=0, high=1,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Train:
    """The training run."""

    epochs: int = option(120, "How long to train.", unit="epochs", positive=True)
    batch_size: int = option(64, "The size of a batch per domain, over all devices.", unit="images", positive=True)
    instances: int = option(4, "How many images of an identity a batch has.", unit="images", positive=True)
    seed: int = option(0, "The seed of all random numbers.", low=0, high=2**32 - 1)
    precision: str = option(
        "auto",
        "The type of the matrix products; auto is bfloat16 on an accelerator and float32 on a CPU.",
        choices=("auto", "float32", "bfloat16"),
    )
    remat: bool = option(
        False,
        "Compute each block again in the backward pass: that needs less memory, and a third more work.",
        resumable=True,
    )
    debug_nans: bool = option(False, "Stop at the operation that gives the first NaN; slow.", resumable=True)
    model_parallel: int = option(
        1, "How many devices share each parameter; the rest shares the batch.", unit="devices", positive=True,
        resumable=True,
    )  # fmt: skip
    log_every: int = option(10, "Steps between lines of metrics.jsonl.", unit="steps", positive=True, resumable=True)
    loggers: str = option(
        "auto",
        "The trackers that also get the numbers of metrics.jsonl: tensorboard, wandb and mlflow, separated by commas; "
        "empty: none; auto: tensorboard if tensorboardX is installed.",
        resumable=True,
    )
    save_every: int = option(5, "Epochs between checkpoints.", unit="epochs", positive=True, resumable=True)


@dataclasses.dataclass(frozen=True)
class Rerank:
    """Re-ranking by k-reciprocal neighbours."""

    enabled: bool = option(False, "Re-rank by k-reciprocal neighbours.")
    k1: int = option(20, "How many neighbours an image has.", unit="images", positive=True)
    k2: int = option(6, "How many nearest images have their neighbour sets averaged.", unit="images", positive=True)
    lambda_value: float = option(0.3, "The share of the distance before re-ranking.", low=0, high=1)


@dataclasses.dataclass(frozen=True)
class EvalData:
    """What to evaluate on, if not on data.name; several data sets are evaluated one by one."""

    name: str = option("", "The layout of the data set to evaluate on, as data.name; empty: data.name itself.")
    root: str = option("", "Its folder, as data.root.", resumable=True)
    protocol: str = option("", "Which test of it, as data.protocol.")


@dataclasses.dataclass(frozen=True)
class Eval:
    """The evaluation, while training and after it."""

    every: int = option(
        20, "Epochs between evaluations; 0: only after the last epoch.", unit="epochs", low=0, resumable=True
    )
    batch_size: int = option(256, "The size of a batch to embed.", unit="images", positive=True, resumable=True)
    protocol: str = option(
        "cross-camera",
        "Which gallery images count for a query: cross-camera is Market-1501's, all-cameras for data without cameras.",
        choices=tuple(PROTOCOLS),
    )
    flip: bool = option(False, "Also embed each image mirrored; features are the mean of both.")
    feature: str = option(
        "cls",
        "The features to compare: the model's embedding, as in the paper (cls), the embedding minus its mean over the "
        "training images (centred), or the output of the BNNeck (neck).",
        choices=("cls", "centred", "neck"),
    )
    normalize: str = option(
        "none",
        "Subtract from each feature the mean, and divide it by the deviation, of the test images of its camera or of "
        "about its brightness. The whole test set takes part, so such numbers are marked transductive.",
        choices=("none", "camera", "brightness"),
    )
    expand: int = option(0, "Average each query with this many of its nearest gallery images.", unit="images", low=0)
    rerank: Rerank = Rerank()
    data: EvalData = EvalData()


@dataclasses.dataclass(frozen=True)
class Init:
    """What training starts from."""

    checkpoint: str = option("", "A checkpoint or work directory whose backbone to start from; empty: random weights.")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher of Semantic Recovery Distillation."""

    enabled: bool = option(True, "Distil from a teacher that sees the bright images of the auxiliary domain.")
    checkpoint: str = option(
        "runs/teacher", "Its checkpoint or work directory. A resumed run compares a hash of its weights.",
        resumable=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """All options. The defaults are the paper's run on Night600."""

    variant: str = option("nrsrd", "A label for tables and plots; it switches nothing.", resumable=True)
    image_size: tuple[int, int] = option(
        (256, 128), "Height and width of images, multiples of what the backbone asks for (a ViT: 16).", unit="pixels"
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
# A pretraining reads none of the first options, except the second ones.
WITHOUT_EFFECT = "loss.", "augment.", "norm_ratio.", "optim.", "train.instances"
IN_DINO = "optim.name", "optim.lr", "optim.weight_decay", "optim.warmup_epochs", "optim.final_factor"


def read_options(config: Any) -> Options:
    """Return the options that a ConfigDict sets. InputError if one is missing, unknown or invalid, or two conflict."""
    given = flatten(config)
    for name in sorted(given.keys() ^ OPTIONS.keys()):
        raise InputError(f"the config {f'sets {name}, which is not an option' if name in given else f'lacks {name}'}")
    options = _read(Options, config)
    if options.teacher.enabled and not options.aux.enabled:
        raise InputError("teacher.enabled needs aux.enabled: the teacher sees the auxiliary domain")
    if options.model.sie and options.aux.enabled:
        raise InputError("model.sie needs aux.enabled=False: the auxiliary images have other cameras")
    if options.model.sie and "," in options.data.name:
        raise InputError("model.sie needs one data set: several are trained with cameras numbered anew")
    if options.dino.enabled:
        _check_dino(options)
    elif options.data.include:
        raise InputError("data.include is for pretraining (dino.enabled); data.exclude leaves out labelled images")
    if not options.eval.data.name and (options.eval.data.root or options.eval.data.protocol):
        raise InputError("eval.data.root and eval.data.protocol need eval.data.name: the kind of data set")
    low, high = options.augment.erasing_area
    if not 0 < low <= high <= 1:
        raise InputError(f"augment.erasing_area is {low},{high}; give two parts of the image, 0 < low <= high <= 1")
    if options.augment.erasing_fill:
        three_numbers(options.augment.erasing_fill, "augment.erasing_fill")
    fixed_statistic(options.data.mean, "data.mean")
    fixed_statistic(options.data.std, "data.std")
    return options


def _check_dino(options: Options) -> None:
    """Raise InputError unless the options make a pretraining."""
    for name in ("aux.enabled", "teacher.enabled", "model.norm_ratio", "model.jpm", "model.sie"):
        group, _, last = name.partition(".")
        if getattr(getattr(options, group), last):
            raise InputError(f"dino.enabled needs {name}=False: pretraining is of a plain ViT, without labels")
    if options.optim.name != "adamw":
        raise InputError(f"optim.name is {options.optim.name}; dino.enabled needs adamw")
    for name in ("global_scale", "local_scale"):
        low, high = getattr(options.dino, name)
        if not 0 < low <= high <= 1:
            raise InputError(f"dino.{name} is {low},{high}; give two parts of the image, 0 < low <= high <= 1")
    if options.data.holdout:
        raise InputError("data.holdout needs labels, which dino.enabled does not use")
    changed = [name for name, value in flatten(options).items() if value != OPTIONS[name].default]
    if unused := [name for name in changed if name.startswith(WITHOUT_EFFECT) and name not in IN_DINO]:
        raise InputError(f"dino.enabled: {', '.join(unused)} would have no effect; leave out what sets it")
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


def fixed_statistic(value: str, name: str) -> tuple[float, ...] | None:
    """Return the numbers that data.mean or data.std stands for; None if they must be measured ("dataset")."""
    if value in ("half", "dataset"):
        return (0.5, 0.5, 0.5) if value == "half" else None
    return three_numbers(value, name, 1e-6 if name.endswith("std") else 0, "half, dataset or ")


def three_numbers(value: str, name: str, low: float = 0, others: str = "") -> tuple[float, ...]:
    """Return the numbers of an option for red, green and blue. InputError if they are not three of `low`..1."""
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(low <= number <= 1 for number in numbers):
        raise InputError(f"{name} is {value!r}; choose {others}three numbers in 0..1 like 0.13,0.13,0.12")
    return numbers


def describe() -> list[str]:
    """Return the lines of `nrsrd train --options`: each option with its default, unit, range, choices and meaning."""
    # Imported here because it imports JAX, which takes seconds and is not needed to read options.
    from .models import MODELS

    names = {"data.name": LAYOUTS, "model.backbone": MODELS}
    lines = []
    for each in OPTIONS.values():
        default = ",".join(map(str, each.default)) if isinstance(each.default, tuple) else each.default
        notes = ["no default" if default is None else f"default {'empty' if default == '' else default}"]
        notes += [f"in {each.unit}"] if each.unit else []
        notes += [each.range] if each.range else []
        notes += ["may change on resume"] if each.resumable else []
        lines.append(f"--config.{each.name}  {'; '.join(notes)}")
        known = f" Known: {', '.join(names[each.name])}." if each.name in names else ""
        lines += textwrap.wrap(each.text + known, 100, initial_indent="    ", subsequent_indent="    ")
    return lines
