"""Check every image of a data set before training: `python -m nrsrd_jax.data.check NAME ROOT`.

  python -m nrsrd_jax.data.check night600 data/Night600
  python -m nrsrd_jax.data.check folders DIR --fix-list bad.txt     then train with --config.data.exclude=bad.txt
  python -m nrsrd_jax.data.check --config configs/night600.py:nrsrd --config.data.root=DIR

It takes train.py's --config FILE[:VARIANT] and --config.KEY=VALUE, and judges as train.py with these options would;
without FILE, as configs/night600.py:baseline. A fault would stop training; a warning is worth a look. The exit status
is 0 if train.py with these options starts, 1 if there are faults, 2 if the data or the options cannot be read at all.
With only NAME ROOT, too few people for the default batch give a warning: train.py then needs a smaller
train.batch_size.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..command import Parser, one_line, read_config
from ..config import Config, validate
from ..errors import InputError, counted, say
from ..files import expanded, written_whole
from . import datasets
from .datasets import OF_JUNK, Dataset, Split
from .images import in_parallel, joint_digest, moments, read_picture
from .listing import SPLITS
from .protocol import make_target
from .readers import SOURCES

SMALLEST_SIDE = 8  # pixels; a smaller image shows nobody
SHOWN = 5  # examples in a line
MANY = 50  # cameras; few data sets have more
LISTED = 20  # queries without a match that get a line each


@dataclasses.dataclass
class Pixels:
    """What the images look like: the levels of training images, for data.mean and data.std; the brightness of all."""

    levels: list[np.ndarray] = dataclasses.field(default_factory=list)  # of a training image [3, 256], in shares
    brightness: list[float] = dataclasses.field(default_factory=list)  # mean of each image, 0..255
    digests: dict[Path, bytes] = dataclasses.field(default_factory=dict)  # of each readable image's file

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation per channel of pixels in 0..1; every training image counts alike."""
        return moments(np.mean(self.levels, axis=0) if self.levels else np.zeros((3, 256)))


@dataclasses.dataclass
class Findings:
    """Lines to print: faults stop training, warnings do not; `offending` are the files to leave out."""

    faults: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    offending: list[Path] = dataclasses.field(default_factory=list)


def check(data: Dataset) -> tuple[Findings, Pixels]:
    """Return every fault and oddity of a data set by itself, and what its pixels are like."""
    findings = Findings(warnings=list(data.notes))
    for path in data.unnamed:
        findings.faults.append(f"{path}: no identity and camera in its name")
        findings.offending.append(path)
    pixels = _check_images(data, findings)
    _check_published(data, findings)
    _check_identities(data, findings)
    findings.warnings += [line for reason, line in _skipped(data).items() if reason != OF_JUNK]
    return findings, pixels


def _skipped(data: Dataset) -> dict[str, str]:
    """Return, by reason, a line that says how many files are not read, with examples."""
    return {
        reason: f"not read: {len(paths)} {reason} ({examples([path.name for path in paths])})"
        for reason, paths in data.skipped.items()
    }


def _check_published(data: Dataset, findings: Findings) -> None:
    source, splits = SOURCES[data.source], {split: getattr(data, split) for split in SPLITS}
    cameras = np.unique(np.concatenate([split.cameras for split in splits.values()]))
    counts = {(f"{name} images", len(splits[name])): n for name, n in source.images(data.protocol).items()}
    counts |= {(f"{name} identities", len(splits[name].identities)): n for name, n in source.identities.items()}
    counts |= {("cameras", len(cameras)): source.cameras} if source.cameras else {}
    others = [f"{what} {found} ({published})" for (what, found), published in counts.items() if found != published]
    if others:
        findings.warnings.append(f"counts differ from the published ones, in brackets: {', '.join(others)}")


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
            findings.faults.append(f"{path}: {result.__cause__ or result}")
            findings.offending.append(path)
            continue
        (width, height), mode, levels, pixels.digests[path] = result
        modes[mode].append(path)
        if path in training:
            pixels.levels.append(levels)
        pixels.brightness.append(float(levels.mean(0) @ np.arange(256)))
        if min(width, height) < SMALLEST_SIDE:
            findings.warnings.append(f"{path}: {width}×{height} pixels show nobody")
            findings.offending.append(path)
        elif (levels == 1).any(axis=1).all():
            findings.warnings.append(f"{path}: a single colour throughout")
            findings.offending.append(path)
    for mode, found in modes.items():
        if mode not in ("RGB", "L"):
            findings.warnings.append(f"{len(found)} images of mode {mode}, read as RGB ({found[0].name}, …)")
    return pixels


def _check_identities(data: Dataset, findings: Findings) -> None:
    train, query, gallery = splits = data.train, data.query, data.gallery
    source = SOURCES[data.source]
    twice = [path for split in splits for path, n in collections.Counter(split.paths).items() if n > 1]
    if twice:
        findings.warnings.append(f"{len(twice)} images stand twice in a split ({twice[0]})")
    single = [pid for pid, count in collections.Counter(train.pids.tolist()).items() if count == 1]
    if single:
        findings.warnings.append(f"train: identities with a single image: {len(single)} ({examples(single)})")
    cameras, images = len(np.unique(np.concatenate([split.cameras for split in splits]))), sum(map(len, splits))
    if cameras > MANY and cameras > images / 10:
        findings.warnings.append(f"{cameras} cameras for {images} images: is the number behind c a camera's?")
    if source.same_numbers:
        both = set(train.pids.tolist()) & {*query.pids.tolist(), *gallery.pids.tolist()} - {source.distractor}
        if both:
            findings.warnings.append(f"identities in training and in test: {len(both)} ({examples(sorted(both))})")
    match = make_target(data, "cross-camera").matched
    lost = np.flatnonzero(~match) if match.any() else ()
    for index in lost[:LISTED]:
        findings.warnings.append(f"{query.paths[index]}: a query without a match from another camera")
    if len(lost) > LISTED:
        findings.warnings.append(f"and {len(lost) - LISTED} more queries without a match")


def examples(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")


def report(data: Dataset, findings: Findings, pixels: Pixels) -> list[str]:
    """Return the table, the findings and the pixels as lines."""
    lines = [f"{'':8}{'images':>9}{'identities':>12}{'cameras':>9}"]
    for split in SPLITS:
        part: Split = getattr(data, split)
        lines.append(f"{split:8}{len(part):>9}{len(part.identities):>12}{len(np.unique(part.cameras)):>9}")
    lines += [line for reason, line in _skipped(data).items() if reason == OF_JUNK]
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
    if data.version:
        lines.append(f"the version is {data.version}")
    for split in SPLITS:
        if paths := getattr(data, split).paths:
            lines.append(f"SHA-256 of the {split} list {getattr(data, split).hash()}")
            if all(path in pixels.digests for path in paths):
                of_files = joint_digest([pixels.digests[path] for path in paths]).hex()
                lines.append(f"SHA-256 of the {split} images' files {of_files}")
    return lines


def main() -> None:
    options, config, given = _read_options(sys.argv[1:])
    # Not before the flags, so that --help is quick.
    from ..inputs import make_domains, make_plans, make_targets, read_sources

    left_out = datasets.read_exclude(config.data.exclude)

    def surveyed(choice: Config) -> dict[str, Dataset]:
        return read_sources(choice, left_out, datasets.survey)

    sources = surveyed(config.data)
    tests = surveyed(config.eval.data) if config.eval.data.name else sources
    others = {f"evaluated {label}": data for label, data in tests.items()} if tests is not sources else {}
    if config.aux.enabled:
        for option in filter(config.aux.get, ("bright_root", "dark_root")):
            others[f"aux.{option}"] = datasets.survey("bright", config.aux[option], exclude=left_out)
    total = Findings()
    for label, data in (sources | others).items():
        findings, pixels = check(data)
        if len(sources) + len(others) > 1:
            say(f"{label}:")
        say(*report(data, findings, pixels))
        for field in dataclasses.fields(Findings):
            getattr(total, field.name).extend(getattr(findings, field.name))
    domains: dict[str, Split] = {}
    refused = _refusals(lambda: make_targets(config, tests))
    refused += _refusals(lambda: domains.update(make_domains(config, sources, left_out)[0]))
    too_few = _refusals(lambda: make_plans(config, domains))
    smaller = config.copy_and_resolve_references()
    smaller.train.batch_size = 2 * config.train.instances
    if given or _refusals(lambda: make_plans(smaller, domains)):
        refused += too_few
    else:
        # Nobody asked for the default batch, and a smaller one would do.
        total.warnings += too_few
        say(*(f"warning: {text}" for text in too_few))
    if given and not (refused or total.faults):
        refused = _refusals(lambda: _start(config))
    say(*(f"fault: {text}" for text in refused))
    say(f"{len(total.faults) + len(refused)} faults, {len(total.warnings)} warnings")
    if options.fix_list:
        _write_fix_list(options.fix_list, {os.path.abspath(path) for path in (*left_out, *total.offending)})
    sys.exit(1 if total.faults or refused else 0)


def _read_options(arguments: list[str]) -> tuple[argparse.Namespace, Config, bool]:
    """Return the options, the config that they stand for, and whether the user gave --config."""
    parser = Parser(__doc__, "python -m nrsrd_jax.data.check")
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("root", nargs="?", metavar="ROOT", help="its folder; of a manifest the CSV file")
    parser.add_argument("--protocol", default="", help="of nightreid and knight")
    parser.add_argument("--exclude", default="", help="a file of paths to leave out, as --fix-list writes it")
    parser.add_argument(
        "--fix-list", type=Path, help="write the paths of unreadable, unnamed, tiny and single-coloured images there"
    )
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="as train.py takes it, with --config.KEY=VALUE")
    ours: list[str] = []
    rest: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        value_of_ours = before.startswith("--config") and "=" not in before and before in ours
        (ours if argument.startswith("--config") or value_of_ours else rest).append(argument)
    options = parser.parse_args(rest)
    config = read_config(ours)
    if options.name and not options.root:
        parser.error(f"give the folder of data set {options.name} after its name")
    if not (options.name or ours):
        parser.error("give a data set, NAME ROOT, or --config FILE")
    if options.name:
        config.data.name, config.data.root = options.name, options.root
    for key in filter(options.__dict__.get, ("protocol", "exclude")):
        config.data[key] = getattr(options, key)
    validate(config)
    return options, config, bool(ours)


def _refusals(step: Callable[[], object]) -> list[str]:
    """Run one of train.py's steps. Return [its message] if it refuses, otherwise []."""
    try:
        step()
    except InputError as error:
        return [str(error)]
    return []


def _start(config: Config) -> None:
    """Do what train.py does before it decodes images, in a temporary work directory."""
    from ..training import check_run

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        check_run(config, Path(folder) / "run")


def _write_fix_list(file: Path, listed: set[str]) -> None:
    lines = [os.fsencode(path) for path in sorted(listed) if not {"\n", "\r"} & set(path)]
    with written_whole(expanded(file), follow=True) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in lines))
    hint = f"; leave them out with --config.data.exclude={file}" if lines else ""
    say(f"{counted(len(lines), 'path', 'paths')} written to {file}{hint}")
    if len(lines) < len(listed):
        say(f"{len(listed) - len(lines)} have a line break in their names: rename those")


if __name__ == "__main__":
    one_line(main)
