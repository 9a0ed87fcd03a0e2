"""Start or continue a training run; loop.py runs its steps."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from . import checkpoint, runs, trackers
from .build import (
    architecture,
    degradation_options,
    find_initial,
    find_teacher,
    load_initial_backbone,
    load_teacher,
    norm_ratio,
    sharded,
)
from .checkpoint import Checkpoints
from .compiled import CompiledStep, keep_compiled
from .config import Config, differences, flatten, load_config, save_config
from .data.images import check_readable
from .description import Description
from .errors import InputError, say
from .files import expanded
from .inputs import (
    Records,
    pixel_statistics,
    read_domains,
    read_records,
    read_test_images,
    stamps,
)
from .loop import Loop
from .method import Method, choose_method
from .models import find_spec
from .options import Options, read_options
from .precision import compute_dtype
from .processes import check_alike, is_first, together
from .runs import owned
from .sharding import make_mesh, place
from .state import TrainState
from .step import Teacher
from .stored import read_description
from .termination import Termination


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from, after checks of its config, file lists and checkpoints."""

    options: Options
    method: Method
    mesh: Mesh
    degradation: dict[str, Any]
    records: Records
    done: int  # the step of the newest checkpoint, 0 for a new run
    source: tuple[Description, dict] | None  # the checkpoint that a new run takes its backbone from
    teacher: Teacher | None
    teacher_variables: dict | None


def check_run(config: Config, workdir: Path, devices: Sequence[Any] | None = None) -> Start:
    """Return what a run of `config` in `workdir` starts from. InputError if config, data or checkpoints are wrong."""
    # A fault in one process must stop all of them, or the others would wait for it forever.
    with together():
        options = read_options(config)
        method = choose_method(options)
        if is_first():
            trackers.check(options.train.loggers)
        degradation = degradation_options(options)
        mesh = make_mesh(options.train.batch_size, options.train.model_parallel, devices)
        check_same_run(options, workdir)
        spec = find_spec(**architecture(options.model))
        spec.check_size(options.image_size)
        records = read_records(options)
        cameras = len(np.unique(records.train.cameras))
        done = max(runs.saved_steps(workdir), default=0)
        method.check(options)
        dtype = compute_dtype(options.train.precision)
        # How attention is computed depends on the devices, so processes on different machines could differ in it.
        module = repr(spec.module(dtype=dtype, norm_ratio=norm_ratio(options), cameras=cameras))
        # The processes load these checkpoints together, below, but one of their machines may lack a checkpoint.
        if options.init.checkpoint and not done:
            read_description(find_initial(options))
        teacher = find_teacher(options, records)
        if teacher:
            read_description(teacher)
    about = [flatten(options), records.hash(), done, str(workdir.absolute()), module]
    check_alike(json.dumps(about, default=str))
    source = None if done else load_initial_backbone(options, mesh)
    return Start(
        options, method, mesh, degradation, records, done, source, *load_teacher(options, records, teacher, mesh)
    )


def train(
    config: Config, workdir: str | Path, devices: Sequence[Any] | None = None, preempted_status: int = 143
) -> dict[str, float]:
    """Train, or continue an interrupted run of the same config from its last checkpoint.

    Args:
        config: the config of the run.
        workdir: the folder to write config.json, metrics.jsonl, the files of trackers and checkpoints/ to.
        devices: the devices to train on; None for all devices.
        preempted_status: the exit status that `Stopped` carries.

    Returns:
        The scores of the last evaluation. Without queries, {"training_accuracy": …} of the last epoch, in 0..1. For a
        pretraining, also {"loss": …, "teacher_information": …}.

    Raises:
        InputError: the config, the data or a checkpoint that it names is wrong. Almost all faults are found before the
            first compilation.
        Stopped: SIGTERM came, and the state was saved.
    """
    workdir = expanded(workdir)
    # Compiling for an accelerator takes long, so a resumed run reuses the compiled program.
    keep_compiled()
    with contextlib.ExitStack() as held:
        termination = held.enter_context(Termination(preempted_status))
        start = check_run(config, workdir, devices)
        with together():
            if is_first():
                # Another training may have used the folder between the check above and this lock.
                held.enter_context(owned(workdir))
                if start.done != max(runs.saved_steps(workdir), default=0):
                    raise InputError(
                        f"another process has just trained in {workdir}; run the same command again to continue"
                    )
        return _train(workdir, start, termination)


def _train(workdir: Path, start: Start, termination: Termination) -> dict[str, float]:
    options, mesh, records, done, method = start.options, start.mesh, start.records, start.done, start.method
    with together():
        domains = read_domains(options, records)
        _read_tests(options, records)
    mean, std = pixel_statistics(options.data, domains["real"].sources["images"])
    description = method.make_description(options, records, mean, std, start.teacher_variables)
    abstract, shardings, create = sharded(functools.partial(method.make_state, options, description), mesh)
    checkpoints = Checkpoints(workdir)
    # How to initialise: 1. continue this run; 2. start from a checkpoint's backbone; 3. start from random weights.
    total = records.plans["real"].steps(options.train.epochs)
    # `restore` may fall back to an older checkpoint, so take the number of steps from the state.
    if done:
        state = checkpoints.restore(abstract, shardings, description, total)
        done = int(state.step)
        complete = done >= total
        say(f"{workdir} is complete after {done} steps" if complete else f"resuming {workdir} after step {done}")
    else:
        state = _new_state(start, description, create(), shardings)
    if start.teacher:
        say(f"the teacher is {options.teacher.checkpoint}")
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract.params)) / 1e6
    say(
        f"{mesh.size} × {mesh.devices.flat[0].device_kind}, {compute_dtype(options.train.precision).name}, "
        f"{size:.1f} M parameters, {options.train.batch_size * len(domains)} images a step; the run is in {workdir}"
    )
    with together():
        if is_first():
            save_config(options, workdir / "config.json")

    step = method.make_step(options, description, start.teacher, start.degradation, total)
    compiled = CompiledStep(step, shardings, mesh, start.teacher_variables, options.train.debug_nans)
    loop = Loop(options, method, records, description, domains, mesh, checkpoints, termination)
    try:
        return loop.run(state, done, compiled, workdir)
    finally:
        checkpoints.close()


def _read_tests(options: Options, records: Records) -> None:
    """Read the test images, so that an unreadable one is found now and not at the first evaluation; print hashes."""
    for name, data in records.targets.items():
        for split in (data.query, data.gallery):
            if options.data.cache == "none":
                check_readable(split.paths)
            else:
                read_test_images(options, split)
        say(f"{name}: " + ", ".join(f"{key} {value}" for key, value in stamps(options, data).items()))


def _new_state(start: Start, description: Description, state: TrainState, shardings: TrainState) -> TrainState:
    """Return the state with the backbone of init.checkpoint. Without init.checkpoint, its weights stay random."""
    if not start.source:
        say("starting from random weights (init.checkpoint is empty)")
        return state
    variables, taken = checkpoint.initialise_backbone(state.variables, description, *start.source)
    variables = place(variables, {name: getattr(shardings, name) for name in variables})
    say(f"starting from {start.options.init.checkpoint}: {taken}")
    return start.method.start_from(state, variables)


def check_same_run(options: Options, workdir: Path) -> None:
    """Raise InputError if the work directory holds a run with other options, or its checkpoints cannot lie there."""
    folder = workdir / runs.FOLDER
    # Training removes old checkpoints from the folder, and must not remove files that a link points to.
    if folder.is_symlink():
        raise InputError(f"{folder} is a symbolic link; remove it, or choose another --workdir")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --workdir, or remove it")
    if not runs.saved_steps(workdir):
        return
    changed = differences(read_options(load_config(workdir / "config.json")), options)
    if changed:
        shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise InputError(f"{workdir} holds a run with other options ({shown}); choose another --workdir, or remove it")
