"""Trace a train step, an initialisation, a forward pass and a model's shapes once per process for equal options.

Tracing takes a second of a small training's two. JAX remembers what it traced and compiled of a function, but training
makes a new one for each run; here runs whose options agree get the same one.
"""

import functools
from collections.abc import Callable

import jax

from nrsrd_jax import training
from nrsrd_jax.config import flatten
from nrsrd_jax.description import Description
from nrsrd_jax.models import MODELS
from nrsrd_jax.retrieval.embedding import Embedder

# Options that no compiled program depends on but through the arrays and the description that it is given.
LEFT_OUT = ("data.", "aux.", "eval.", "init.", "teacher.", "train.log_every", "train.save_every", "image_size")
_made: dict[str, object] = {}


def forget() -> None:
    """Let the next run compile as the first of a process does, for tests of when that happens."""
    _made.clear()


def _once(make: Callable, name: str, *about: object):
    key = repr((name, jax.config.read("jax_disable_most_optimizations"), *about))
    if key not in _made:
        _made[key] = make()
    return _made[key]


def _chosen(options) -> list:
    return [(name, value) for name, value in flatten(options).items() if not name.startswith(LEFT_OUT)]


def _model(description) -> list:
    return [(name, value) for name, value in vars(description).items() if name not in ("provenance", "identities")]


def switch_on() -> None:
    make_step, state_builder, prepare = training.make_step, training.state_builder, Embedder.__init__
    shapes = Description.abstract_variables

    def step(options, description, teacher, optimizer, degradation):
        make = functools.partial(make_step, options, description, teacher, optimizer, degradation)
        return _once(make, "step", _chosen(options), _model(description), teacher, sorted(degradation.items()))

    def builder(options, description, optimizer, mesh):
        make = functools.partial(state_builder, options, description, optimizer, mesh)
        return _once(make, "state", _chosen(options), _model(description), mesh.devices.tolist(), mesh.axis_names)

    @functools.wraps(prepare)
    def init(self, model, variables, description, mesh, **options):
        prepare(self, model, variables, description, mesh, **options)
        about = model, _model(description), mesh.devices.tolist(), options["flip"], options.get("feature")
        self._forward = _once(lambda: self._forward, "forward", *about)

    def abstract_variables(self):
        found = _once(lambda: shapes(self), "shapes", _model(self), MODELS.get(self.backbone))
        return jax.tree.map(lambda x: x, found)  # Each caller may change its dictionaries.

    training.make_step, training.state_builder, Embedder.__init__ = step, builder, init
    Description.abstract_variables = abstract_variables
