"""Save checkpoints, restore them onto any number of devices, and load weights from them.

A checkpoint is a folder of Orbax items: `model` (a Description as JSON), `weights` (params and batch_stats), after
training `optimizer`, and after a conversion from PyTorch perhaps `torch` (tensors that the model does not use). A run
keeps its best and its last two checkpoints under `WORKDIR/checkpoints/`. Hashes reveal a damaged checkpoint.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from .description import Description
from .errors import InputError, printable, say
from .files import absolute
from .processes import any_process, is_first, wait_for_all
from .runs import FOLDER, find_checkpoint, saved_score, saved_steps
from .sharding import parameter_shardings, place
from .state import TrainState
from .stored import ITEMS, Damaged, check_stored, has_items, read_description, restoring

# Orbax logs every file and the content of damaged files, and asyncio logs every failed read after the first.
logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class Checkpoints:
    """Keep the checkpoints of one training run: the best by `mAP` (if there is an evaluation) and the last two."""

    def __init__(self, workdir: str | Path):
        policy = AnyPreservationPolicy(
            [LatestN(2), BestN(n=1, get_metric_fn=lambda m: m["mAP"], keep_checkpoints_without_metrics=False)]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m["mAP"],
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            # On CPU, a save does not copy the arrays, so it must end before the next step, which donates them.
            enable_async_checkpointing=jax.default_backend() != "cpu",
        )
        self.workdir = workdir = Path(workdir)
        for step in saved_steps(workdir) if is_first() else ():
            folder = workdir / FOLDER / str(step)
            if folder.is_symlink():
                continue
            # Orbax refuses a folder with a damaged score or list of items, so rename such files first.
            if os.path.lexists(folder / "metrics") and saved_score(workdir, step) is None:
                _set_aside(folder / "metrics")
            if (folder / ITEMS).exists() and not has_items(folder):
                _set_aside(folder / ITEMS)
        wait_for_all("scores")
        handlers = {"optimizer": ocp.StandardCheckpointHandler(), **_handlers()}
        self._directory = absolute(workdir) / FOLDER
        with restoring(self._directory), self._saving("checkpoints"):
            self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def save(self, state: TrainState, description: Description, metrics: dict[str, float] | None) -> None:
        """Hash the state and write it; on an accelerator, write in the background.

        A checkpoint becomes visible only when it is complete. If the process is killed or the disk fills up, the
        previous checkpoint is kept. Saving an existing step does nothing.

        Args:
            state: the state to save.
            description: the description of the model, to write beside the weights.
            metrics: the scores of the evaluation at this step; None without one.

        Raises:
            InputError: the checkpoint cannot be written.
        """
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        hashes = {"weights_sha256": weights_hash(state.variables), "optimizer_sha256": weights_hash(state.opt_state)}
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(state.variables),
            optimizer=ocp.args.StandardSave(state.opt_state),
            model=ocp.args.JsonSave(description.to_json(hashes | {"step": step})),
        )
        with self._saving(f"the checkpoint of step {step}"):
            if is_first():
                check_space(self._directory, (state.variables, state.opt_state))
            if not self._manager.save(step, args=items, metrics=metrics):
                raise OSError(errno.EEXIST, "it holds later steps, so another process trains here")

    @contextlib.contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        """Turn any error that Orbax raises while it writes into an InputError that names the last good checkpoint."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            # If the disk is full, TensorStore raises ValueError with one of these two words.
            full = "RESOURCE_EXHAUSTED" in str(error) or "space" in str(error)
            if not (full or isinstance(error, OSError)):
                raise
            steps = saved_steps(self._directory.parent)
            last = f"the last good one is {steps[-1]}" if steps else "no other has been saved yet"
            reason = printable((getattr(error, "strerror", None) or str(error)).partition("\n")[0], 300)
            fix = "Make room" if full else "Fix that"
            problem = f"cannot save {what} in {self._directory}: {reason}; {last}"
            raise InputError(f"{problem}. {fix}, then the same command continues") from error

    def restore(self, state: TrainState, shardings: TrainState, description: Description, last_step: int) -> TrainState:
        """Restore the newest checkpoint that is not damaged; warn about damaged ones and rename them.

        Args:
            state: the shapes and types of the state.
            shardings: the sharding of each array of the state.
            description: the description of the run as it is now; its data and teacher must be those of the checkpoint.
            last_step: the number of steps of the whole run.

        Returns:
            The state.

        Raises:
            InputError: all checkpoints are damaged, the run started with other images or another teacher, or a
                checkpoint does not fit in the free memory.
        """
        damaged = []
        for step in reversed(saved_steps(self._directory.parent)):
            restored = None
            try:
                restored = self._restore_step(step, state, shardings, description, last_step)
            except Damaged as error:
                say(f"warning: {error}; continuing from the previous checkpoint, if any", error=True)
            if any_process(restored is None):
                damaged.append(step)
                continue
            assert restored
            if is_first():
                for name in damaged:
                    _set_aside(self._directory / str(name))
            wait_for_all("set aside")
            self._manager.reload()
            return restored
        raise InputError(f"all checkpoints in {self._directory} are damaged; remove the folder to start the run again")

    def _restore_step(
        self, step: int, state: TrainState, shardings: TrainState, description: Description, last_step: int
    ) -> TrainState:
        path = self._directory / str(step)
        # Orbax could not delete a symbolic link later, when the checkpoint is not needed any more.
        if path.is_symlink():
            raise Damaged(f"{path} is damaged: it is a symbolic link")
        saved = read_description(path).provenance
        _check_step(path, saved)
        data, teacher = saved.get("data"), saved.get("teacher")
        if not isinstance(data, dict):
            raise Damaged(f"{path} is damaged: it does not say which images it was trained on")
        for name in ("train", "aux_bright", "aux_dark"):
            if data.get(name) != description.provenance["data"].get(name):
                raise InputError("the images are not those that this run started with; choose another --workdir")
        if teacher != description.provenance["teacher"]:
            raise InputError("the teacher is not the one that this run started with; choose another --workdir")
        # Check the data first: with other images, the run would have another number of steps.
        if step > last_step:
            raise Damaged(f"{path} is damaged: the run has only {last_step} steps")
        abstract = _sharded_shapes(state, shardings)
        trees = {"weights": abstract.variables, "optimizer": abstract.opt_state}
        for name, tree in trees.items():
            check_stored(path / name, tree)
        with restoring(path):
            items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
            restored: Any = self._manager.restore(step, args=ocp.args.Composite(**items))
            for name, values in restored.items():
                if weights_hash(values) != saved.get(f"{name}_sha256"):
                    raise Damaged(f"{path} is damaged: its {name} changed since it was saved")
        step_array = place(np.int32(step), shardings.step)
        return TrainState(step_array, **restored["weights"], opt_state=restored["optimizer"])

    def close(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            InputError: as `save`.
        """
        with self._saving("the last checkpoint"):
            self._manager.close()


def _handlers() -> dict:
    return {"weights": ocp.StandardCheckpointHandler(), "model": ocp.JsonCheckpointHandler()}


def _sharded_shapes(tree, shardings):
    """Return the shape, type and sharding of each array, which Orbax needs to restore it."""
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint or score so that it is not read again."""
    names = (f"damaged-{path.name}{suffix}" for suffix in ("", *(f".{n}" for n in range(2, 1000))))
    path.rename(next(free for free in map(path.with_name, names) if not os.path.lexists(free)))


def _check_step(path: Path, provenance: dict[str, Any]) -> None:
    """Raise Damaged if the folder's name is not the step that was saved. Older checkpoints do not record the step."""
    step = provenance.get("step")
    if path.parent.name == FOLDER and path.name.isdecimal() and step is not None and step != int(path.name):
        raise Damaged(f"{path} is damaged: it holds the weights of step {printable(step, 20)}")


def load(directory: str | Path, mesh: jax.sharding.Mesh) -> tuple[Description, dict]:
    """Load the description and the variables of a checkpoint.

    Args:
        directory: a checkpoint, or the work directory of a training run, whose best checkpoint is loaded.
        mesh: the devices to put the variables on, as `sharding.parameter_shardings` says.

    Returns:
        The Description, and {"params": …, "batch_stats": …} in float32.

    Raises:
        InputError: `directory` holds no checkpoint, or the checkpoint is damaged or does not fit in the free memory.

    Example:
        >>> from nrsrd_jax.checkpoint import load
        >>> from nrsrd_jax.sharding import make_mesh
        >>> description, variables = load("runs/night", make_mesh())
        >>> description.backbone, variables["params"]["base"]["cls_token"].shape
        ('vit_tiny', (1, 1, 192))
    """
    path = find_checkpoint(directory)
    description = read_description(path)
    _check_step(path, description.provenance)
    with restoring(path):
        shapes = description.abstract_variables()
        check_stored(path / "weights", shapes)
        abstract = _sharded_shapes(shapes, parameter_shardings(shapes, mesh))
        items = ocp.args.Composite(weights=ocp.args.StandardRestore(abstract))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as checkpointer:
            variables = checkpointer.restore(path, args=items)["weights"]
        if weights_hash(variables) != description.provenance.get("weights_sha256"):
            raise Damaged(f"{path} is damaged: its weights are not those that were saved")
    return description, variables


def save_weights(directory: Path, description: Description, variables: dict, kept: dict[str, np.ndarray]) -> None:
    """Write a checkpoint without an optimiser. It becomes visible only when it is complete.

    It includes hashes of the tensors, which `load` and `load_kept` check.

    Args:
        directory: the folder to write; missing parent folders are created.
        description: the description of the model.
        variables: the variables of the model, {"params": …, "batch_stats": …}.
        kept: {name: array}, tensors that the model does not use and that `weights.to_torch.export` gives back.

    Raises:
        InputError: the folder exists or is not writable, or the disk is full.

    Example:
        >>> from pathlib import Path
        >>> from nrsrd_jax.checkpoint import save_weights
        >>> from nrsrd_jax.weights.from_torch import convert
        >>> description, variables, kept, report = convert(Path("model.pth"))
        >>> save_weights(Path("runs/converted"), description, variables, kept)
        >>> Path("runs/converted/weights").is_dir()
        True
    """
    directory = absolute(directory)
    hashes = {"weights_sha256": weights_hash(variables), "kept_sha256": weights_hash(kept)}
    items: dict[str, Any] = {"weights": ocp.args.StandardSave(variables)}
    items["model"] = ocp.args.JsonSave(description.to_json(hashes))
    if kept:
        items["torch"] = ocp.args.StandardSave(kept)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        check_space(directory.parent, (variables, kept))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory, args=ocp.args.Composite(**items))
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"cannot write {directory}: {str(error).splitlines()[0]}") from error


def check_space(directory: Path, tree: Any) -> None:
    """Raise OSError if the arrays of `tree` do not fit on the disk that holds `directory`."""
    needed, free = sum(array.nbytes for array in jax.tree.leaves(tree)), shutil.disk_usage(directory).free
    if free < needed + 2**20:
        raise OSError(errno.ENOSPC, f"no space: it needs {needed >> 20} MiB, and {free >> 20} MiB are free")


def load_kept(path: Path, description: Description) -> dict[str, np.ndarray]:
    """Return the tensors that `save_weights` kept for convert/, in their own types; {} for a trained checkpoint."""
    expected = description.provenance.get("kept_sha256", weights_hash({}))
    kept = {}
    if (path / "torch").is_dir():
        check_stored(path / "torch")
        with restoring(path), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path / "torch").item_metadata.tree
            types = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            kept = checkpointer.restore(path / "torch", args=ocp.args.PyTreeRestore(restore_args=types))
    if weights_hash(kept) != expected:
        raise InputError(
            f"{path} is damaged: the tensors in torch/ are not those that were saved; convert the PyTorch file again"
        )
    return kept


def weights_hash(variables: Any) -> str:
    """Return the SHA-256 of the names and bytes of all arrays in a tree."""
    digest = hashlib.sha256()
    for name, value in jax.tree_util.tree_leaves_with_path(variables):
        if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
            value = multihost_utils.process_allgather(value, tiled=True)
        digest.update(jax.tree_util.keystr(name).encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def initialise_backbone(
    variables: dict, description: Description, source: Description, source_variables: dict
) -> tuple[dict, str]:
    """Replace the backbone in a model's variables by that of another checkpoint.

    Args:
        variables: the variables of the new model; its necks and classifiers are kept.
        description: the description of the new model.
        source: the description of the other checkpoint, of the same architecture.
        source_variables: the variables of the other checkpoint.

    Returns:
        The new variables, and a note on what was taken and how it was changed to fit.
    """
    base, notes = description.spec.start_from(
        *(variables["params"]["base"], source_variables["params"]["base"]),
        *(description.image_size, source.image_size, source.spec),
    )
    params, statistics = variables["params"] | {"base": base}, variables["batch_stats"]
    if "base" in statistics:
        given = source_variables["batch_stats"]["base"]
        own = {name: given.get(name, value) for name, value in statistics["base"].items()}
        statistics = statistics | {"base": own}
    return {"params": params, "batch_stats": statistics}, ", ".join([f"backbone {source.backbone}", *notes])
