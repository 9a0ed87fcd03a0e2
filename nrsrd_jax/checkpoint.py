"""Checkpoints that describe themselves: save, restore onto any device count, load weights.

A checkpoint is a directory of Orbax items: `model` (JSON, a Description), `weights` (params and batch_stats), when it
came from training `optimizer`, and when it came from PyTorch perhaps `torch`, tensors that convert/ gives back. A
training run keeps its best and its last two under `WORKDIR/checkpoints/`. Hashes tell a damaged one.
"""

import contextlib
import errno
import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from .cluster import any_process, is_first, wait_for_all
from .description import Description
from .errors import InputError
from .files import expanded
from .metrics_log import read_metrics
from .models.vit import PATCH, resize_position_embedding
from .sharding import parameter_shardings, place
from .state import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every file otherwise
logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # or of every read that failed beside the first
FOLDER = "checkpoints"


class Damaged(InputError):
    """A checkpoint that cannot be read, or holds something else than was saved."""


class Checkpoints:
    """The checkpoints of one training run: the best by `mAP` (if it is evaluated) and the last two."""

    def __init__(self, workdir: str | Path):
        policy = AnyPreservationPolicy(
            [LatestN(2), BestN(n=1, get_metric_fn=lambda m: m["mAP"], keep_checkpoints_without_metrics=False)]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m["mAP"],
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            # On CPU the copy to the host is none: the next step would write into what is being saved.
            enable_async_checkpointing=jax.default_backend() != "cpu",
        )
        for step in saved_steps(Path(workdir)) if is_first() else ():
            scores = Path(workdir) / FOLDER / str(step) / "metrics"
            if scores.exists() and saved_score(Path(workdir), step) is None:  # Orbax cannot begin with damaged ones
                shutil.rmtree(scores, ignore_errors=True)
        wait_for_all("scores")
        handlers = {"optimizer": ocp.StandardCheckpointHandler(), **_handlers()}
        self._directory = (Path(workdir) / FOLDER).absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def save(self, state: TrainState, description: Description, metrics: dict[str, float] | None) -> None:
        """Writes the state, on an accelerator in the background once it is hashed.

        It counts only once whole: a kill while saving leaves the last one, and so does a full disk, an InputError. A
        step that is saved stays as it is.
        """
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        hashes = {"weights_sha256": weights_hash(state.variables), "optimizer_sha256": weights_hash(state.opt_state)}
        items = ocp.args.Composite(
            weights=ocp.args.StandardSave(state.variables),
            optimizer=ocp.args.StandardSave(state.opt_state),
            model=ocp.args.JsonSave(description.to_json(hashes)),
        )
        with self._saving(f"the checkpoint of step {step}"):
            if is_first():
                check_space(self._directory, (state.variables, state.opt_state))
            if not self._manager.save(step, args=items, metrics=metrics):
                raise OSError(errno.EEXIST, "it holds later steps, another process trains here")

    @contextlib.contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        """Whatever Orbax raises while it writes, as an InputError that names the last good checkpoint."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            full = "RESOURCE_EXHAUSTED" in str(error) or "space" in str(error)  # TensorStore raises ValueError then
            if not (full or isinstance(error, OSError)):
                raise
            steps = saved_steps(self._directory.parent)
            last = f"the last good one is {steps[-1]}" if steps else "there is no other yet"
            reason = str(error).partition("\n")[0][:300]
            mend = "Make room" if full else "Mend that"
            raise InputError(
                f"cannot save {what} in {self._directory}: {reason}; {last}. {mend}, then the same command goes on"
            ) from error

    def restore(self, state: TrainState, shardings: TrainState, description: Description) -> TrainState:
        """The last state that is not damaged, laid out by `shardings`; `state` gives shapes and types.

        Damaged ones are told of and set aside. InputError if all are, or if the run began with other images, or another
        teacher, than `description` tells of.
        """
        damaged = []
        for step in reversed(saved_steps(self._directory.parent)):
            restored = None
            try:
                restored = self._restore_step(step, state, shardings, description)
            except Damaged as error:
                print(f"warning: {error}; going on from the one before, if any", file=sys.stderr)
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
        raise InputError(f"all checkpoints in {self._directory} are damaged; remove the folder to begin anew")

    def _restore_step(
        self, step: int, state: TrainState, shardings: TrainState, description: Description
    ) -> TrainState:
        model = self._restore(step, model=ocp.args.JsonRestore())["model"]
        try:
            saved = Description.from_json(model).provenance
            data, teacher = saved["data"], saved["teacher"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(step, str(error)) from error
        for name in ("train", "aux_bright", "aux_dark"):
            if data.get(name) != description.provenance["data"].get(name):
                raise InputError("the images are no longer those that this run began with; choose another --workdir")
        if teacher != description.provenance["teacher"]:
            raise InputError("the teacher is no longer the one that this run began with; choose another --workdir")
        abstract = _sharded_shapes(state, shardings)
        restored = self._restore(
            step,
            weights=ocp.args.StandardRestore(abstract.variables),
            optimizer=ocp.args.StandardRestore(abstract.opt_state),
        )
        for name, values in restored.items():
            if weights_hash(values) != saved.get(f"{name}_sha256"):
                raise self._damaged(step, f"its {name} changed since it was saved")
        step_array = place(np.int32(step), shardings.step)
        return TrainState(step_array, **restored["weights"], opt_state=restored["optimizer"])

    def _restore(self, step: int, **items) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            if "PERMISSION_DENIED" in str(error):
                raise InputError(str(error).partition("\n")[0][:300]) from error
            raise self._damaged(step, "it cannot be read") from error

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(f"{self._directory / str(step)} is damaged: {reason}")

    def close(self) -> None:
        """Waits for what is being written. InputError as `save`."""
        with self._saving("the last checkpoint"):
            self._manager.close()


def _handlers() -> dict:
    return {"weights": ocp.StandardCheckpointHandler(), "model": ocp.JsonCheckpointHandler()}


def _sharded_shapes(tree, shardings):
    """What Orbax restores into: each array's shape and type, and where it shall lie."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, shardings)


def _set_aside(checkpoint: Path) -> None:
    """Renames a damaged checkpoint, so that it no longer counts."""
    names = (f"damaged-{checkpoint.name}{suffix}" for suffix in ("", *(f".{n}" for n in range(2, 1000))))
    checkpoint.rename(next(path for path in map(checkpoint.with_name, names) if not path.exists()))


def saved_steps(workdir: Path) -> list[int]:
    """The steps whose checkpoints a run has whole, in order."""
    return sorted(int(path.name) for path in (workdir / FOLDER).glob("*") if re.fullmatch("[1-9][0-9]*", path.name))


def saved_score(workdir: Path, step: int) -> float | None:
    """The mAP that a checkpoint was saved with; None if it was not evaluated."""
    path = workdir / FOLDER / str(step) / "metrics" / "metrics"
    try:
        return float(json.loads(path.read_text())["mAP"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def known_score(workdir: Path, step: int) -> float | None:
    """The mAP that training gave a checkpoint; only the log has it if the evaluation failed at first. None if none."""
    saved = saved_score(workdir, step)
    if saved is not None:
        return saved
    logged = [row["mAP"] for row in read_metrics(workdir) if "mAP" in row and row["step"] == step]
    return logged[-1] if logged else None


def run_of(checkpoint: Path) -> Path | None:
    """The work directory that a checkpoint is in; None if it is of no run."""
    home = checkpoint.parents[1] if checkpoint.parent.name == FOLDER else checkpoint
    return home if (home / "config.json").is_file() else None


def newest_run(runs: Path = Path("runs")) -> Path:
    """The work directory under `runs` whose checkpoints changed last; InputError if none has any."""
    homes = [path.parent for depth in ("*", "*/*") for path in runs.glob(f"{depth}/{FOLDER}")]
    found = [home for home in homes if saved_steps(home)]
    if not found:
        raise InputError(f"there is no run with a checkpoint under {runs}/; train one, or give --checkpoint")
    return max(found, key=lambda home: (home / FOLDER).stat().st_mtime)


def find_checkpoint(directory: str | Path) -> Path:
    """`directory` if it is a checkpoint, or the best (else the last) one of the training run in it."""
    directory = expanded(directory).absolute()
    if (directory / "model").is_dir():
        return directory
    if directory.is_file():
        raise InputError(f"{directory} is a file; if it is PyTorch's: python convert/from_torch.py {directory}")
    steps = saved_steps(directory)
    if not steps:
        raise InputError(f"{directory} holds no checkpoint: it is neither one itself nor the work directory of a run")

    def score(step: int) -> tuple[float, int]:
        known = known_score(directory, step)
        return -1.0 if known is None else known, step

    return directory / FOLDER / str(max(steps, key=score))


def load(directory: str | Path, mesh: jax.sharding.Mesh) -> tuple[Description, dict]:
    """The description and the variables of a checkpoint or of a run's best one, on the devices of `mesh`."""
    path = find_checkpoint(directory)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers())) as checkpointer, _readable(path):
        values = checkpointer.restore(path, args=ocp.args.Composite(model=ocp.args.JsonRestore()))
        description = Description.from_json(values["model"])
        shapes = description.abstract_variables()
        abstract = _sharded_shapes(shapes, parameter_shardings(shapes, mesh))
        items = ocp.args.Composite(weights=ocp.args.StandardRestore(abstract))
        variables = checkpointer.restore(path, args=items)["weights"]
    if weights_hash(variables) != description.provenance.get("weights_sha256"):
        raise InputError(f"{path} is damaged: its weights are not those that were saved")
    return description, variables


def save_weights(directory: Path, description: Description, variables: dict, kept: dict[str, np.ndarray]) -> None:
    """Writes a checkpoint without optimiser: whole, or not at all. `kept` are tensors that convert/ gives back.

    It carries hashes of both, which `load` and `load_kept` compare. InputError if it cannot be written.
    """
    directory = expanded(directory).absolute()
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
    """OSError if the arrays of `tree` have no room on the disk of a directory."""
    needed, free = sum(array.nbytes for array in jax.tree.leaves(tree)), shutil.disk_usage(directory).free
    if free < needed + 2**20:
        raise OSError(errno.ENOSPC, f"no space: it takes {needed >> 20} MiB, and {free >> 20} MiB are free")


def load_kept(path: Path, description: Description) -> dict[str, np.ndarray]:
    """The tensors that `save_weights` kept for convert/, of their own types; none in a trained checkpoint."""
    expected = description.provenance.get("kept_sha256", weights_hash({}))
    kept = {}
    if (path / "torch").is_dir():
        with ocp.PyTreeCheckpointer() as checkpointer, _readable(path):
            tree = checkpointer.metadata(path / "torch").item_metadata.tree
            types = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            kept = checkpointer.restore(path / "torch", args=ocp.args.PyTreeRestore(restore_args=types))
    if weights_hash(kept) != expected:
        raise InputError(f"{path} is damaged: tensors in torch/ are not those that were saved; convert again")
    return kept


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever Orbax raises on a damaged directory, as one InputError."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". See full")[0]
        raise InputError(f"{path} is no readable checkpoint: {reason[:200]}") from error


def weights_hash(variables: Any) -> str:
    """SHA-256 over the names and bytes of all arrays of a tree."""
    digest = hashlib.sha256()
    for name, value in jax.tree_util.tree_leaves_with_path(variables):
        if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
            value = multihost_utils.process_allgather(value, tiled=True)
        digest.update(jax.tree_util.keystr(name).encode() + np.asarray(value).tobytes())
    return digest.hexdigest()


def initialise_backbone(
    variables: dict, description: Description, source: Description, source_variables: dict
) -> tuple[dict, str]:
    """`variables` with the backbone of another checkpoint of the same architecture, and a sentence on what was taken.

    The heads stay as they are, and so does NRA's λ where the source has none; a position embedding of another grid is
    resized.
    """
    base = dict(source_variables["params"]["base"])
    taken = f"backbone {source.backbone}"
    if source.image_size != description.image_size:
        old, new = ((height // PATCH, width // PATCH) for height, width in (source.image_size, description.image_size))
        base["pos_embed"] = resize_position_embedding(np.asarray(base["pos_embed"]), old, new)
        taken += f", position embedding resized from {old[0]}×{old[1]} to {new[0]}×{new[1]}"
    last = f"blocks_{description.depth - 1}"
    attention = dict(base[last]["attn"])
    if not description.norm_ratio:
        attention.pop("norm_ratio", None)
    elif "norm_ratio" not in attention:
        attention["norm_ratio"] = variables["params"]["base"][last]["attn"]["norm_ratio"]
        taken += ", λ of NRA is new"
    base[last] = base[last] | {"attn": attention}
    statistics = {name: value for name, value in source_variables["batch_stats"].items() if name == "base"}
    return {
        "params": variables["params"] | {"base": base},
        "batch_stats": variables["batch_stats"] | statistics,
    }, taken
