"""Build a pretraining's model, state and step from its options, as `nrsrd_jax.build` does for training with labels."""

from collections.abc import Callable
from pathlib import Path

import jax

from ..build import architecture
from ..config import flatten
from ..description import Description
from ..errors import InputError, say
from ..inputs import Records, Statistic
from ..metrics_log import read_metrics
from ..models import find_spec, initialise
from ..models.vit import ViTSpec
from ..options import Options
from ..precision import compute_dtype
from ..processes import is_first
from ..state import TrainState
from . import step as dino_step
from .dino import Head
from .step import Networks, Preparation, Schedules
from .views import Views

start_from = dino_step.with_backbone
# If the teacher's answers hold less information about their images than this, in nats, the teacher has collapsed.
COLLAPSED = 0.02


def make_description(options: Options, records: Records, mean: Statistic, std: Statistic) -> Description:
    """Return the description of the pretraining's result, which is a backbone without classifiers."""
    return Description(
        **architecture(options.model),
        image_size=options.image_size,
        mean=mean,
        std=std,
        brighten=options.data.brighten,
        provenance={"made_by": "pretrain", "config": flatten(options), "data": records.hash(), "teacher": None},
    )


def networks(options: Options) -> Networks:
    """Create the backbones of student and teacher, and the head.

    Raises:
        InputError: the backbone is not a ViT, or `spec.check_size` rejects dino.local_size.
    """
    spec, dino = find_spec(**architecture(options.model)), options.dino
    if not isinstance(spec, ViTSpec):
        raise InputError(f"model.backbone {options.model.backbone} takes images of one size; dino.enabled needs a ViT")
    spec.check_size(dino.local_size, "dino.local_size")
    dtype, grid = compute_dtype(options.train.precision), spec.grid(options.image_size)
    student = spec.module(dtype=dtype, drop_path=options.model.drop_path, remat=options.train.remat, grid=grid)
    # As in the official code, only the student drops paths, so that the targets are not noisy.
    teacher = spec.module(dtype=dtype, drop_path=0.0, grid=grid)
    head = Head(dino.prototypes, dino.hidden, dino.bottleneck, dino.free_length, dtype)
    return Networks(student, teacher, head)


def make_state(options: Options, description: Description) -> TrainState:
    """Return the state before the first step, with random weights."""
    keys = jax.random.split(jax.random.key(options.train.seed))
    variables = initialise(description.create_model(), keys[0], description.image_size)
    return dino_step.start(variables, networks(options), keys[1])


def preparation(options: Options, description: Description, degradation: dict) -> Preparation:
    """Return how a batch becomes views."""
    dino = options.dino
    return Preparation(
        # The official probabilities: the first large view is always blurred, and only the second is solarised.
        Views(options.image_size, dino.global_scale, dino.ratio, (1.0, 0.1), solarise=(0.0, 0.2), swap=dino.swap),
        Views(dino.local_size, dino.local_scale, dino.ratio, (0.5,) * dino.local_views, swap=dino.swap),
        description.mean,
        description.std,
        brighten=description.brighten,
        night=dino.night,
        degradation=degradation,
    )


def make_step(options: Options, description: Description, degradation: dict, steps: int) -> Callable:
    """Return the step that the options describe, not yet compiled; `steps` is the number of steps of the run."""
    dino, optim, epochs = options.dino, options.optim, options.train.epochs
    schedules = Schedules(
        steps=steps,
        warmup=steps // epochs * min(optim.warmup_epochs, epochs),
        rate=optim.lr,
        rate_end=optim.final_factor * optim.lr,
        decay=optim.weight_decay,
        decay_end=dino.weight_decay_end,
        momentum=dino.momentum,
        temperature=dino.temperature,
        temperature_end=dino.temperature_end,
        temperature_epochs=dino.temperature_epochs,
        frozen_epochs=dino.frozen_epochs,
    )
    update = dino_step.make_update(networks(options), schedules, clip=dino.clip, koleo=dino.koleo)
    return dino_step.make_step(preparation(options, description, degradation), update, options.train.seed)


def conclude(workdir: Path) -> dict[str, float]:
    """Return the last logged loss and entropies of the teacher's answers. Warn if the teacher has collapsed."""
    rows = [row for row in read_metrics(workdir) if "teacher_information" in row]
    if not rows:
        return {}
    last = {name: rows[-1][name] for name in ("loss", "teacher_entropy", "teacher_information")}
    if last["teacher_information"] < COLLAPSED and is_first():
        say(
            "warning: the pretraining has collapsed: the teacher gives every image the same answer (an answer holds "
            f"{last['teacher_information']:.3f} nats of information about its image; its entropy is "
            f"{last['teacher_entropy']:.2f} nats). The features are of little use; start again with a lower optim.lr, "
            "a higher dino.momentum, or another dino.temperature_end",
            error=True,
        )
    return last
