"""Measure the time and memory of computing metrics from features, with and without re-ranking.

  python benchmarks/evaluation.py                     Night600's size: 2,180 queries, 14,351 gallery images
  python benchmarks/evaluation.py --size msmt17       11,659 queries, 82,161 gallery images; without the numpy forms

This package is compared with straightforward numpy: metrics by all distances, argsort and a loop over queries;
re-ranking image by image, with N×N distances and float16 weights. Each form runs in a process of its own, and its line
has the peak memory of that process. The features are random, around a centre per identity.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from nrsrd_jax.command import Parser, one_line

# Queries, gallery images, identities and cameras of each size.
SIZES = {"small": (218, 1435, 30, 8), "night600": (2180, 14351, 300, 8), "msmt17": (11659, 82161, 3060, 15)}
# Width of a feature, standard deviation of the identities' centres (the noise has 1).
WIDTH, SPREAD = 768, 0.25
K1, K2, LAMBDA = 20, 6, 0.3


def make_data(size: str) -> tuple[np.ndarray, ...]:
    """Return features, identities and cameras, each first of the queries and then of the gallery."""
    queries, gallery, identities, cameras = SIZES[size]
    rng = np.random.default_rng(0)
    centres = SPREAD * rng.standard_normal((identities, WIDTH), np.float32)
    ids = [rng.integers(identities, size=count) for count in (queries, gallery)]
    features = [centres[i] + rng.standard_normal((len(i), WIDTH), np.float32) for i in ids]
    return *features, *ids, *(rng.integers(cameras, size=len(i)) for i in ids)


def normalised(features: np.ndarray) -> np.ndarray:
    """Scale features [N, D] to length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def numpy_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return all squared distances [M, N] of features [M, D] and [N, D]."""
    return np.square(left).sum(1)[:, None] + np.square(right).sum(1)[None] - 2 * left @ right.T


def numpy_ranks(distances: np.ndarray, query_ids, gallery_ids, query_cameras, gallery_cameras) -> tuple[float, float]:
    """Return mAP and mINP of distances [Q, G]."""
    order = np.argsort(distances, axis=1)
    matches = gallery_ids[order] == query_ids[:, None]
    precisions, penalties = [], []
    for query, row in enumerate(order):
        # Images of the query's identity from its own camera do not count.
        kept = ~(matches[query] & (gallery_cameras[row] == query_cameras[query]))
        match = matches[query][kept]
        if match.any():
            ranks = np.flatnonzero(match) + 1
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
            penalties.append(len(ranks) / ranks[-1])
    return float(np.mean(precisions)), float(np.mean(penalties))


def numpy_jaccard(features: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Jaccard distances [rows, N] of the first rows to all, and their normalised distances [rows, N]."""
    count, half = len(features), round(K1 / 2)
    distances = numpy_distances(features, features)
    distances = np.transpose(distances / distances.max(axis=0))
    order = np.argsort(distances).astype(np.int32)

    def mutual(i: int, k: int) -> np.ndarray:
        forward = order[i, : k + 1]
        return forward[(order[forward, : k + 1] == i).any(1)]

    weights = np.zeros((count, count), np.float16)
    for i in range(count):
        own = mutual(i, K1)
        members = [own]
        for j in own:
            other = mutual(j, half)
            # Add the mutual neighbours of a neighbour if two thirds of them are also neighbours of the image.
            if len(np.intersect1d(other, own)) > 2 / 3 * len(other):
                members.append(other)
        chosen = np.unique(np.concatenate(members))
        weight = np.exp(-distances[i, chosen])
        weights[i, chosen] = weight / weight.sum()
    distances = distances[:rows]
    expanded = np.zeros_like(weights)
    for i in range(count):
        # Local query expansion: average the weights of the nearest images.
        expanded[i] = weights[order[i, :K2]].mean(0)
    weights = expanded
    # Only images that share a neighbour have a Jaccard distance below 1, so the others are skipped.
    inverse = [np.flatnonzero(weights[:, i]) for i in range(count)]
    jaccard = np.zeros_like(distances, dtype=np.float16)
    for i in range(rows):
        common = np.zeros(count, np.float16)
        for j in np.flatnonzero(weights[i]):
            common[inverse[j]] += np.minimum(weights[i, j], weights[inverse[j], j])
        jaccard[i] = 1 - common / (2 - common)
    return jaccard, distances


def numpy_rerank(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    jaccard, distances = numpy_jaccard(np.concatenate([query, gallery]), len(query))
    return ((1 - LAMBDA) * jaccard + LAMBDA * distances)[:, len(query) :]


def numpy_metrics(query, gallery, *labels) -> tuple[float, float]:
    return numpy_ranks(numpy_distances(normalised(query), normalised(gallery)), *labels)


def numpy_reranked(query, gallery, *labels) -> tuple[float, float]:
    return numpy_ranks(numpy_rerank(normalised(query), normalised(gallery)), *labels)


def our_metrics(query, gallery, *labels) -> tuple[float, float]:
    from nrsrd_jax.retrieval.ranking import rank_features

    m = rank_features(query, gallery, *labels)
    return m.mAP, m.mINP


def our_reranked(query, gallery, *labels) -> tuple[float, float]:
    from nrsrd_jax.retrieval.ranking import rank_by
    from nrsrd_jax.retrieval.rerank import reranked_distances

    m = rank_by(reranked_distances(query, gallery, K1, K2, LAMBDA), *labels)
    return m.mAP, m.mINP


def our_matrix(query, gallery, *labels) -> tuple[float, float]:
    """Return mAP and mINP of the whole matrix Q×G that `k_reciprocal` returns."""
    from nrsrd_jax.retrieval.ranking import rank_metrics
    from nrsrd_jax.retrieval.rerank import k_reciprocal

    m = rank_metrics(k_reciprocal(query, gallery, K1, K2, LAMBDA), *labels)
    return m.mAP, m.mINP


PARTS = {f.__name__: f for f in (numpy_metrics, our_metrics, numpy_reranked, our_reranked, our_matrix)}


def measure(part: str, size: str) -> None:
    """Run a part and print its seconds, compile time, memory and scores as JSON."""
    data = make_data(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # A first call takes the imports and the compilation. Programs depend on the sizes, so it has the same data.
    if part.startswith("our"):
        import jax

        device = str(jax.devices()[0].device_kind)
        begin = time.perf_counter()
        PARTS[part](*data)
        first = time.perf_counter() - begin
    else:
        device, first = "numpy", None
    begin = time.perf_counter()
    scores = PARTS[part](*data)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, first, before / 2**20, peak / 2**20, *scores, device]))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="night600", help="size of the data set; default: night600")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure only this part; may be repeated")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.size)
        return
    parts = options.part or [
        part for part in PARTS if options.size != "msmt17" or part in ("our_metrics", "our_reranked")
    ]
    queries, gallery, identities, cameras = SIZES[options.size]
    print(f"{queries} × {gallery} × {WIDTH}, {identities} identities, {cameras} cameras")
    print(f"{'':16}{'s':>9}{'first s':>9}{'data GiB':>10}{'peak GiB':>10}{'mAP %':>8}{'mINP %':>8}")
    seconds = {}
    for part in parts:
        # A process of its own for each part makes the peak memory that of the part.
        command = [sys.executable, __file__, "--measure", part, "--size", options.size]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        took, first, before, peak, mean_precision, mean_penalty, device = json.loads(done.stdout)
        seconds[part] = took
        compiling = f"{first:>9.2f}" if first else " " * 9
        scores = f"{100 * mean_precision:>8.2f}{100 * mean_penalty:>8.2f}"
        print(f"{part:16}{took:>9.2f}{compiling}{before:>10.2f}{peak:>10.2f}{scores}  {device}", flush=True)
    for ours, theirs in (("our_metrics", "numpy_metrics"), ("our_reranked", "numpy_reranked")):
        if {ours, theirs} <= seconds.keys():
            print(f"{ours} is {seconds[theirs] / seconds[ours]:.1f} times as fast as {theirs}")


if __name__ == "__main__":
    one_line(main)
