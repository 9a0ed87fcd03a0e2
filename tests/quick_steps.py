"""Share traced functions between the runs of a process that have the same options.

Tracing takes one of the two seconds of a small training. JAX caches what it traced and compiled per function, but each
run makes new functions. Here runs with equal options get the same train step, initialisation, forward pass and shapes.
"""

import functools
from collections.abc import Callable

import jax

from nrsrd_jax import build, training
from nrsrd_jax.config import flatten
from nrsrd_jax.description import Description
from nrsrd_jax.models import MODELS
from nrsrd_jax.pretraining import build as pretraining
from nrsrd_jax.retrieval.embedding import Embedder

# Options that affect a compiled program only through its arguments and the model's description.
LEFT_OUT = (
    "data.",
    "aux.enabled",
    "aux.bright_root",
    "aux.dark_root",
    "eval.",
    "init.",
    "teacher.",
    "train.log_every",
    "train.save_every",
    "image_size",
)
_made: dict[str, object] = {}


def forget() -> None:
    """Forget all shared functions, so that the next run compiles like the first run of a process."""
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


def _shared_steps(method) -> Callable:
    make_step = method.make_step

    def step(options, description, *given):
        # Training with labels passes a teacher, which may be None, and the degradation. Pretraining passes the
        # degradation and the number of steps, because its step has schedules inside.
        degradation, other = given[::-1] if method is build else given
        make = functools.partial(make_step, options, description, *given)
        about = _chosen(options), _model(description), other, sorted(degradation.items())
        return _once(make, method.__name__, *about)

    return step


def switch_on() -> None:
    """Share functions in this process from now on."""
    sharded, prepare = training.sharded, Embedder.__init__
    for method in (build, pretraining):
        method.make_step = _shared_steps(method)
    shapes = Description.abstract_variables

    def builder(create, mesh):
        options, description = create.args
        about = _chosen(options), _model(description), mesh.devices.tolist(), mesh.axis_names
        return _once(functools.partial(sharded, create, mesh), "state", *about)

    @functools.wraps(prepare)
    def init(self, model, variables, description, mesh, **options):
        prepare(self, model, variables, description, mesh, **options)
        about = model, _model(description), mesh.devices.tolist(), options["flip"], options.get("feature")
        self._forward = _once(lambda: self._forward, "forward", *about)

    def abstract_variables(self):
        found = _once(lambda: shapes(self), "shapes", _model(self), MODELS.get(self.backbone))
        # Each caller gets dictionaries of its own, which it may change.
        return jax.tree.map(lambda x: x, found)

    training.sharded, Embedder.__init__ = builder, init
    Description.abstract_variables = abstract_variables
