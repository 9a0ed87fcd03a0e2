"""Loop over the steps of a training run: log, evaluate and save checkpoints between them."""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from .checkpoint import Checkpoints
from .compiled import is_finite
from .data import pipeline
from .description import Description
from .errors import InputError
from .files import write_whole
from .inputs import Records, reading_threads
from .method import Method
from .metrics_log import MetricsLog, logged_scores
from .options import Options, flatten
from .processes import is_first, together
from .query_scores import write_scores
from .retrieval.embedding import Embedder
from .retrieval.loading import make_embedder
from .retrieval.scoring import evaluate, headline
from .sharding import over_data, place, replicated
from .state import TrainState
from .termination import Termination


class Rate:
    """Count the images per second since this object was made."""

    def __init__(self):
        self.images, self._begin = 0, time.perf_counter()

    def figures(self) -> dict[str, float]:
        """Return {"images_per_second": …}, or {} if there were no images."""
        seconds = time.perf_counter() - self._begin
        return {"images_per_second": round(self.images / seconds, 1)} if self.images else {}


@dataclasses.dataclass
class Loop:
    """Run the steps of training, and write the log, evaluate and save checkpoints between them."""

    options: Options
    method: Method
    records: Records
    description: Description
    domains: dict[str, pipeline.Domain]
    mesh: Mesh
    checkpoints: Checkpoints
    termination: Termination

    def run(self, state: TrainState, done: int, step: Callable, workdir: Path) -> dict[str, float]:
        """Train from step `done` to the last step.

        Args:
            state: the state after `done` steps.
            done: the number of steps done.
            step: the compiled train step, (state, batch) -> (state, metrics).
            workdir: the folder of the run.

        Returns:
            As `train`.

        Raises:
            InputError: the loss is not finite, or the disk is full.
            Stopped: SIGTERM came, and the state was saved.
        """
        options, plan = self.options, self.records.plans["real"]
        total = plan.steps(options.train.epochs)
        images = options.train.batch_size * len(self.domains)
        scores: dict[str, float] = {}
        pending: list[dict] = []
        ending, begin = False, done
        with together():
            opened = MetricsLog(workdir, done, options.train.loggers, flatten(options), is_first())
        with opened as log, progress_bar(done, total, images) as bar:
            # The run is complete. Evaluate only if the last evaluation failed, so that the log has no scores of it.
            if done == total:
                scores = logged_scores(workdir, options.train.epochs)
                scores = scores or self.evaluate(state, options.train.epochs, log, bar)
                return self.method.conclude(options, self.description, workdir, scores)
            rate = Rate()
            for batch in self.batches(done, total):
                state, metrics = step(state, batch)
                rate.images += images
                # The first step includes the compilation, so the rate leaves it out.
                if done == begin:
                    bar.unpause()
                    rate = Rate()
                # Check the previous step while the devices compute this one.
                if pending:
                    self.check_finite(pending[-1], done, workdir)
                pending.append(metrics)
                done += 1
                epoch, index = plan.locate(done)
                if done % options.train.log_every == 0 or index == 0:
                    self.check_finite(metrics, done, workdir)
                    self.log_steps(log, bar, done, pending, rate)
                    pending, rate = [], Rate()
                if index == 0:
                    scores = self.end_epoch(state, epoch, done == total, log, bar) or scores
                    rate = Rate()
                # With several processes, JAX reports a signal after a single step only, so remember it.
                ending = self.termination.told() or ending
                # Stop only after a logged step, so that the log has the same lines as that of an uninterrupted run.
                if ending and not pending and done < total:
                    self.stop(state, f"stopped after step {done} of {total} and saved")
        return self.method.conclude(options, self.description, workdir, scores)

    def log_steps(self, log: MetricsLog, bar: tqdm, done: int, pending: list[dict], rate: Rate) -> None:
        """Log the means over the pending steps, of which `done` is the last. A single batch would be noisy."""
        epoch, index = self.records.plans["real"].locate(done)
        current = epoch if index == 0 else epoch + 1
        # Fetch all numbers together. One by one, each would take a transfer that the device waits for.
        fetched = jax.device_get(pending)
        values = {name: float(np.mean([float(x[name]) for x in fetched])) for name in fetched[-1]}
        log.write(done, {"epoch": current} | values | rate.figures())
        bar.set_description(f"epoch {current}/{self.options.train.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)
        bar.update(len(pending) * self.options.train.batch_size * len(self.domains))

    def stop(self, state: TrainState, message: str) -> NoReturn:
        """Save the state, and end the run with a message that the same command continues it."""
        self.checkpoints.save(state, self.description, None)
        self.checkpoints.close()
        # Leave together: a process must not exit while others still communicate with it.
        jax.distributed.shutdown()
        self.termination.end(f"{message}; the same command continues from there")

    def check_finite(self, metrics: dict, step: int, workdir: Path) -> None:
        """Raise InputError if the loss or gradient norm of a step is not finite, and list its batch in a file."""
        if is_finite(metrics):
            return
        values = {name: float(value) for name, value in metrics.items()}
        # The batch plan is a pure function of the step, so the files of the failed batch can be listed afterwards.
        files = {
            name: [str(split.paths[i]) for i in self.records.plans[name].batch(step - 1)]
            for name, split in self.records.domains.items()
        }
        report = workdir / "not_finite.json"
        numbers = {name: str(value) for name, value in values.items()}
        if is_first():
            write_whole(report, json.dumps({"step": step, "metrics": numbers, "files": files}, indent=1) + "\n")
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        first = ", ".join(f"{name} {names[0]}, …" for name, names in files.items())
        raise InputError(
            f"not finite at step {step}: {terms}; the batch ({first}) is listed in {report}. Checkpoints, if any, were "
            "not changed. Try a lower optim.lr or a longer optim.warmup_epochs, or find the operation with "
            "--config.train.debug_nans=True"
        )

    def batches(self, start: int, stop: int):
        """Yield the batches of steps start+1 to stop, placed on the devices and split over the axis `data`."""
        options, sharding = self.options, over_data(self.mesh)
        on_device = options.data.cache == "device"
        # With data.cache=device, all images lie on the devices, and only the indices of a batch are sent.
        if on_device:
            everywhere = replicated(self.mesh)
            images = {
                name: {key: place(np.asarray(source), everywhere) for key, source in domain.sources.items()}
                for name, domain in self.domains.items()
            }
            gather = jax.jit(lambda array, index: array[index], out_shardings=sharding)
        batches = pipeline.batches(self.domains, start, stop, pixels=not on_device, threads=reading_threads(options))
        for batch in batches:
            for name in self.domains:
                if on_device:
                    index = place(batch[name]["images"], everywhere)
                    batch[name] |= {key: gather(array, index) for key, array in images[name].items()}
                batch[name] = place(batch[name], sharding)
            yield batch

    def end_epoch(self, state: TrainState, epoch: int, last: bool, log: MetricsLog, bar: tqdm) -> dict[str, float]:
        """Evaluate and save after `epoch` epochs if they are due. Return the scores, or {} without an evaluation."""
        options = self.options
        scores: dict[str, float] = {}
        if last or (options.eval.every and epoch % options.eval.every == 0):
            try:
                scores = self.evaluate(state, epoch, log, bar)
            except Exception:
                # Save first: a failed evaluation must not lose the weights.
                self.checkpoints.save(state, self.description, None)
                raise
        if scores or last or epoch % options.train.save_every == 0:
            self.checkpoints.save(state, self.description, scores or None)
        return scores

    def evaluate(self, state: TrainState, epoch: int, log: MetricsLog, bar: tqdm) -> dict[str, float]:
        """Evaluate the state after `epoch` epochs, log the scores and return them; {} without queries."""
        if not self.records.targets:
            return {}
        bar.set_description("evaluating")
        # Keep one embedder for the whole run, so that its program is compiled once.
        embedder = self.embedder
        embedder.variables = state.variables
        results = evaluate(embedder, self.options, self.records.targets)
        scores = headline(results)
        # With several data sets, `scores` has the headline numbers; log those of each data set too.
        several = {
            f"{name}/{key}": x
            for name, row in results.items()
            for key, x in row.metrics.summary().items()
            if len(results) > 1
        }
        log.write(int(state.step), {"epoch": epoch} | scores | several, prefix="eval/")
        if is_first():
            write_scores(self.checkpoints.workdir, results, self.records.targets)
        bar.set_description(f"epoch {epoch}/{self.options.train.epochs}")
        bar.write(f"epoch {epoch}: mAP {scores['mAP']:.3f} Rank-1 {scores['rank1']:.3f}", file=sys.stdout)
        return scores

    @functools.cached_property
    def embedder(self) -> Embedder:
        return make_embedder(self.description, {}, self.mesh, self.options)


def progress_bar(done: int, total: int, images: int) -> tqdm:
    """Return a progress bar with images per second and the time left.

    Without a terminal it is updated every 15 seconds, so that log files stay short.

    Args:
        done: the number of steps done.
        total: the number of steps of the run.
        images: the number of images in a step.
    """
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(
        desc="compiling the step, once",
        total=total * images,
        initial=done * images,
        unit=" images",
        mininterval=interval,
        smoothing=0.1,
        disable=done == total or not is_first(),
    )
