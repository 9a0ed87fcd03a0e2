"""Re-ID ranking metrics by the Market-1501 protocol (Zheng et al. 2015).

Q queries, G gallery images. For each query the gallery images of the same identity and the same camera are left out.
"""

import dataclasses

import numpy as np

QUERY_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class RankMetrics:
    """Fractions in 0..1; means are over the queries that have a match.

    mAP; cmc [R], the share of queries whose first match ranks r+1 or better; mINP, the mean of matches / rank of the
    last match (Ye et al. 2021); average_precision [Q], NaN where there is no match; valid [Q], whether there is one.
    """

    mAP: float
    cmc: np.ndarray
    mINP: float
    average_precision: np.ndarray
    valid: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """The headline numbers, as result.json names them."""
        ranks = {f"rank{k}": float(self.cmc[min(k, len(self.cmc)) - 1]) for k in (1, 5, 10)}
        counts = {"queries": len(self.valid), "queries_without_match": int((~self.valid).sum())}
        return {"mAP": self.mAP, "mINP": self.mINP} | ranks | counts


def squared_distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances [Q, G] in float32 of rows scaled to length 1."""
    q, g = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (query, gallery))
    q, g = q.astype(np.float32), g.astype(np.float32)
    return np.square(q).sum(1)[:, None] + np.square(g).sum(1)[None, :] - 2 * (q @ g.T)


def rank_metrics(
    distances: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    max_rank: int = 50,
) -> RankMetrics:
    """CMC, mAP and mINP of a distance matrix [Q, G]; of equal distances the earlier gallery image comes first.

    ValueError if shapes disagree, a distance is NaN, or no query has a match. The CMC has min(max_rank, G) entries.
    """
    distances = np.asarray(distances)
    query_ids, gallery_ids, query_cameras, gallery_cameras = map(
        np.asarray, (query_ids, gallery_ids, query_cameras, gallery_cameras)
    )
    expected = (len(query_ids), len(gallery_ids))
    if distances.shape != expected or (len(query_cameras), len(gallery_cameras)) != expected:
        raise ValueError(f"distances are {distances.shape}, but there are {expected[0]} queries, {expected[1]} gallery")
    if np.isnan(distances).any():
        raise ValueError("a distance is NaN: the features behind it are not finite")
    valid = has_match(query_ids, gallery_ids, query_cameras, gallery_cameras)
    if not valid.any():
        raise ValueError("no query has a gallery image of its identity from another camera")

    max_rank = min(max_rank, len(gallery_ids))
    precision, penalty = np.full(len(query_ids), np.nan), np.full(len(query_ids), np.nan)
    hits = np.zeros(max_rank)
    for start in range(0, len(query_ids), QUERY_BLOCK):
        rows = slice(start, start + QUERY_BLOCK)
        order = np.argsort(distances[rows], axis=1, kind="stable")
        same = gallery_ids[order] == query_ids[rows, None]
        kept = ~(same & (gallery_cameras[order] == query_cameras[rows, None]))
        match = same & kept
        rank = np.cumsum(kept, axis=1)  # 1-based, among the kept
        found = np.cumsum(match, axis=1)
        total = found[:, -1]
        ok = valid[rows]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision[rows] = np.where(match, found / rank, 0).sum(1) / total
            penalty[rows] = total / np.where(match, rank, 0).max(1)
        first = np.where(match, rank, np.iinfo(np.int64).max).min(1)[ok]
        hits += (first[:, None] <= np.arange(1, max_rank + 1)).sum(0)
    return RankMetrics(
        float(precision[valid].mean()), hits / valid.sum(), float(penalty[valid].mean()), precision, valid
    )


def has_match(
    query_ids: np.ndarray, gallery_ids: np.ndarray, query_cameras: np.ndarray, gallery_cameras: np.ndarray
) -> np.ndarray:
    """Per query, whether the gallery holds its identity from another camera; bool [Q]."""
    seen: dict[int, set[int]] = {}
    for identity, camera in zip(gallery_ids.tolist(), gallery_cameras.tolist(), strict=True):
        seen.setdefault(identity, set()).add(camera)
    pairs = zip(query_ids.tolist(), query_cameras.tolist(), strict=True)
    return np.array([bool(seen.get(identity, set()) - {camera}) for identity, camera in pairs], bool)
