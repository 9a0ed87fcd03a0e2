"""From a run's options to its model, teacher, optimiser state and step."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from . import checkpoint, lowlight
from . import config as configuration
from .config import Config
from .description import Description
from .errors import InputError
from .files import expanded
from .inputs import Records
from .losses import TERMS
from .models import find_spec, initialise
from .models.attention import NormRatio
from .precision import compute_dtype
from .schedule import learning_rate
from .sharding import parameter_shardings
from .state import TrainState
from .step import Preparation, Teacher, make_objective, make_train_step, make_update


def degradation_options(config: Config) -> dict:
    """Return the options of `degradation` that are set. InputError if one is out of range."""
    options = {name: value for name, value in config.degradation.items() if value is not None}
    try:
        lowlight.resolve(**options)
    except ValueError as error:
        raise InputError(str(error)) from error
    return options


def load_initial_backbone(config: Config, mesh: Mesh) -> tuple[Description, dict] | None:
    """Load the checkpoint that init.checkpoint names, if any. InputError if its architecture is another."""
    if not config.init.checkpoint:
        return None
    description, variables = checkpoint.load(config.init.checkpoint, mesh)
    spec = find_spec(config.model.backbone, config.model.depth)
    if spec != description.spec:
        raise InputError(
            f"init.checkpoint {config.init.checkpoint} is a {description.backbone} of {description.depth} blocks, the "
            f"model a {config.model.backbone} of {spec.depth}: set model.backbone and model.depth to match"
        )
    return description, variables


def load_teacher(config: Config, records: Records, mesh: Mesh) -> tuple[Teacher | None, dict | None]:
    """Load the frozen teacher and its variables. InputError if it does not know the auxiliary identities."""
    if not config.teacher.enabled or records.bright is None:
        return None, None
    path = config.teacher.checkpoint
    if not path or not expanded(path).exists():
        options = {
            "data.root": config.aux.bright_root,
            "image_size": ",".join(map(str, config.image_size)),
            "model.backbone": config.model.backbone,
            "model.depth": config.model.depth,
            "init.checkpoint": config.init.checkpoint,
        }
        given = " ".join(f"--config.{name}={value}" for name, value in options.items() if value)
        raise InputError(
            f"teacher.checkpoint {path!r} does not exist; train a teacher with: nrsrd train --config teacher "
            f"{given} --workdir {path or 'runs/teacher'} (for the demo with --config demo:teacher)"
        )
    description, variables = checkpoint.load(path, mesh)
    identities = tuple(records.bright.identities.tolist())
    if description.classes != len(identities) or (description.identities and description.identities != identities):
        raise InputError(
            f"the teacher {path} was trained on {description.classes} identities, which are not the {len(identities)} "
            f"of {config.aux.bright_root}: teacher and student must know the same ones"
        )
    if description.image_size != tuple(config.image_size):
        raise InputError(
            f"the teacher {path} takes images of {description.image_size}, the student {tuple(config.image_size)}: "
            "image_size must agree (nrsrd convert --image_size sets that of a converted teacher)"
        )
    model = description.create_model(dtype=compute_dtype(config.train.precision))
    return Teacher(model, description.mean, description.std), variables


def make_description(
    config: Config, records: Records, mean: tuple[float, ...], std: tuple[float, ...], teacher_variables: dict | None
) -> Description:
    identities = records.train.identities.tolist()
    return Description(
        backbone=config.model.backbone,
        depth=find_spec(config.model.backbone, config.model.depth).depth,
        image_size=tuple(config.image_size),
        mean=mean,
        std=std,
        classes=len(identities),
        aux_classes=len(records.bright.identities) if records.bright else 0,
        norm_ratio=NormRatio(**config.norm_ratio.to_dict()) if config.model.norm_ratio else None,
        identities=tuple(identities),
        cameras=tuple(np.unique(records.train.cameras).tolist()),
        provenance={
            "made_by": "train.py",
            "config": configuration.flatten(config),
            "data": records.hash(),
            "teacher": checkpoint.weights_hash(teacher_variables) if teacher_variables else None,
        },
    )


def training_model(config: Config, description: Description):
    return description.create_model(
        dtype=compute_dtype(config.train.precision), drop_path=config.model.drop_path, remat=config.train.remat
    )


def state_builder(
    config: Config, description: Description, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState, Callable[[], TrainState]]:
    """Return the state's shapes, its shardings, and a function that makes it, sharded, from random weights."""
    model = training_model(config, description)

    def create() -> TrainState:
        variables = initialise(model, jax.random.key(config.train.seed), description.image_size)
        return TrainState.create(variables, optimizer)

    abstract = jax.eval_shape(create)
    shardings = parameter_shardings(abstract, mesh)
    return abstract, shardings, jax.jit(create, out_shardings=shardings)


def loss_function(config: Config, description: Description, teacher: Teacher | None) -> Callable:
    """Return the objective (step.make_objective) that a config describes."""
    loss = config.loss
    return make_objective(
        training_model(config, description),
        {name: loss[name] for name in TERMS},
        loss_options={name: value for name, value in loss.items() if name not in TERMS},
        teacher=teacher,
    )


def preparation(config: Config, description: Description, degradation: dict) -> Preparation:
    """Return the Preparation of uint8 batches that a config describes."""
    return Preparation(description.mean, description.std, **config.augment.to_dict(), degradation=degradation)


def make_step(
    config: Config,
    description: Description,
    teacher: Teacher | None,
    optimizer: optax.GradientTransformation,
    degradation: dict,
) -> Callable:
    """Return the train step that a config describes, not yet compiled."""
    optim = config.optim
    rate = functools.partial(
        learning_rate,
        base=optim.lr,
        epochs=config.train.epochs,
        warmup_epochs=optim.warmup_epochs,
        warmup_factor=optim.warmup_factor,
        final_factor=optim.final_factor,
    )
    update = make_update(
        loss_function(config, description, teacher),
        optimizer,
        lambda epoch: (rate(epoch), rate(epoch, group_factor=optim.bias_factor)),
    )
    return make_train_step(preparation(config, description, degradation), update, teacher, config.train.seed)
