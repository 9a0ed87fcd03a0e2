"""Measure the memory in which `nrsrd embed` keeps what it knows about crops, which grows with their number.

  python benchmarks/known.py [--crops 1000000]

The gallery has features of 4 numbers, and a camera, a person, a time and another column for each crop. The files of the
crops do not exist; their names are generated as if a folder were read. The script prints the growth of the process's
resident memory, once if the gallery has all crops and once if all of them are new, each in a process of its own.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from nrsrd_jax.command import Parser, one_line, positive
from nrsrd_jax.data.crops import Crop, Source, make_source

# Crops that are added to the gallery at once.
AT_ONCE = 50_000
START = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)
PATTERN = r"(?P<camera>c\d+)_(?P<time>\d{14})_(?P<person>p\d+)"


def name(i: int) -> str:
    """Return the name of crop `i`, which PATTERN matches."""
    time = START + datetime.timedelta(seconds=i)
    return f"{i // 1000:04d}/c{i % 8}_{time:%Y%m%d%H%M%S}_p{i // 20:06d}_{i:07d}.jpg"


class Named(Source):
    """A folder whose files do not exist."""

    count = 0

    def _files(self) -> Iterator[Crop]:
        for i in range(self.count):
            yield Crop(f"{self.path}/{name(i)}", self._named(name(i)))


def stat(path: str | Path, real=os.stat, **options: bool) -> SimpleNamespace | os.stat_result:
    """Return the size and time that the gallery has for a crop, in place of os.stat."""
    # Crops have their paths as text; any other file that is looked at exists.
    if isinstance(path, Path):
        return real(path, **options)
    # The number of the crop is the last field of its name.
    i = int(path[-11:-4])
    return SimpleNamespace(st_size=4000 + i % 999, st_mtime_ns=i)


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def measure(what: str, folder: str, count: int) -> None:
    """Plan an embedding of all crops, as if the gallery knew all of them or none, and print the memory of the plan."""
    from nrsrd_jax.gallery.embed import make_plan
    from nrsrd_jax.gallery.store import Gallery

    gallery = Gallery.open(folder)
    before, begin = resident(), time.process_time()
    known = gallery.known() if what == "known" else {}
    # Planning looks at the size and time of every file, but these files do not exist.
    with mock.patch("os.stat", stat):
        plan = make_plan([named(folder, count)], known)
    taken, seconds = resident() - before, time.process_time() - begin
    counts = f"{plan.unchanged:,} unchanged, {len(plan.embed):,} to embed"
    print(f"all crops {what}: {counts}; {taken:.0f} MiB beside {before:.0f} MiB before, {seconds:.0f} CPU s")


def named(folder: str, count: int) -> Named:
    """Return the folder as a source of `count` crops."""
    source = make_source(Path(folder), PATTERN, "")
    Named.count = count
    return Named(source.path, source.pattern)


def main() -> None:
    parser = Parser(__doc__, "python benchmarks/known.py")
    parser.add_argument("--crops", type=positive, default=1_000_000, help="number of crops; default: 1,000,000")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, folder = options.measure
        measure(what, folder, options.crops)
        return
    from nrsrd_jax.gallery.store import About, Gallery

    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.create(folder, About("", {}, 4, "random", ""))
        features = np.ones((AT_ONCE, 4), np.float32)
        rows = []
        for i, crop in enumerate(named(folder, options.crops).crops()):
            rows.append({"path": crop.path, **crop.values, "floor": str(i % 3), "size": 4000 + i % 999, "modified": i})
            if len(rows) == AT_ONCE or i == options.crops - 1:
                gallery.add(rows, features[: len(rows)])
                rows = []
        # A process of its own for each: memory that one has freed would hide what the other takes.
        for what in ("known", "new"):
            command = [sys.executable, __file__, "--crops", str(options.crops), "--measure", what, folder]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    one_line(main)
