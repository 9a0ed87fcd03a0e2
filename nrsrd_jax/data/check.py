"""Validate a data set: `check` examines every image and label, `report` turns the findings into lines of text.

The commands `nrsrd check NAME ROOT` and `python -m nrsrd_jax.data.check NAME ROOT` run both.
"""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, counted
from .crops import CROPS
from .datasets import OF_JUNK, Dataset, Split
from .images import in_parallel, joint_digest, moments, read_picture
from .listing import ONE_CAMERA, OTHER_CAMERA, SPLITS
from .protocol import make_target
from .readers import LAYOUTS

# Daylight crops have a mean pixel, in 0..1, above this.
DARK = 0.25
# In an image with fewer pixels on one side, a person cannot be recognised.
SMALLEST_SIDE = 8
SHOWN = 5  # examples per line
# Few data sets have more cameras. With more, the numbers in the file names may not be those of cameras.
MANY = 50
# The data set itself gives these reasons not to read images, so there is nothing to warn of.
EXPECTED = OF_JUNK, OTHER_CAMERA, ONE_CAMERA
LISTED = 20  # queries without a match that get their own line


@dataclasses.dataclass
class Pixels:
    """Pixel statistics of a data set's images.

    Attributes:
        levels: the sum over the training images of the share of an image's pixels at each level, [3, 256]. It gives
            data.mean and data.std.
        training: the number of training images in this sum.
        brightness: the mean pixel of each image, 0..255.
        digests: {path: SHA-256 of the file} of each readable image.
    """

    levels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((3, 256)))
    training: int = 0
    brightness: list[float] = dataclasses.field(default_factory=list)
    digests: dict[Path, bytes] = dataclasses.field(default_factory=dict)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation per channel of pixels in 0..1; every training image has equal weight."""
        return moments(self.levels / max(self.training, 1))


@dataclasses.dataclass
class Findings:
    """Lines to print: faults, which stop training, and warnings, which do not; `offending` lists files to exclude."""

    faults: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    offending: list[Path] = dataclasses.field(default_factory=list)


def check(data: Dataset) -> tuple[Findings, Pixels]:
    """Examine every image and label of a data set.

    Args:
        data: the data set, as `survey` returns it.

    Returns:
        Every fault and warning, and the pixel statistics.
    """
    findings = Findings(warnings=list(data.notes))
    for path in data.unnamed:
        findings.faults.append(f"{path}: no identity and camera in its name")
        findings.offending.append(path)
    pixels = _check_images(data, findings)
    if data.source != CROPS:
        _check_published(data, findings)
        _check_identities(data, findings)
    findings.warnings += [line for reason, line in _skipped(data).items() if reason not in EXPECTED]
    return findings, pixels


def _skipped(data: Dataset) -> dict[str, str]:
    """Return {reason: line}. A line says how many files are not read for this reason, and names some."""
    return {
        reason: f"not read: {len(paths)} {reason} ({examples([path.name for path in paths])})"
        for reason, paths in data.skipped.items()
    }


def _check_published(data: Dataset, findings: Findings) -> None:
    source, splits = LAYOUTS[data.source], {split: getattr(data, split) for split in SPLITS}
    cameras = np.unique(np.concatenate([split.cameras for split in splits.values()]))
    counts = {(f"{name} images", len(splits[name])): n for name, n in source.images(data.protocol).items()}
    counts |= {(f"{name} identities", len(splits[name].identities)): n for name, n in source.identities.items()}
    counts |= {("cameras", len(cameras)): source.cameras} if source.cameras else {}
    others = [f"{what} {found} ({published})" for (what, found), published in counts.items() if found != published]
    if others:
        findings.warnings.append(f"the counts differ from the published ones (in brackets): {', '.join(others)}")


def _check_images(data: Dataset, findings: Findings) -> Pixels:
    paths = list(dict.fromkeys(path for split in SPLITS for path in getattr(data, split).paths))
    training = set(data.train.paths)
    pixels, modes = Pixels(), collections.defaultdict(list)

    def look(path: Path) -> tuple[tuple[int, int], str, np.ndarray, bytes]:
        picture = read_picture(path)
        image = picture.image
        levels = np.array(image.histogram(), float).reshape(3, 256) / (image.width * image.height)
        return image.size, picture.mode, levels, picture.digest

    for index, result in in_parallel(look, paths, "reading"):
        path = paths[index]
        if isinstance(result, InputError):
            # Take the cause alone, because the text of the InputError itself repeats the path.
            findings.faults.append(f"{path}: {result.__cause__ or result}")
            findings.offending.append(path)
            continue
        (width, height), mode, levels, pixels.digests[path] = result
        modes[mode].append(path)
        if path in training:
            # A list of all levels would take 6 KB for each image.
            pixels.levels += levels
            pixels.training += 1
        pixels.brightness.append(float(levels.mean(0) @ np.arange(256)))
        if min(width, height) < SMALLEST_SIDE:
            findings.warnings.append(f"{path}: {width}×{height} pixels are too few to show a person")
            findings.offending.append(path)
        # A share is exactly 1 only if all pixels are at that level, because n / n is exact.
        elif (levels == 1).any(axis=1).all():
            findings.warnings.append(f"{path}: all pixels have the same colour")
            findings.offending.append(path)
    for mode, found in modes.items():
        if mode not in ("RGB", "L"):
            findings.warnings.append(f"{len(found)} images of mode {mode}, read as RGB ({found[0].name}, …)")
    return pixels


def _check_identities(data: Dataset, findings: Findings) -> None:
    train, query, gallery = splits = data.train, data.query, data.gallery
    source = LAYOUTS[data.source]
    twice = [path for split in splits for path, n in collections.Counter(split.paths).items() if n > 1]
    if twice:
        findings.warnings.append(f"{len(twice)} images are listed twice in a split ({twice[0]})")
    single = [pid for pid, count in collections.Counter(train.pids.tolist()).items() if count == 1]
    if single:
        findings.warnings.append(f"train: identities with a single image: {len(single)} ({examples(single)})")
    cameras, images = len(np.unique(np.concatenate([split.cameras for split in splits]))), sum(map(len, splits))
    if cameras > MANY and cameras > images / 10:
        findings.warnings.append(f"{cameras} cameras for {images} images: check that the number after c is a camera")
    if source.same_numbers:
        both = set(train.pids.tolist()) & {*query.pids.tolist(), *gallery.pids.tolist()} - {source.distractor}
        if both:
            findings.warnings.append(f"identities in training and in test: {len(both)} ({examples(sorted(both))})")
    match = make_target(data, "cross-camera").matched
    # If no query has a match, `make_targets` reports that as one fault, so do not list every query.
    lost = np.flatnonzero(~match) if match.any() else ()
    for index in lost[:LISTED]:
        findings.warnings.append(f"{query.paths[index]}: this query has no match from another camera")
    if len(lost) > LISTED:
        findings.warnings.append(f"and {len(lost) - LISTED} more queries that have no match")


def examples(values: Sequence[object]) -> str:
    """Return the first values as text, followed by "…" if there are more than SHOWN."""
    return ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")


def report(data: Dataset, findings: Findings, pixels: Pixels) -> list[str]:
    """Return the counts, the findings and the pixel statistics as lines of text."""
    lines = _counts(data)
    lines += [line for reason, line in _skipped(data).items() if reason in EXPECTED]
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
    if pixels.training and np.mean(mean) < DARK:
        lines.append("the training images are dark: data.brighten=0.4 may improve the results a lot (docs/evidence.md)")
    if data.version:
        lines.append(f"the version is {data.version}")
    for split in SPLITS:
        if paths := getattr(data, split).paths:
            lines.append(f"SHA-256 of the {split} list {getattr(data, split).hash()}")
            if all(path in pixels.digests for path in paths):
                of_files = joint_digest([pixels.digests[path] for path in paths]).hex()
                lines.append(f"SHA-256 of the {split} images' files {of_files}")
    return lines


def _counts(data: Dataset) -> list[str]:
    """Return a table of the images, identities and cameras per split; for unlabelled crops, only their count."""
    if data.source == CROPS:
        return [f"{counted(len(data.train), 'crop')} without labels"]
    lines = [f"{'':8}{'images':>9}{'identities':>12}{'cameras':>9}"]
    for split in SPLITS:
        part: Split = getattr(data, split)
        lines.append(f"{split:8}{len(part):>9}{len(part.identities):>12}{len(np.unique(part.cameras)):>9}")
    return lines


if __name__ == "__main__":
    from ..check import command

    command()
