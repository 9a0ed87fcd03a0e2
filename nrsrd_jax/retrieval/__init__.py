"""From images to a ranked gallery: features, their normalisation, ranking metrics, re-ranking."""

from .embedding import Embedder
from .ranking import RankMetrics, rank_features, rank_metrics
from .rerank import k_reciprocal
from .standardize import standardize_groups

__all__ = ["Embedder", "RankMetrics", "k_reciprocal", "rank_features", "rank_metrics", "standardize_groups"]
