"""The functions that differ between training with labels (build.py) and pretraining by DINO (pretraining/build.py)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from . import build
from .description import Description
from .errors import say
from .inputs import Records, Statistic
from .metrics_log import logged_accuracy
from .options import Options
from .pretraining import build as pretraining
from .processes import is_first
from .state import TrainState
from .step import Teacher

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Method:
    """The functions of a run that depend on how it learns, in the order of their calls.

    Attributes:
        check: check(options) raises InputError if the model cannot learn this way.
        make_description: make_description(options, records, mean, std, teacher_variables) returns the model's
            description.
        make_state: make_state(options, description) returns the state before the first step.
        start_from: start_from(state, variables) returns the new state with a checkpoint's variables.
        make_step: make_step(options, description, teacher, degradation, steps) returns the train step; `steps` is the
            number of steps of the whole run.
        conclude: conclude(options, description, workdir, scores) returns the scores of the run; `scores` are those of
            its last evaluation.
    """

    check: Callable[[Options], object]
    make_description: Callable[[Options, Records, Statistic, Statistic, dict | None], Description]
    make_state: Callable[[Options, Description], TrainState]
    start_from: Callable[[TrainState, dict], TrainState]
    make_step: Callable[[Options, Description, Teacher | None, dict, int], Callable]
    conclude: Callable[[Options, Description, Path, Scores], Scores]


def choose_method(options: Options) -> Method:
    """Return the Method that dino.enabled chooses."""
    if options.dino.enabled:
        return Method(
            check=pretraining.networks,
            make_description=lambda options, records, mean, std, _: pretraining.make_description(
                options, records, mean, std
            ),
            make_state=pretraining.make_state,
            start_from=pretraining.start_from,
            make_step=lambda options, description, _, degradation, steps: pretraining.make_step(
                options, description, degradation, steps
            ),
            conclude=lambda _, __, workdir, scores: pretraining.conclude(workdir) | scores,
        )
    return Method(
        check=build.check_model,
        make_description=build.make_description,
        make_state=build.make_state,
        start_from=build.start_from,
        # The learning rate follows the epoch, so this step does not need to know how many steps there are.
        make_step=lambda options, description, teacher, degradation, _: build.make_step(
            options, description, teacher, degradation
        ),
        conclude=lambda options, description, workdir, scores: (
            scores or training_accuracy(workdir, options.train.epochs, description.classes)
        ),
    )


def training_accuracy(workdir: Path, epochs: int, classes: int) -> Scores:
    """Return the logged accuracy on the batches of the last epoch, and warn if it is near chance."""
    accuracy, chance = logged_accuracy(workdir, epochs), 1 / classes
    if accuracy is None:
        return {}
    # With two identities, twice the chance would be 1. Then the limit is the middle between chance and 1.
    if accuracy < min(2 * chance, (1 + chance) / 2) and is_first():
        say(
            f"warning: the training accuracy is {accuracy:.1%}, near chance ({chance:.1%} for {classes} identities): "
            "this model has learned little; train it longer, with another optim.lr or from a backbone "
            "(init.checkpoint)",
            error=True,
        )
    return {"training_accuracy": accuracy}
