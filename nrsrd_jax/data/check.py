"""Looks at every image of a data set before training does: `python -m nrsrd_jax.data.check NAME ROOT`.

  python -m nrsrd_jax.data.check night600 data/Night600
  python -m nrsrd_jax.data.check folders DIR --fix-list bad.txt     then train with --config.data.exclude=bad.txt

A fault would stop training; a warning is worth a look. Exit status 1 if there are faults, 2 if the data set cannot be
read at all, else 0.
"""

import collections
import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ..command import Parser, one_line
from ..errors import InputError, printable
from ..files import written_whole
from . import datasets
from .datasets import Dataset, Split
from .images import FORMATS, in_parallel, moments, read_rgb
from .protocol import NO_CAMERAS, make_target
from .readers import SOURCES, SPLITS, Source
from .sampling import BatchPlan

DEFAULT_BATCH = 64, 4  # images, of each identity: train.batch_size and train.instances
SMALLEST_SIDE = 8  # pixels; less shows nobody
SHOWN = 5  # examples in a line
LISTED = 20  # queries without a match that get a line each


@dataclasses.dataclass
class Pixels:
    """What the images look like: those of training as data.mean and data.std take them, all by brightness."""

    levels: list[np.ndarray] = dataclasses.field(default_factory=list)  # of a training image [3, 256], in shares
    brightness: list[float] = dataclasses.field(default_factory=list)  # mean of each image, 0..255

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation per channel of pixels in 0..1, every training image counting alike."""
        return moments(np.mean(self.levels, axis=0) if self.levels else np.zeros((3, 256)))


@dataclasses.dataclass
class Findings:
    """Lines to print: faults stop training, warnings do not; `offending` are the files to leave out."""

    faults: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    offending: list[Path] = dataclasses.field(default_factory=list)


def check(name: str, data: Dataset, protocol: str = "") -> tuple[Findings, Pixels]:
    """Everything that can be found wrong or odd with a data set, and what its pixels are like."""
    findings = Findings()
    for path in data.unnamed:
        findings.faults.append(f"{shown(path)}: no identity and camera in its name")
        findings.offending.append(path)
    pixels = _check_images(data, findings)
    splits = {split: getattr(data, split) for split in SPLITS}
    _check_published(SOURCES[name], protocol, splits, findings)
    _check_identities(name, data, findings)
    if data.ignored:
        names = ", ".join(sorted({shown(path.name) for path in data.ignored})[:SHOWN])
        findings.warnings.append(f"{len(data.ignored)} files that are no images ({names})")
    return findings, pixels


def _check_published(source: Source, protocol: str, splits: dict[str, Split], findings: Findings) -> None:
    cameras = np.unique(np.concatenate([split.cameras for split in splits.values()]))
    counts = {(f"{name} images", len(splits[name])): n for name, n in source.images(protocol).items()}
    counts |= {(f"{name} identities", len(splits[name].identities)): n for name, n in source.identities.items()}
    counts |= {("cameras", len(cameras)): source.cameras} if source.cameras else {}
    others = [f"{what} {found} ({published})" for (what, found), published in counts.items() if found != published]
    if others:
        findings.warnings.append(f"counts are not the published ones, which stand behind: {', '.join(others)}")


def _check_images(data: Dataset, findings: Findings) -> Pixels:
    paths = list(dict.fromkeys(path for split in SPLITS for path in getattr(data, split).paths))
    training = set(data.train.paths)
    pixels, modes = Pixels(), collections.defaultdict(list)

    def look(path: Path) -> tuple[tuple[int, int], str, np.ndarray]:
        image = read_rgb(path)
        with Image.open(path, formats=FORMATS) as header:
            mode = header.mode
        return image.size, mode, np.array(image.histogram(), float).reshape(3, 256) / (image.width * image.height)

    for index, result in in_parallel(look, paths, "reading"):
        path = paths[index]
        if isinstance(result, InputError):
            findings.faults.append(f"{shown(path)}: {shown(result.__cause__ or result)}")
            findings.offending.append(path)
            continue
        (width, height), mode, levels = result
        modes[mode].append(path)
        if path in training:
            pixels.levels.append(levels)
        pixels.brightness.append(float(levels.mean(0) @ np.arange(256)))
        if min(width, height) < SMALLEST_SIDE:
            findings.warnings.append(f"{shown(path)}: {width}×{height} pixels show nobody")
            findings.offending.append(path)
        elif (levels == 1).any(axis=1).all():
            findings.warnings.append(f"{shown(path)}: a single colour throughout")
            findings.offending.append(path)
    for mode, found in modes.items():
        if mode not in ("RGB", "L"):
            findings.warnings.append(f"{len(found)} images of mode {mode}, read as RGB ({shown(found[0].name)}, …)")
    return pixels


def _check_identities(name: str, data: Dataset, findings: Findings) -> None:
    train, query, gallery = splits = data.train, data.query, data.gallery
    if len(train.identities) < 2 and (len(train) or not len(query)):
        findings.faults.append(f"train: {len(train.identities)} identities; to tell people apart takes at least 2")
    elif len(train):
        try:
            BatchPlan(train.labels, *DEFAULT_BATCH, seed=0)
        except InputError as error:
            findings.warnings.append(f"train: {error}")
    twice = [path for split in splits for path, n in collections.Counter(split.paths).items() if n > 1]
    if twice:
        findings.warnings.append(f"{len(twice)} images stand twice in a split ({shown(twice[0])})")
    single = [pid for pid, count in collections.Counter(train.pids.tolist()).items() if count == 1]
    if single:
        findings.warnings.append(f"train: {len(single)} identities with a single image ({examples(single)})")
    if SOURCES[name].same_numbers:
        both = set(train.pids.tolist()) & {*query.pids.tolist(), *gallery.pids.tolist()} - {SOURCES[name].distractor}
        if both:
            findings.warnings.append(f"{len(both)} identities are in training and in test ({examples(sorted(both))})")
    if len(query):
        match = make_target(data, "cross-camera").matched
        if not match.any():
            text = "query: none has a gallery image of its identity from another camera"
            without_cameras = len(np.unique(np.concatenate([train.cameras, query.cameras, gallery.cameras]))) == 1
            (findings.warnings if without_cameras else findings.faults).append(f"{text}; {NO_CAMERAS}")
        lost = np.flatnonzero(~match) if match.any() else ()
        for index in lost[:LISTED]:
            findings.warnings.append(f"{shown(query.paths[index])}: a query without a match from another camera")
        if len(lost) > LISTED:
            findings.warnings.append(f"and {len(lost) - LISTED} more queries without a match")


def examples(values: list[int]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")


def shown(text: object) -> str:
    """Text from file names, on one line and safe to print."""
    return printable(text).replace("\n", "\\n")


def report(data: Dataset, findings: Findings, pixels: Pixels) -> str:
    """The table, the findings and the pixels, as text."""
    lines = [f"{'':8}{'images':>9}{'identities':>12}{'cameras':>9}"]
    for split in SPLITS:
        part: Split = getattr(data, split)
        lines.append(f"{split:8}{len(part):>9}{len(part.identities):>12}{len(np.unique(part.cameras)):>9}")
    lines += [f"fault: {text}" for text in findings.faults] + [f"warning: {text}" for text in findings.warnings]
    mean, std = pixels.statistics()
    for label, values in (("mean", mean), ("std", std)):
        lines.append(f"training pixels' {label} (0..1) " + ",".join(f"{value:.4f}" for value in values))
    counts, _ = np.histogram(pixels.brightness, np.linspace(0, 256, 17))
    lines.append("brightness of the images (0..255)")
    filled = np.flatnonzero(counts)
    for index in range(filled.min(initial=16), filled.max(initial=-1) + 1):
        count = counts[index]
        bar = "█" * round(40 * count / max(counts.max(), 1))
        lines.append(f"{16 * index:>4}–{16 * index + 15:<4}{count:>7} {bar}")
    lines += [
        f"SHA-256 of the {split} list {getattr(data, split).hash()}" for split in SPLITS if len(getattr(data, split))
    ]
    return "\n".join([*lines, f"{len(findings.faults)} faults, {len(findings.warnings)} warnings"])


def main() -> None:
    parser = Parser(__doc__, "python -m nrsrd_jax.data.check")
    parser.add_argument("name", choices=SOURCES, metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("root", metavar="ROOT", help="its folder; of a manifest the CSV file")
    parser.add_argument("--protocol", default="", help="of nightreid and knight")
    parser.add_argument("--exclude", default="", help="a file of paths to leave out, as --fix-list writes it")
    parser.add_argument("--fix-list", type=Path, help="write the paths of faulty and suspicious files there")
    options = parser.parse_args()
    left_out = datasets.read_exclude(options.exclude)
    data = datasets.survey(options.name, options.root, protocol=options.protocol, exclude=left_out)
    findings, pixels = check(options.name, data, options.protocol)
    print(report(data, findings, pixels))
    if options.fix_list:
        listed = {os.path.abspath(path) for path in (*left_out, *findings.offending)}
        lines = [os.fsencode(path) for path in sorted(listed) if not {"\n", "\r"} & set(path)]
        with written_whole(options.fix_list) as partial:
            partial.write_bytes(b"".join(line + b"\n" for line in lines))
        hint = f"; leave them out with --config.data.exclude={options.fix_list}" if lines else ""
        print(f"{len(lines)} paths written to {options.fix_list}{hint}")
        if len(lines) < len(listed):
            print(f"{len(listed) - len(lines)} have a line break in their names: rename those")
    sys.exit(1 if findings.faults else 0)


if __name__ == "__main__":
    one_line(main)
