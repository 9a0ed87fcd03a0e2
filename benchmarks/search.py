"""Measure the time and memory of searching a gallery, and of brute force in numpy and in FAISS.

  python benchmarks/search.py [--crops 100000] [--queries 50]

The features are random, of 384 numbers. Each way runs in a process of its own, and its line has the peak memory of that
process. FAISS is compared if it is installed (pip install faiss-cpu). The last column is the share of numpy's top 10
that a way found.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nrsrd_jax.command import Parser, one_line, positive

WIDTH, TOP = 384, 10
WAYS = ("gallery", "gallery, where camera", "gallery, all queries at once", "index", "numpy", "faiss")


def make_features(crops: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of crops in groups of ten, and of queries near some of the crops."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((crops // 10 + 1, WIDTH), np.float32)
    features = np.repeat(centres, 10, 0)[:crops] + rng.standard_normal((crops, WIDTH), np.float32)
    chosen = rng.choice(crops, queries, replace=False)
    return features, features[chosen] + rng.standard_normal((queries, WIDTH), np.float32)


def make_gallery(folder: str, features: np.ndarray):
    """Return a gallery of the features, from four cameras."""
    from nrsrd_jax.gallery.store import About, Gallery

    gallery = Gallery.create(folder, About("", {}, WIDTH, "random", ""))
    for start in range(0, len(features), 8192):
        part = features[start : start + 8192]
        gallery.add([{"path": f"/{start + i:07d}.jpg", "camera": f"c{i % 4}"} for i in range(len(part))], part)
    # Each call above writes files of its own, and `nrsrd embed` also joins them at its end.
    gallery.compact()
    return gallery


def measure(way: str, folder: str, crops: int, count: int) -> dict:
    """Return {"times": seconds of each query, "found": its crops, "peak": the process's peak memory in GiB}."""
    features, query = make_features(crops, count)
    if way.startswith(("gallery", "index")):
        del features
        from nrsrd_jax.gallery import matching
        from nrsrd_jax.gallery.store import Gallery

        gallery = Gallery.open(folder)
        limits = {"top": TOP, "where": "camera = 'c1'" if "where" in way else "", "other_cameras": False}
        search = matching.search_approximately if way == "index" else matching.search

        def find(block: np.ndarray) -> list[list[int]]:
            queries = matching.Queries([str(i) for i in range(len(block))], block, [None] * len(block), block[:, 0])
            found = search(gallery, queries, **limits)
            names = gallery.rows(sorted({int(row) for each in found for row in each.rows}), ["path"])
            return [[int(names[int(row)]["path"][1:8]) for row in each.rows] for each in found]
    elif way == "numpy":
        features /= np.linalg.norm(features, axis=1, keepdims=True)

        def find(block: np.ndarray) -> list[list[int]]:
            similarity = block @ features.T
            best = np.argpartition(-similarity, TOP, axis=1)[:, :TOP]
            order = np.argsort(-np.take_along_axis(similarity, best, 1), axis=1)
            return np.take_along_axis(best, order, 1).tolist()
    else:
        import faiss  # pyright: ignore[reportMissingImports]

        index = faiss.IndexFlatIP(WIDTH)
        index.add(features / np.linalg.norm(features, axis=1, keepdims=True))  # pyright: ignore[reportCallIssue]
        del features

        def find(block: np.ndarray) -> list[list[int]]:
            return index.search(block, TOP)[1].tolist()  # pyright: ignore[reportCallIssue]

    size = count if "at once" in way else 1
    # Reset the peak of the resident memory, which otherwise would be that of generating the features.
    Path("/proc/self/clear_refs").write_text("5")
    # The first search reads files and compiles, so it is not timed.
    find(query[:size])
    times, found = [], []
    for start in range(0, count, size):
        begin = time.perf_counter()
        found += find(query[start : start + size])
        times += [(time.perf_counter() - begin) / size] * size
    # ru_maxrss would include the memory of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    return {"times": times, "found": found, "peak": peak}


def main() -> None:
    parser = Parser(__doc__, "python benchmarks/search.py")
    parser.add_argument("--crops", type=positive, default=100_000, help="number of crops; default: 100,000")
    parser.add_argument("--queries", type=positive, default=50, help="number of queries; default: 50")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, folder = options.measure
        print(json.dumps(measure(way, folder, options.crops, options.queries)))
        return
    with tempfile.TemporaryDirectory() as folder:
        features, _ = make_features(options.crops, options.queries)
        begin = time.perf_counter()
        gallery = make_gallery(folder, features)
        print(f"{options.crops:,} crops of {WIDTH} numbers added in {time.perf_counter() - begin:.1f} s")
        begin = time.perf_counter()
        from nrsrd_jax.gallery.matching import make_index

        make_index(gallery)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"index made in {time.perf_counter() - begin:.1f} s; the gallery has {size / 2**20:.0f} MiB")
        print("| way | p50 (ms) | p95 (ms) | peak memory (GiB) | of numpy's top 10 |\n|---|---|---|---|---|")
        # A process of its own for each way makes the peak memory that of the way.
        command = [sys.executable, __file__, "--crops", str(options.crops), "--queries", str(options.queries)]
        results = {}
        for way in WAYS:
            done = subprocess.run([*command, "--measure", way, folder], capture_output=True, text=True)
            if done.returncode:
                print(f"| {way} | failed: {done.stderr.strip().splitlines()[-1][:80]} | | | |")
                continue
            results[way] = json.loads(done.stdout.splitlines()[-1])
        for way, result in results.items():
            p50, p95 = np.percentile(result["times"], [50, 95]) * 1000
            pairs = zip(result["found"], results["numpy"]["found"], strict=True)
            shared = "" if "where" in way else f"{np.mean([len({*a} & {*b}) / TOP for a, b in pairs]):.1%}"
            print(f"| {way} | {p50:.1f} | {p95:.1f} | {result['peak']:.2f} | {shared} |")


if __name__ == "__main__":
    one_line(main)
