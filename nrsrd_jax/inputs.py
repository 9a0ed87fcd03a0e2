"""From a run's options to the images it learns from and is tested on."""

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from .config import Config, fixed_statistic
from .data import datasets, pipeline
from .data.images import THREADS, cached_images, check_readable, decode_many, moments
from .data.protocol import NO_CAMERAS, PROTOCOLS, Target, make_target
from .data.sampling import BatchPlan
from .errors import InputError

Statistic = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Records:
    """What is on disk, and the batch plans.

    `targets` are the tests, by data set; `bright` and `dark` the auxiliary domain's images.
    """

    train: datasets.Split
    targets: dict[str, Target]
    bright: datasets.Split | None
    dark: datasets.Split | None
    plans: dict[str, BatchPlan]  # "real", and "aux" with an auxiliary domain

    @property
    def domains(self) -> dict[str, datasets.Split]:
        """The images that the plans' indices are of."""
        return {"real": self.train} | ({"aux": self.bright} if self.bright else {})

    def hash(self) -> dict[str, str]:
        """A file-list hash per split, to stamp into results."""
        splits = {"train": self.train, "aux_bright": self.bright, "aux_dark": self.dark}
        for name, target in self.targets.items():
            splits |= {f"{name}/query": target.query, f"{name}/gallery": target.gallery}
        return {name: split.hash() for name, split in splits.items() if split}


def read_records(config: Config) -> Records:
    """Lists the files and plans the batches; InputError for all that can be found wrong without decoding."""
    exclude = datasets.read_exclude(config.data.exclude)
    sources = _read_sources(config.data, exclude)
    targets = read_targets(config) if config.eval.data.name else _make_targets(sources, config)
    train = datasets.join([data.train for data in sources.values()])
    splits, dark = {"real": train}, None
    if config.aux.enabled:
        splits["aux"], dark = _read_aux(config.aux.bright_root, config.aux.dark_root, exclude)
    sizes = config.train.batch_size, config.train.instances, config.train.seed
    plans = {name: BatchPlan(split.labels, *sizes, stream=i) for i, (name, split) in enumerate(splits.items())}
    for plan in plans.values():
        plan.steps(1)
    return Records(train, targets, splits.get("aux"), dark, plans)


def read_targets(config: Config) -> dict[str, Target]:
    """The tests, by data set. InputError if there are no queries, or none has a match."""
    choice = test_data(config)
    sources = _read_sources(choice, datasets.read_exclude(config.data.exclude))
    targets = _make_targets(sources, config)
    if not targets:
        raise InputError(f"data set {choice.name} in {choice.root} has no queries to evaluate with")
    return targets


def test_data(config: Config) -> Config:
    """Where the options name the data to evaluate on: eval.data, or data if that is not set."""
    return config.eval.data if config.eval.data.name else config.data


def _make_targets(sources: dict[str, datasets.Dataset], config: Config) -> dict[str, Target]:
    """The tests on those data sets that have queries; says how many of these have a match. InputError if none has."""
    protocol = config.eval.protocol
    targets = {name: make_target(data, protocol) for name, data in sources.items() if len(data.query)}
    for name, target in targets.items():
        queries, matched = len(target.query), int(target.matched.sum())
        if not matched:
            raise InputError(
                f"none of the {queries} queries of {name} has a match by the {protocol} protocol, "
                f"in which {PROTOCOLS[protocol].meaning}: nothing can be evaluated; {NO_CAMERAS}"
            )
        print(f"{name}: {matched} of {queries} queries have a match among {len(target.gallery)}, {protocol}")
    return targets


def _read_sources(choice: Config, exclude: Collection[Path]) -> dict[str, datasets.Dataset]:
    """The data sets that name, root and protocol stand for, by name; numbered where a name stands there twice."""
    names, protocols = (text.replace(" ", "").split(",") for text in (choice.name, choice.protocol))
    roots = [root.strip() for root in choice.root.split(",")] if len(names) > 1 else [choice.root]
    if choice.protocol == "":
        protocols *= len(names)
    if not len(names) == len(roots) == len(protocols):
        raise InputError(
            f"{len(names)} data sets ({choice.name}), but {len(roots)} roots ({choice.root}) and {len(protocols)} "
            f"protocols ({choice.protocol}); give as many of each"
        )
    labels = [f"{n}-{p}" if p and names.count(n) > 1 else n for n, p in zip(names, protocols, strict=True)]
    labels = [f"{n}-{i}" if labels.count(n) > 1 else n for i, n in enumerate(labels, start=1)]
    parts = zip(labels, names, roots, protocols, strict=True)
    return {key: datasets.load(n, root, protocol=protocol, exclude=exclude) for key, n, root, protocol in parts}


def _read_aux(
    bright_root: str, dark_root: str, exclude: Collection[Path]
) -> tuple[datasets.Split, datasets.Split | None]:
    bright = datasets.load_bright(bright_root, exclude=exclude)
    if not dark_root:
        return bright, None
    paired, dark = datasets.find_dark_twins(bright, dark_root, exclude)
    if len(paired) < len(bright):
        lost = len(bright) - len(paired)
        print(f"warning: {lost} of {len(bright)} bright images have no twin in {dark_root}: left out", file=sys.stderr)
    return paired, dark


def read_domains(config: Config, records: Records) -> dict[str, pipeline.Domain]:
    """The training domains with their images, decoded into the cache unless data.cache is "none"."""
    splits = {"real": {"images": records.train}}
    if records.bright:
        splits["aux"] = {"images": records.bright} | ({"dark_images": records.dark} if records.dark else {})

    def source(split: datasets.Split) -> pipeline.Source:
        if config.data.cache == "none":
            check_readable(split.paths)
            return pipeline.Files(split.paths, tuple(config.image_size), "bicubic")
        return cached_images(split.paths, config.image_size, "bicubic", config.data.cache_dir)

    return {
        name: pipeline.Domain(
            records.plans[name], named["images"].labels, {key: source(split) for key, split in named.items()}
        )
        for name, named in splits.items()
    }


def read_test_images(config: Config, split: datasets.Split) -> np.ndarray:
    """The images of a query or gallery split, uint8 [N, H, W, 3], resized as the official test transform does."""
    if config.data.cache != "none":
        return cached_images(split.paths, config.image_size, "bilinear", config.data.cache_dir)
    images = np.empty((len(split), *config.image_size, 3), np.uint8)
    decode_many(split.paths, config.image_size, "bilinear", images)
    return images


def pixel_statistics(config: Config, images: pipeline.Source) -> tuple[Statistic, Statistic]:
    """data.mean and data.std as numbers; "dataset" measures them on the training images (on 512 of more)."""
    mean, std = (fixed_statistic(config.data[name], f"data.{name}") for name in ("mean", "std"))
    if mean and std:
        return mean, std
    sample = images[np.linspace(0, len(images) - 1, min(len(images), 512)).astype(int)]
    shares = np.stack([np.bincount(sample[..., c].ravel(), minlength=256) for c in range(3)]) / sample[..., 0].size
    measured_mean, measured_std = moments(shares)
    measured_std = np.maximum(measured_std, 1 / 255)  # at least one grey level
    rounded = [tuple(round(float(x), 4) for x in values) for values in (measured_mean, measured_std)]
    return mean or rounded[0], std or rounded[1]


def reading_threads(config: Config) -> int:
    """How many threads read batches ahead: one will do unless they decode."""
    return THREADS if config.data.cache == "none" else 1
