"""Build the model, teacher, optimiser state and train step that a run's options describe."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from . import checkpoint, lowlight, schedule
from .config import flatten
from .data_options import fixed_statistic, three_numbers
from .description import Description
from .errors import InputError, Missing, counted
from .files import expanded
from .inputs import Records
from .losses import TERMS
from .models import find_spec, initialise
from .models.attention import NormRatio
from .models.spec import Spec
from .options import OPTIONS, Model, Options
from .precision import compute_dtype
from .retrieval.embedding import check_feature
from .runs import find_checkpoint
from .sharding import parameter_shardings
from .state import TrainState
from .step import Preparation, Teacher, make_objective, make_train_step, make_update


def degradation_options(options: Options) -> dict:
    """Return the options of `degradation` that are set. Raises InputError if a value is out of range."""
    # These options are part of the hash that names cached features, so their order must not be that of the fields.
    values = sorted(dataclasses.asdict(options.degradation).items())
    chosen = {name: value for name, value in values if value is not None}
    try:
        lowlight.resolve(**chosen)
    except ValueError as error:
        raise InputError(str(error)) from error
    return chosen


def architecture(model: Model) -> dict[str, Any]:
    """Return the options of a model that `find_spec` and Description take.

    Raises:
        InputError: the backbone is unknown, or it does not have one of the options.
    """
    names = ("backbone", "depth", "stride", "jpm", "sie", "sie_factor")
    chosen = {name: getattr(model, name) for name in names}
    # model.depth may be 0 for the backbone's own depth. Use the number itself, so that two ways to write one model give
    # equal descriptions.
    return chosen | {"depth": find_spec(**chosen).depth}


def norm_ratio(options: Options) -> NormRatio | None:
    """Return the settings of Norm-Ratio Attention, or None for a model without it."""
    return NormRatio(**dataclasses.asdict(options.norm_ratio)) if options.model.norm_ratio else None


def _named(backbone: str, spec: Spec) -> str:
    """Return a backbone's name, with its number of blocks if it has transformer blocks."""
    return f"{backbone} of {counted(spec.depth, 'block')}" if spec.depth else backbone


def load_initial_backbone(options: Options, mesh: Mesh) -> tuple[Description, dict] | None:
    """Load the checkpoint that init.checkpoint names, if any.

    Raises:
        Missing: there is no such checkpoint, or it is of another backbone.
        InputError: the checkpoint is damaged, or has another number of blocks.
    """
    if not options.init.checkpoint:
        return None
    description, variables = checkpoint.load(find_initial(options), mesh)
    spec = find_spec(**architecture(options.model))
    if not spec.can_start_from(description.spec):
        # Weights of another backbone count as missing, so that an ablation leaves the row out and trains the others.
        # Another depth of the same backbone is a mistake in the options.
        error = InputError if description.backbone == options.model.backbone else Missing
        raise error(
            f"init.checkpoint {options.init.checkpoint} is a {_named(description.backbone, description.spec)}, but the "
            f"model is a {_named(options.model.backbone, spec)}: set model.backbone"
            + (" and model.depth" if "depth" in description.spec.choices else "")
            + " to match"
        )
    return description, variables


def find_initial(options: Options) -> Path:
    """Return the checkpoint that init.checkpoint names. Missing, with how to make it, if it does not exist."""
    path = options.init.checkpoint
    try:
        return find_checkpoint(path)
    except Missing as error:
        # A conversion does not write into a folder that exists.
        how = "; to make it from PyTorch weights (for the demo, demo/backbone.pth): nrsrd convert WEIGHTS --output "
        raise Missing(f"init.checkpoint: {error}" + ("" if os.path.lexists(path) else how + path)) from error


def find_teacher(options: Options, records: Records) -> Path | None:
    """Return the teacher's checkpoint; None for a run without a teacher.

    Raises:
        Missing: the teacher's checkpoint is missing.
    """
    if not options.teacher.enabled or records.bright is None:
        return None
    path = options.teacher.checkpoint
    if not path or not expanded(path).exists():
        needed = {
            "data.root": options.aux.bright_root,
            "image_size": ",".join(map(str, options.image_size)),
            "model.backbone": options.model.backbone,
            "model.depth": options.model.depth,
            "init.checkpoint": options.init.checkpoint,
        }
        given = " ".join(f"--config.{name}={value}" for name, value in needed.items() if value)
        raise Missing(
            f"teacher.checkpoint {path!r} does not exist; train a teacher with: nrsrd train --config teacher "
            f"{given} --workdir {path or 'runs/teacher'} (for the demo with --config demo:teacher)"
        )
    return find_checkpoint(path)


def load_teacher(
    options: Options, records: Records, found: Path | None, mesh: Mesh
) -> tuple[Teacher | None, dict | None]:
    """Load the frozen teacher that `find_teacher` found, and its variables; None, None for a run without a teacher.

    Raises:
        InputError: the teacher has other identities or another image size.
    """
    if found is None or records.bright is None:
        return None, None
    path = options.teacher.checkpoint
    description, variables = checkpoint.load(found, mesh)
    identities = tuple(records.bright.identities.tolist())
    # A converted teacher does not record its identities, so only their number can be compared.
    if description.classes != len(identities) or (description.identities and description.identities != identities):
        raise InputError(
            f"the teacher {path} was trained on {description.classes} identities, which are not the {len(identities)} "
            f"of aux.bright_root {options.aux.bright_root}: train a teacher on it, or set it to the teacher's data"
        )
    if description.image_size != options.image_size:
        raise InputError(
            f"the teacher {path} takes images of {description.image_size}, but image_size is {options.image_size}: set "
            "it to the teacher's, or convert the teacher again with nrsrd convert --image_size"
        )
    model = description.create_model(dtype=compute_dtype(options.train.precision))
    return Teacher(model, description.mean, description.std, description.brighten), variables


def make_description(
    options: Options, records: Records, mean: tuple[float, ...], std: tuple[float, ...], teacher_variables: dict | None
) -> Description:
    """Return the description of the model that a run trains, with the data and teacher that it learns from."""
    identities = records.train.identities.tolist()
    return Description(
        **architecture(options.model),
        image_size=options.image_size,
        mean=mean,
        std=std,
        classes=len(identities),
        aux_classes=len(records.bright.identities) if records.bright else 0,
        norm_ratio=norm_ratio(options),
        identities=tuple(identities),
        cameras=tuple(np.unique(records.train.cameras).tolist()),
        brighten=options.data.brighten,
        provenance={
            "made_by": "train.py",
            "config": flatten(options),
            "data": records.hash(),
            "teacher": checkpoint.weights_hash(teacher_variables) if teacher_variables else None,
        },
    )


def check_model(options: Options) -> None:
    """Raise InputError if the model does not have a loss that is set, or needs other pixels than the options give."""
    name, spec = options.model.backbone, find_spec(**architecture(options.model))
    for term in TERMS:
        if TERMS[term].own and term not in spec.losses and getattr(options.loss, term):
            raise InputError(f"loss.{term} is only for idf backbones, but model.backbone is {name}; set it to 0")
    if options.loss.center_real and not spec.head.centers:
        raise InputError(
            f"loss.center_real is only for bot and agw backbones, but model.backbone is {name}; set it to 0"
        )
    # The default of triplet_syn is not 0, but without an auxiliary domain it has no effect.
    triplets = ["triplet_real", "weighted_real", *(["triplet_syn"] if options.aux.enabled else [])]
    for term in triplets:
        if options.train.instances < 2 and getattr(options.loss, term):
            raise InputError(
                f"loss.{term} compares images of one identity, but train.instances is {options.train.instances}: set "
                f"train.instances to 2 or more, or loss.{term} to 0"
            )
    form = options.loss.weighted_form
    if form != OPTIONS["loss.weighted_form"].default and not options.loss.weighted_real:
        raise InputError(f"loss.weighted_form={form} has no effect without loss.weighted_real; leave it out")
    drop = options.model.drop_path
    # The default is not 0, so a value that equals it does not show that the user asked for stochastic depth.
    if not spec.drops_paths and drop and drop != OPTIONS["model.drop_path"].default:
        raise InputError(f"model.drop_path={drop}: {name} has no stochastic depth; leave it out")
    check_feature(name, spec, options.eval.feature)
    data = options.data
    given = fixed_statistic(data.mean, "data.mean"), fixed_statistic(data.std, "data.std")
    if spec.raw_pixels and given != ((0, 0, 0), (1, 1, 1)):
        raise InputError(f"{name} takes pixels in 0..1, not normalised: set data.mean=0,0,0 and data.std=1,1,1")
    if spec.raw_pixels and options.augment.erasing and not options.augment.erasing_fill:
        raise InputError(
            f"{name} takes pixels in 0..1, but augment.erasing fills with N(0, 1) noise: set augment.erasing_fill=0,0,0"
        )


def training_model(options: Options, description: Description):
    """Return the model with the options that matter only in training: precision, drop path and remat."""
    return description.create_model(
        dtype=compute_dtype(options.train.precision), drop_path=options.model.drop_path, remat=options.train.remat
    )


def make_optimizer(options: Options) -> optax.GradientTransformation:
    """Return the optimiser that the options describe, without its learning rate."""
    optim, weight = options.optim, options.loss.center_real
    head = find_spec(**architecture(options.model)).head
    # Without the centre loss, the factor 0 keeps the centres as they are: otherwise weight decay would move them.
    centers = 0.0 if head.centers else None
    if weight:
        # The official code divides the centres' gradients by the loss's weight, so that it does not slow them down.
        centers = optim.center_lr / weight
    return schedule.make_optimizer(
        optim.name,
        momentum=optim.momentum,
        decay=optim.weight_decay,
        nesterov=optim.nesterov,
        frozen_bias=head.frozen_bias,
        centers=centers,
    )


def make_state(options: Options, description: Description) -> TrainState:
    """Return the state before the first step, with random weights."""
    model = training_model(options, description)
    variables = initialise(model, jax.random.key(options.train.seed), description.image_size)
    return TrainState.create(variables, make_optimizer(options))


def start_from(state: TrainState, variables: dict) -> TrainState:
    """Return the state with the weights of a checkpoint instead of its own."""
    return dataclasses.replace(state, **variables)


def sharded(create: Callable[[], TrainState], mesh: Mesh) -> tuple[TrainState, TrainState, Callable[[], TrainState]]:
    """Return the shapes of the state that `create` returns, its shardings, and `create` with those shardings."""
    abstract = jax.eval_shape(create)
    shardings = parameter_shardings(abstract, mesh)
    # Compiled with these shardings, `create` makes each part of an array on its own device, so that a large state never
    # has to fit on one device.
    return abstract, shardings, jax.jit(create, out_shardings=shardings)


def loss_function(options: Options, description: Description, teacher: Teacher | None) -> Callable:
    """Return the objective (step.make_objective) that the options describe."""
    values = dataclasses.asdict(options.loss)
    return make_objective(
        training_model(options, description),
        {name: values[name] for name in TERMS},
        loss_options={name: value for name, value in values.items() if name not in TERMS},
        teacher=teacher,
    )


def preparation(options: Options, description: Description, degradation: dict) -> Preparation:
    """Return the Preparation of uint8 batches that the options describe."""
    augment = options.augment
    return Preparation(
        description.mean,
        description.std,
        flip=augment.flip,
        pad=augment.pad,
        erasing=augment.erasing,
        degradation=degradation,
        brighten=description.brighten,
        curriculum=options.aux.curriculum_epochs,
        bright=any(getattr(options.loss, name) for name, term in TERMS.items() if term.beside == "bright"),
        erasing_form={
            "area": augment.erasing_area,
            "aspect": augment.erasing_aspect,
            "fill": three_numbers(augment.erasing_fill, "augment.erasing_fill") if augment.erasing_fill else None,
        },
    )


def make_step(options: Options, description: Description, teacher: Teacher | None, degradation: dict) -> Callable:
    """Return the train step that the options describe, not compiled."""
    optim = options.optim
    rate = functools.partial(
        schedule.learning_rate,
        base=optim.lr,
        epochs=options.train.epochs,
        warmup_epochs=optim.warmup_epochs,
        warmup_factor=optim.warmup_factor,
        final_factor=optim.final_factor,
        milestones=optim.milestones or (),
    )
    update = make_update(
        loss_function(options, description, teacher),
        make_optimizer(options),
        lambda epoch: tuple(rate(epoch + optim.lead, group_factor=factor) for factor in (1.0, optim.bias_factor)),
        lambda path: description.spec.rate_factor(path, optim.head_factor),
    )
    return make_train_step(preparation(options, description, degradation), update, teacher, options.train.seed)
