"""The training run: what a config stands for, and the loop around the step."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from . import checkpoint, lowlight
from . import config as configuration
from .checkpoint import Checkpoints, Description
from .config import Config
from .data import pipeline
from .embedding import Embedder
from .errors import InputError
from .inputs import Records, pixel_statistics, read_domains, read_records, reading_threads
from .metrics_log import MetricsLog
from .models.reid import create_model, initialise
from .precision import compute_dtype
from .result import evaluate
from .schedule import learning_rate, make_optimizer
from .sharding import make_mesh, over_data, parameter_shardings, replicated
from .state import TrainState
from .step import Preparation, Teacher, make_objective, make_train_step, make_update


def train(config: Config, workdir: str | Path, devices: Sequence[Any] | None = None) -> dict[str, float]:
    """Trains, or goes on where a killed run of the same config stopped; returns the last evaluation's numbers.

    `workdir` receives config.json, metrics.jsonl, tensorboard/ and checkpoints/. InputError for anything wrong with
    the config, the data or the checkpoints it names, before the first compile.
    """
    workdir = Path(workdir).expanduser()
    configuration.validate(config)
    degradation = degradation_options(config)
    mesh = make_mesh(config.train.batch_size, config.train.model_parallel, devices)
    check_same_run(config, workdir)
    records = read_records(config)
    create_model(config.model.backbone, depth=config.model.depth)  # before decoding: an unknown name ends here
    done = max(checkpoint.saved_steps(workdir), default=0)
    source = None if done else load_initial_backbone(config, mesh)
    teacher, teacher_variables = load_teacher(config, records, mesh)
    domains = read_domains(config, records)
    mean, std = pixel_statistics(config, domains["real"].sources["images"])
    description = describe(config, records, mean, std, teacher_variables)

    optimizer = make_optimizer(config.optim.name, momentum=config.optim.momentum, decay=config.optim.weight_decay)
    abstract, shardings, create = state_builder(config, description, optimizer, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir)
    # How to initialise: 1. go on with this run; 2. start from a checkpoint's backbone; 3. from random weights.
    if done:
        print(f"resuming {workdir} after step {done}")
        state = checkpoints.restore(done, abstract, shardings, description)
    else:
        state = create()
        if source:
            variables, taken = checkpoint.initialise_backbone(state.variables, description, *source)
            variables = jax.device_put(variables, {name: getattr(shardings, name) for name in variables})
            state = dataclasses.replace(state, **variables)
            print(f"starting from {config.init.checkpoint}: {taken}")
        else:
            print("starting from random weights (init.checkpoint names none)")
    configuration.save(config, workdir / "config.json")

    step = make_step(config, description, teacher, optimizer, degradation)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    loop = Loop(config, records, description, domains, mesh, checkpoints)
    try:
        return loop.run(state, done, functools.partial(compiled, teacher_variables=teacher_variables), workdir)
    finally:
        checkpoints.close()


def check_same_run(config: Config, workdir: Path) -> None:
    """InputError if the work directory holds a run that learns something else."""
    if not checkpoint.saved_steps(workdir):
        return
    changed = configuration.differences(configuration.load(workdir / "config.json"), config)
    if changed:
        shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise InputError(f"{workdir} holds a run with other options ({shown}); choose another --workdir, or remove it")


def degradation_options(config: Config) -> dict:
    """What of `degradation` is set, checked."""
    options = {name: value for name, value in config.degradation.items() if value is not None}
    try:
        lowlight.resolve(**options)
    except ValueError as error:
        raise InputError(str(error)) from error
    return options


def load_initial_backbone(config: Config, mesh: Mesh) -> tuple[Description, dict] | None:
    """The checkpoint that init.checkpoint names; InputError if it is of another architecture."""
    if not config.init.checkpoint:
        return None
    description, variables = checkpoint.load(config.init.checkpoint, mesh)
    model = create_model(config.model.backbone, depth=config.model.depth).backbone
    given = description.create_model().backbone
    for name in ("width", "depth", "stem"):
        if model[name] != given[name]:
            raise InputError(
                f"init.checkpoint {config.init.checkpoint} is a {description.backbone} of {given['depth']} blocks, the "
                f"model a {config.model.backbone} of {model['depth']}: set model.backbone and model.depth to match"
            )
    return description, variables


def load_teacher(config: Config, records: Records, mesh: Mesh) -> tuple[Teacher | None, dict | None]:
    """The frozen teacher and its variables; InputError if it does not know the auxiliary identities."""
    if not config.teacher.enabled or records.bright is None:
        return None, None
    path = config.teacher.checkpoint
    if not path or not Path(path).expanduser().exists():
        raise InputError(
            f"teacher.checkpoint {path!r} does not exist; train a teacher with: python train.py "
            f"--config configs/teacher.py --config.data.root={config.aux.bright_root} --workdir runs/teacher"
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
            "image_size must agree"
        )
    model = description.create_model(dtype=compute_dtype(config.train.precision))
    return Teacher(model, description.mean, description.std), variables


def describe(
    config: Config, records: Records, mean: tuple[float, ...], std: tuple[float, ...], teacher_variables: dict | None
) -> Description:
    model = create_model(config.model.backbone, depth=config.model.depth)
    identities = records.data.train.identities.tolist()
    return Description(
        backbone=config.model.backbone,
        depth=model.backbone["depth"],
        image_size=tuple(config.image_size),
        mean=mean,
        std=std,
        classes=len(identities),
        aux_classes=len(records.bright.identities) if records.bright else 0,
        norm_ratio=config.model.norm_ratio,
        norm_ratio_scope=config.norm_ratio.scope,
        norm_ratio_epsilon=config.norm_ratio.epsilon,
        identities=tuple(identities),
        provenance={
            "made_by": "train.py",
            "config": configuration.flatten(config),
            "data": records.hash(),
            "teacher": checkpoint.weights_hash(teacher_variables) if teacher_variables else None,
        },
    )


def training_model(config: Config, description: Description):
    return description.create_model(
        dtype=compute_dtype(config.train.precision),
        drop_path=config.model.drop_path,
        norm_ratio_init=config.norm_ratio.init,
    )


def state_builder(
    config: Config, description: Description, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState, Callable[[], TrainState]]:
    """The state's shapes, its shardings, and a function that makes it from random weights, sharded."""
    model = training_model(config, description)

    def create() -> TrainState:
        variables = initialise(model, jax.random.key(config.train.seed), description.image_size)
        return TrainState.create(variables, optimizer)

    abstract = jax.eval_shape(create)
    shardings = parameter_shardings(abstract, mesh)
    return abstract, shardings, jax.jit(create, out_shardings=shardings)


def make_step(
    config: Config,
    description: Description,
    teacher: Teacher | None,
    optimizer: optax.GradientTransformation,
    degradation: dict,
) -> Callable:
    """The train step that a config describes, not yet compiled."""
    loss, optim = config.loss, config.optim
    objective = make_objective(
        training_model(config, description),
        {name: loss[name] for name in ("id_real", "triplet_real", "id_syn", "triplet_syn", "distill")},
        triplet={"margin": loss.margin, "normalize": loss.normalize},
        label_smoothing=loss.label_smoothing,
        distillation={name: loss[name] for name in ("alpha", "beta", "temperature", "nckd_weight")},
        teacher=teacher,
    )
    rate = functools.partial(
        learning_rate,
        base=optim.lr,
        epochs=config.train.epochs,
        warmup_epochs=optim.warmup_epochs,
        warmup_factor=optim.warmup_factor,
        final_factor=optim.final_factor,
    )
    update = make_update(objective, optimizer, lambda epoch: (rate(epoch), rate(epoch, group_factor=optim.bias_factor)))
    prepare = Preparation(description.mean, description.std, **config.augment.to_dict(), degradation=degradation)
    return make_train_step(prepare, update, teacher, config.train.seed)


@dataclasses.dataclass
class Loop:
    """Steps, and between epochs the log, the evaluation and the checkpoints."""

    config: Config
    records: Records
    description: Description
    domains: dict[str, pipeline.Domain]
    mesh: Mesh
    checkpoints: Checkpoints

    def run(self, state: TrainState, done: int, step: Callable, workdir: Path) -> dict[str, float]:
        """From `done` steps to the last; `step(state, batch)`. Returns the last evaluation's numbers."""
        config, plan = self.config, self.records.plans["real"]
        total = plan.steps(config.train.epochs)
        images = config.train.batch_size * len(self.domains)
        scores: dict[str, float] = {}
        pending: list[dict] = []
        with MetricsLog(workdir, done) as log, progress_bar(done, total, images) as bar:
            for batch in self.batches(done, total) if done < total else ():
                state, metrics = step(state, batch)
                pending.append(metrics)
                done += 1
                epoch, index = plan.locate(done)
                if done % config.train.log_every == 0 or index == 0:
                    values = mean_metrics(pending, done, workdir)
                    current = epoch if index == 0 else epoch + 1
                    log.write(done, {"epoch": current} | values)
                    bar.set_description(f"epoch {current}/{config.train.epochs}", refresh=False)
                    bar.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)
                    bar.update(len(pending) * images)
                    pending = []
                if index == 0:
                    scores = self.end_epoch(state, epoch, done == total, log, bar) or scores
        return scores

    def batches(self, start: int, stop: int):
        """Batches on the devices, split over the mesh."""
        config, sharding = self.config, over_data(self.mesh)
        on_device = config.data.cache == "device"
        if on_device:
            everywhere = replicated(self.mesh)
            images = {
                name: {key: jax.device_put(np.asarray(source), everywhere) for key, source in domain.sources.items()}
                for name, domain in self.domains.items()
            }
            gather = jax.jit(lambda array, index: array[index], out_shardings=sharding)
        batches = pipeline.batches(self.domains, start, stop, pixels=not on_device, threads=reading_threads(config))
        for batch in batches:
            for name, domain in self.domains.items():
                if on_device:
                    batch[name] |= {key: gather(images[name][key], batch[name][key]) for key in domain.sources}
                batch[name] = jax.device_put(batch[name], sharding)
            yield batch

    def end_epoch(self, state: TrainState, epoch: int, last: bool, log: MetricsLog, bar: tqdm) -> dict[str, float]:
        """After `epoch` epochs: evaluates and saves if it is time. Returns the evaluation's numbers, if any."""
        config = self.config
        scores = {}
        if len(self.records.data.query) and (last or (config.eval.every and epoch % config.eval.every == 0)):
            bar.set_description("evaluating")
            embedder = self.embedder
            embedder.variables = state.variables
            scores = evaluate(embedder, config, self.records.data).summary()
            log.write(int(state.step), {"epoch": epoch} | scores, prefix="eval/")
            bar.write(f"epoch {epoch}: mAP {scores['mAP']:.3f} Rank-1 {scores['rank1']:.3f}", file=sys.stdout)
        if scores or last or epoch % config.train.save_every == 0:
            self.checkpoints.save(state, self.description, scores or None)
        return scores

    @functools.cached_property
    def embedder(self) -> Embedder:
        model = self.description.create_model(dtype=compute_dtype(self.config.train.precision))
        return Embedder(model, {}, self.description, self.mesh, self.config.eval.batch_size)


def progress_bar(done: int, total: int, images: int) -> tqdm:
    """Images per second and the time left, of steps of `images` each; now and then where there is no terminal."""
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(
        desc="compiling the step, once",
        total=total * images,
        initial=done * images,
        unit=" images",
        mininterval=interval,
        smoothing=0.1,
        disable=done == total,
    )


def mean_metrics(pending: list[dict], step: int, workdir: Path) -> dict[str, float]:
    """The mean of each metric over the steps since the last log line; InputError if the loss is not finite."""
    values = {name: float(np.mean([metrics[name] for metrics in pending])) for name in pending[0]}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"not finite by step {step}: {', '.join(bad)}. Checkpoints in {workdir}, if any, are as they were; try a "
            "lower optim.lr or a longer optim.warmup_epochs"
        )
    return values
