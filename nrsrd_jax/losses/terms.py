"""The terms of the training objective (paper, eq. 10), in one table, and their weighted sum.

B batch, C classes
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .features import center_loss, consistency_loss, relation_loss, spread_loss, triplet_loss, weighted_triplet_loss
from .logits import agreement_loss, dkd_loss, id_loss

# One part of a model's output, with `features`, `logits` and `weight` (`models.reid.ReID`).
Part = dict[str, Any]


def _id_term(part: Part, labels: jax.Array, domain: str, taught: Part | None, **options) -> jax.Array:
    return id_loss(part["logits"][domain], labels, **options)


def _triplet_term(part: Part, labels: jax.Array, domain: str, taught: Part | None, **options) -> jax.Array:
    return triplet_loss(part["features"], labels, **options)


def _weighted_term(
    part: Part, labels: jax.Array, domain: str, taught: Part | None, weighted_form: str = "exact"
) -> jax.Array:
    return weighted_triplet_loss(part["features"], labels, form=weighted_form)


def _center_term(part: Part, labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    return center_loss(part["features"], labels, part["centers"])


def _spread_term(part: Part, labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    return spread_loss(part["features"])


def _distill_term(part: Part, labels: jax.Array, domain: str, taught: Part | None, **options) -> jax.Array:
    assert taught is not None
    return dkd_loss(part["logits"][domain], taught["logits"]["real"], labels, **options)


def _relation_term(part: Part, labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    assert taught is not None
    return relation_loss(part["features"], taught["features"])


def _consistency_term(part: Part, labels: jax.Array, domain: str, bright: Part | None) -> jax.Array:
    assert bright is not None
    return consistency_loss(part["features"], bright["features"])


def _agree_term(parts: Sequence[Part], labels: jax.Array, domain: str, taught: Part | None) -> jax.Array:
    return agreement_loss([part["logits"][domain] for part in parts])


def _term_of_the_model(name: str) -> Callable[..., jax.Array]:
    return lambda parts, labels, domain, taught: parts[0]["losses"][name]


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the objective (paper, eq. 10).

    Attributes:
        compute: (part, labels [B], domain, other part or None, **options) -> scalar. `part` is one of the model's
            parts, with only the rows of the domain. The other part is the one that `beside` names.
        domain: "real" or "aux", the images that the term is computed on.
        options: the names of the `loss` options that `compute` takes.
        beside: what the term compares the model's first part with. "teacher": the teacher's first part for the bright
            auxiliary images, whose own classifier is `logits["real"]`. "bright": the model's own first part for these
            images, which takes one more forward pass. "": nothing; the term is then computed for every part.
        own: whether the term exists only for models whose spec names it (`models.spec.Spec.losses`). `compute` then
            takes the list of all parts instead of one part, and the weights of the parts do not apply.
    """

    compute: Callable[..., jax.Array]
    domain: str
    options: tuple[str, ...] = ()
    beside: str = ""
    own: bool = False


DISTILLATION = ("alpha", "beta", "temperature", "nckd_weight")
# The field of the same name in `options.Loss` is the weight λ of a term.
TERMS = {
    "id_real": Term(_id_term, "real", ("label_smoothing",)),
    "triplet_real": Term(_triplet_term, "real", ("margin", "normalize")),
    "spread_real": Term(_spread_term, "real"),
    "weighted_real": Term(_weighted_term, "real", ("weighted_form",)),
    "center_real": Term(_center_term, "real"),
    "id_syn": Term(_id_term, "aux", ("label_smoothing",)),
    "triplet_syn": Term(_triplet_term, "aux", ("margin", "normalize")),
    "spread_syn": Term(_spread_term, "aux"),
    "distill": Term(_distill_term, "aux", DISTILLATION, beside="teacher"),
    "relation": Term(_relation_term, "aux", beside="teacher"),
    "consistency": Term(_consistency_term, "aux", beside="bright"),
    "enhance": Term(_term_of_the_model("enhance"), "real", own=True),
    "decode": Term(_term_of_the_model("decode"), "real", own=True),
    "agree": Term(_agree_term, "real", own=True),
}


def compute_terms(
    parts: Sequence[Part],
    labels: Mapping[str, jax.Array],
    domains: Sequence[str],
    taught: Part | None,
    options: Mapping[str, Any],
    wanted: Collection[str],
    bright: Part | None = None,
) -> dict[str, jax.Array]:
    """Compute every wanted term that the batch has data for, summed over the model's parts.

    A term is Σ_part weight·term(part). Terms that compare with a teacher or with the bright images read only the first
    part.

    Args:
        parts: the parts that the model returns (`models.reid.ReID`). Row i belongs to domain i % len(domains).
        labels: {domain: [B]}, the identities of the images of each domain.
        domains: the domains of the batch, "real" or "aux" or both, in the order of its rows.
        taught: the teacher's first part for the auxiliary images; None without a teacher.
        options: options of the terms by name, such as `margin`. A missing option keeps its default.
        wanted: the names of the terms to compute. The model must support all of them.
        bright: the model's own first part for the bright auxiliary images; None without it.

    Returns:
        {name: scalar}, not weighted by λ. A term is left out if the batch lacks its domain, or if it needs
        `taught` or `bright` and does not get it.

    Source:
        Guo et al. (the paper), the terms of eq. 10.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import compute_terms
        >>> part = {"features": jnp.zeros((2, 4)), "logits": {"real": jnp.zeros((2, 2))}, "weight": 1.0}
        >>> terms = compute_terms(
        ...     [part], {"real": jnp.array([0, 1])}, ["real"], None, {}, ("id_real", "triplet_real")
        ... )
        >>> {name: f"{value:.4f}" for name, value in terms.items()}
        {'id_real': '0.6931', 'triplet_real': '0.6931'}
    """

    def of_domain(part: Part, domain: str) -> Part:
        rows = slice(domains.index(domain), None, len(domains))
        own = {"features": part["features"][rows], "logits": {domain: part["logits"][domain][rows]}}
        return own | {name: part[name] for name in ("centers", "losses") if name in part}

    terms, others = {}, {"": None, "teacher": taught, "bright": bright}
    for name, term in TERMS.items():
        other = others[term.beside]
        if name not in wanted or term.domain not in domains or (term.beside and other is None):
            continue
        chosen = {option: options[option] for option in term.options if option in options}
        if term.own:
            own = [of_domain(part, term.domain) for part in parts]
            terms[name] = term.compute(own, labels[term.domain], term.domain, other, **chosen)
            continue
        values = []
        for part in parts[:1] if term.beside else parts:
            own = of_domain(part, term.domain)
            value = term.compute(own, labels[term.domain], term.domain, other, **chosen)
            values.append(value if part["weight"] == 1 else part["weight"] * value)
        terms[name] = sum(values[1:], start=values[0])
    return terms


def total_loss(terms: dict[str, jax.Array], weights: dict[str, float]) -> jax.Array:
    """Add up the weighted terms, Σ λ·term.

    Args:
        terms: {name: scalar}, from `compute_terms`.
        weights: {name: λ}, with an entry for each of the terms. The paper uses 0.5, and 0.02 for `distill`.

    Returns:
        A scalar; 0 without terms.

    Raises:
        KeyError: a term has no weight.

    Source:
        Guo et al. (the paper), eq. 10.

    Example:
        >>> import jax.numpy as jnp
        >>> from nrsrd_jax.losses import total_loss
        >>> terms = {"id_real": jnp.array(2.0), "distill": jnp.array(50.0)}
        >>> float(total_loss(terms, {"id_real": 0.5, "distill": 0.02}))
        2.0
    """
    return sum((weights[name] * value for name, value in terms.items()), start=jnp.zeros(()))
