"""How fast and in how much memory crops become groups.

  python benchmarks/clustering.py                            100,000 crops; 10,000 also by the plain N×N form

The plain form is numpy's: all distances, argsort, Jaccard distances as a matrix of N×N float16, crop by crop, and
scikit-learn's DBSCAN on this matrix. Each line is a process of its own, whose peak memory is told; features are random
around a centre per person.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
from evaluation import K1, K2, normalised, numpy_jaccard

from nrsrd_jax.command import Parser, one_line, positive

WIDTH, SPREAD, CROPS = 384, 0.7, 20  # of features; of the centres, where noise has 1; crops of a person on average
EPS, MIN_SIZE = 0.5, 2


def make_data(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and people."""
    rng = np.random.default_rng(0)
    people = rng.integers(max(1, count // CROPS), size=count)
    features = rng.standard_normal((count, WIDTH), np.float32)
    centres = SPREAD * rng.standard_normal((people.max() + 1, WIDTH), np.float32)
    for start in range(0, count, 1000):
        features[start : start + 1000] += centres[people[start : start + 1000]]
    return features, people


def plain(features: np.ndarray) -> np.ndarray:
    from sklearn.cluster import DBSCAN

    jaccard, _ = numpy_jaccard(normalised(features), len(features))
    jaccard = np.maximum(jaccard.astype(np.float32), 0)
    return DBSCAN(eps=EPS, min_samples=MIN_SIZE, metric="precomputed").fit(jaccard).labels_


def ours(features: np.ndarray, method: str = "dbscan") -> np.ndarray:
    from nrsrd_jax.retrieval.clustering import cluster

    return cluster(features, eps=EPS, min_size=MIN_SIZE, method=method, k1=K1, k2=K2).labels


def ours_hdbscan(features: np.ndarray) -> np.ndarray:
    return ours(features, "hdbscan")


PARTS = {f.__name__: f for f in (plain, ours, ours_hdbscan)}


def peak() -> float:
    """The most memory that this process has held, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(part: str, count: int) -> None:
    """Runs a part and prints what it took, as JSON."""
    from nrsrd_jax.retrieval.clustering import memory_bound, scores

    features, people = make_data(count)
    before, begin, busy = peak(), time.perf_counter(), time.process_time()
    labels = PARTS[part](features)
    seconds, busy, most = time.perf_counter() - begin, time.process_time() - busy, peak()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "busy": busy,
                "before": before,
                "peak": most,
                "announced": memory_bound(count, WIDTH, K1, K2) / 2**30 if part != "plain" else None,
                "groups": int(labels.max(initial=-1)) + 1,
                "alone": int((labels < 0).sum()),
                **scores(labels, people),
            }
        )
    )


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--crops", type=positive, default=100_000, help="default: 100,000")
    parser.add_argument("--plain", type=positive, default=10_000, help="crops of the plain form; default: 10,000")
    parser.add_argument("--hdbscan", action="store_true", help="HDBSCAN too")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.crops)
        return
    print(f"{WIDTH} numbers a crop, {CROPS} crops a person, eps {EPS}, at least {MIN_SIZE} crops a group")
    titles = ("crops", "s", "CPU s", "data GiB", "peak GiB", "announced", "groups", "alone", "F %", "AMI %")
    print(f"{'':14}" + "".join(f"{title:>10}" for title in titles))
    lines = [("plain", options.plain), ("ours", options.plain), ("ours", options.crops)]
    lines += [("ours_hdbscan", options.crops)] * options.hdbscan
    for part, count in lines:
        command = [sys.executable, __file__, "--measure", part, "--crops", str(count)]
        m = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        announced = f"{m['announced']:>10.2f}" if m["announced"] else " " * 10
        print(
            f"{part:14}{count:>10,}{m['seconds']:>10.1f}{m['busy']:>10.1f}{m['before']:>10.2f}{m['peak']:>10.2f}{announced}"
            f"{m['groups']:>10,}{m['alone']:>10,}{100 * m['f']:>10.2f}{100 * m['ami']:>10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    one_line(main)
