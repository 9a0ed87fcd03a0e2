"""The losses, as pure functions of arrays, and the terms of the objective that they make up."""

from .features import (
    center_loss,
    consistency_loss,
    pairwise_distances,
    relation_loss,
    spread_loss,
    triplet_loss,
    weighted_triplet_loss,
)
from .logits import agreement_loss, dkd_loss, id_loss
from .terms import DISTILLATION, TERMS, Part, Term, compute_terms, total_loss

__all__ = [
    "DISTILLATION",
    "TERMS",
    "Part",
    "Term",
    "agreement_loss",
    "center_loss",
    "compute_terms",
    "consistency_loss",
    "dkd_loss",
    "id_loss",
    "pairwise_distances",
    "relation_loss",
    "spread_loss",
    "total_loss",
    "triplet_loss",
    "weighted_triplet_loss",
]
