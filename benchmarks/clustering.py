"""Measure the time and memory of grouping crops.

  python benchmarks/clustering.py                            100,000 crops, and 10,000 also in the plain N×N form

The plain form is written in numpy: all distances, argsort, Jaccard distances crop by crop in an N×N float16 matrix, and
scikit-learn's DBSCAN on this matrix. Each line is measured in a process of its own, and has the peak memory of that
process. The features are random, around a centre per person.
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

# Width of a feature, standard deviation of the people's centres (the noise has 1), mean number of crops per person.
WIDTH, SPREAD, CROPS = 384, 0.7, 20
EPS, MIN_SIZE = 0.5, 2


def make_data(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random features [N, D] and their people [N]."""
    rng = np.random.default_rng(0)
    people = rng.integers(max(1, count // CROPS), size=count)
    features = rng.standard_normal((count, WIDTH), np.float32)
    centres = SPREAD * rng.standard_normal((people.max() + 1, WIDTH), np.float32)
    # All centres at once would double the memory.
    for start in range(0, count, 1000):
        features[start : start + 1000] += centres[people[start : start + 1000]]
    return features, people


def plain(features: np.ndarray) -> np.ndarray:
    """Return the groups [N] of the plain form."""
    from sklearn.cluster import DBSCAN

    jaccard, _ = numpy_jaccard(normalised(features), len(features))
    # In float16 a distance may be rounded to below 0, which scikit-learn refuses.
    jaccard = np.maximum(jaccard.astype(np.float32), 0)
    return DBSCAN(eps=EPS, min_samples=MIN_SIZE, metric="precomputed").fit(jaccard).labels_


def ours(features: np.ndarray, method: str = "dbscan") -> np.ndarray:
    """Return the groups [N] of this package."""
    from nrsrd_jax.retrieval.clustering import cluster

    return cluster(features, eps=EPS, min_size=MIN_SIZE, method=method, k1=K1, k2=K2).labels


def ours_hdbscan(features: np.ndarray) -> np.ndarray:
    return ours(features, "hdbscan")


PARTS = {f.__name__: f for f in (plain, ours, ours_hdbscan)}


def peak() -> float:
    """Return the peak memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(part: str, count: int) -> None:
    """Run a part and print its time, memory and scores as JSON."""
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
    parser.add_argument("--crops", type=positive, default=100_000, help="number of crops; default: 100,000")
    parser.add_argument("--plain", type=positive, default=10_000, help="crops in the plain form; default: 10,000")
    parser.add_argument("--hdbscan", action="store_true", help="also measure HDBSCAN")
    parser.add_argument("--measure", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.crops)
        return
    print(f"{WIDTH} numbers per crop, {CROPS} crops per person, eps {EPS}, at least {MIN_SIZE} crops per group")
    titles = ("crops", "s", "CPU s", "data GiB", "peak GiB", "announced", "groups", "alone", "F %", "AMI %")
    print(f"{'':14}" + "".join(f"{title:>10}" for title in titles))
    lines = [("plain", options.plain), ("ours", options.plain), ("ours", options.crops)]
    lines += [("ours_hdbscan", options.crops)] * options.hdbscan
    for part, count in lines:
        # A process of its own for each part makes the peak memory that of the part.
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
