"""Error rates of pairs and of strangers at thresholds, which result.json holds beside the ranking."""

from typing import Any

import numpy as np

from ..data.protocol import Target
from .pairs import BINS, Crops, Histograms, blocks, edge

RATES = 1e-2, 1e-3, 1e-4
# If there are more pairs, only every second query is measured, or every third, …
MOST_PAIRS = 2**26


def pair_table(query: np.ndarray, gallery: np.ndarray, target: Target) -> dict[str, Any]:
    """Measure the error rates of a test's pairs, and of searches for people who are not in its gallery.

    Args:
        query: features [Q, D] as embedded, of any length.
        gallery: features [G, D].
        target: their identities and views; pairs of one identity and view are left out, as in the ranking.

    Returns:
        "pairs": for each of RATES with enough people (rule of three: 3/rate pairs of people) the threshold of cosine
        similarity and both rates. "open_set": how many queries show people who are not in the gallery. If there are
        any, it has for each threshold the share of them that report anybody (FPIR), and the share of the queries with a
        match that do not report a match first (FNIR). "pair_queries": how many queries were measured. In a large test
        these are a sample of the queries of people in the gallery, and a sample of the other queries.

    Raises:
        ValueError: a feature is not finite.

    Example:
        >>> import numpy as np
        >>> from nrsrd_jax.data.datasets import Split
        >>> from nrsrd_jax.data.protocol import Target
        >>> from nrsrd_jax.retrieval.pair_table import pair_table
        >>> features = np.eye(32)[:30]
        >>> people, cameras = np.arange(30), np.zeros(30, int)
        >>> queries, gallery = Split((), people, cameras), Split((), people, cameras + 1)
        >>> found = pair_table(features, features, Target(queries, gallery, queries.cameras, gallery.cameras))
        >>> [(row["fmr"], row["fnmr"]) for row in found["pairs"]], found["open_set"]
        ([(0.0, 0.0)], {'queries': 0})
    """
    unknown = ~np.isin(target.query.pids, target.gallery.pids)
    # A sample of all queries together could leave out the few of people who are not in the gallery.
    chosen = np.concatenate([_sample(np.flatnonzero(group), len(gallery)) for group in (unknown, ~unknown)])
    _, people = np.unique(np.concatenate([target.query.pids, target.gallery.pids]), return_inverse=True)
    queries = Crops.of(query[chosen], people[chosen], target.query_views[chosen])
    others = Crops.of(gallery, people[len(query) :], target.gallery_views)
    histograms = Histograms()
    genuine, stranger = np.full(len(queries), -np.inf), np.full(len(queries), -np.inf)
    for block in blocks(queries, others):
        histograms.add(block)
        genuine[block.rows] = block.similarity.max(1, where=block.genuine, initial=-np.inf)
        # What remains are strangers, so the maximum is the similarity of the nearest one.
        block.similarity[block.genuine | block.left_out] = -np.inf
        stranger[block.rows] = block.similarity.max(1)
    pairs = _people_pairs(np.unique(queries.people), np.unique(others.people))
    levels = [histograms.threshold(rate) for rate in RATES if pairs * rate >= 3 and histograms.genuine.any()]
    fmr, fnmr = histograms.rates()
    # BINS stands for no threshold: too many strangers have a similarity of 1.
    rows = [{"threshold": edge(k), "fmr": float(fmr[k]), "fnmr": float(fnmr[k])} for k in levels if k < BINS]
    open_set: dict[str, Any] = {"queries": int(unknown.sum())}
    unknown, mated = unknown[chosen], genuine > -np.inf
    if unknown.any():
        open_set |= {"gallery_people": len(np.unique(others.people)), "top": 1}
        open_set["searches"] = [
            {
                "threshold": row["threshold"],
                "fpir": float((stranger[unknown] >= row["threshold"]).mean()),
                "fnir": float(((genuine < row["threshold"]) | (genuine < stranger))[mated].mean()),
            }
            for row in rows
        ]
    return {"pairs": rows, "pair_queries": len(queries), "open_set": open_set}


def _sample(queries: np.ndarray, gallery: int) -> np.ndarray:
    """Return every n-th query, so that the queries have at most MOST_PAIRS pairs with a gallery of that size."""
    return queries[:: max(1, -(-len(queries) * gallery // MOST_PAIRS))]


def _people_pairs(query: np.ndarray, gallery: np.ndarray) -> int:
    """Return how many pairs of two people have one person among the queries and the other in the gallery."""
    both = len(np.intersect1d(query, gallery))
    # A pair of two people who are on both sides occurs twice in the product.
    return len(query) * len(gallery) - both - both * (both - 1) // 2
