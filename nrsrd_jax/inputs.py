"""From a run's options to the images it learns from and is tested on."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from .config import Config, fixed_statistic
from .data import datasets, pipeline
from .data.images import (
    THREADS,
    cached_images,
    cached_pixels_sha256,
    check_readable,
    decode_many,
    moments,
    pixels_sha256,
)
from .data.protocol import PROTOCOLS, Target, advice, make_target
from .data.sampling import BatchPlan
from .errors import InputError, say

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
        """Return the images that the plans' indices refer to."""
        return {"real": self.train} | ({"aux": self.bright} if self.bright else {})

    def hash(self) -> dict[str, str]:
        """Return a hash of each split's file list, for results."""
        splits = {"train": self.train, "aux_bright": self.bright, "aux_dark": self.dark}
        for name, target in self.targets.items():
            splits |= {f"{name}/query": target.query, f"{name}/gallery": target.gallery}
        return {name: split.hash() for name, split in splits.items() if split}


def read_records(config: Config) -> Records:
    """List the files and plan the batches. InputError for every fault that shows without decoding."""
    exclude = datasets.read_exclude(config.data.exclude)
    sources = read_sources(config.data, exclude)
    targets = make_targets(config, read_sources(config.eval.data, exclude) if config.eval.data.name else sources)
    splits, dark = make_domains(config, sources, exclude)
    return Records(splits["real"], targets, splits.get("aux"), dark, make_plans(config, splits))


def read_targets(config: Config) -> dict[str, Target]:
    """Return the tests, by data set. InputError if there are no queries, or no query has a match."""
    choice = test_data(config)
    targets = make_targets(config, read_sources(choice, datasets.read_exclude(config.data.exclude)))
    if not targets:
        raise InputError(_no_queries(choice))
    return targets


def test_data(config: Config) -> Config:
    """Return the options of the data to evaluate on: eval.data, or data if that is not set."""
    return config.eval.data if config.eval.data.name else config.data


def make_targets(config: Config, sources: dict[str, datasets.Dataset]) -> dict[str, Target]:
    """Make the tests on the data sets with queries, and print how many have a match. InputError if no query has one.

    InputError also if eval.data names data sets without queries.
    """
    protocol = config.eval.protocol
    targets = {name: make_target(data, protocol) for name, data in sources.items() if len(data.query)}
    for name, target in targets.items():
        queries, matched = len(target.query), int(target.matched.sum())
        if not matched:
            raise InputError(
                f"none of the {queries} queries of {name} has a match by the {protocol} protocol, "
                f"in which {PROTOCOLS[protocol].meaning}: nothing can be evaluated; {advice(sources[name])}"
            )
        say(f"{name}: {matched} of {queries} queries have a match among {len(target.gallery)}, {protocol}")
    if not targets and config.eval.data.name:
        raise InputError(_no_queries(config.eval.data))
    return targets


def _no_queries(choice: Config) -> str:
    return f"data set {choice.name} in {choice.root} has no queries to evaluate with"


def make_domains(
    config: Config, sources: dict[str, datasets.Dataset], exclude: Collection[Path]
) -> tuple[dict[str, datasets.Split], datasets.Split | None]:
    """Return the images to learn from, "real", and with an auxiliary domain "aux", and the dark twins of the latter."""
    splits, dark = {"real": datasets.join([data.train for data in sources.values()])}, None
    if config.aux.enabled:
        splits["aux"], dark = _read_aux(config.aux.bright_root, config.aux.dark_root, exclude)
    return splits, dark


def make_plans(config: Config, splits: dict[str, datasets.Split]) -> dict[str, BatchPlan]:
    """Plan the batches of each domain. InputError if they cannot be drawn."""
    sizes = config.train.batch_size, config.train.instances, config.train.seed
    plans = {name: BatchPlan(split.labels, *sizes, stream=i) for i, (name, split) in enumerate(splits.items())}
    for plan in plans.values():
        plan.steps(1)
    return plans


def read_sources(
    choice: Config, exclude: Collection[Path], read: Callable[..., datasets.Dataset] = datasets.read_dataset
) -> dict[str, datasets.Dataset]:
    """Return the data sets that name, root and protocol stand for, by name; a repeated name gets a number."""
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
    return {key: read(n, root, protocol=protocol, exclude=exclude) for key, n, root, protocol in parts}


def _read_aux(
    bright_root: str, dark_root: str, exclude: Collection[Path]
) -> tuple[datasets.Split, datasets.Split | None]:
    bright = datasets.read_bright(bright_root, exclude=exclude)
    if not dark_root:
        return bright, None
    paired, dark = datasets.find_dark_twins(bright, dark_root, exclude)
    if len(paired) < len(bright):
        lost = len(bright) - len(paired)
        say(f"warning: {lost} of {len(bright)} bright images have no twin in {dark_root}: left out", error=True)
    return paired, dark


def read_domains(config: Config, records: Records) -> dict[str, pipeline.Domain]:
    """Return the training domains with their images, decoded into the cache unless data.cache is "none"."""
    splits = {"real": {"images": records.train}}
    if records.bright:
        splits["aux"] = {"images": records.bright} | ({"dark_images": records.dark} if records.dark else {})

    def source(split: datasets.Split) -> pipeline.Images:
        if config.data.cache == "none":
            check_readable(split.paths)
            return pipeline.Files(split.paths, tuple(config.image_size), "bicubic")
        return cached_images(split.paths, config.image_size, "bicubic", config.data.cache_dir)

    return {
        name: pipeline.Domain(
            records.plans[name],
            named["images"].labels,
            named["images"].camera_ranks,
            {key: source(split) for key, split in named.items()},
        )
        for name, named in splits.items()
    }


def read_test_images(config: Config, split: datasets.Split) -> np.ndarray:
    """Return the images of a query or gallery split, uint8 [N, H, W, 3], resized as by the official test transform."""
    if config.data.cache != "none":
        return cached_images(split.paths, config.image_size, "bilinear", config.data.cache_dir)
    images = np.empty((len(split), *config.image_size, 3), np.uint8)
    decode_many(split.paths, config.image_size, "bilinear", images)
    return images


def stamps(config: Config, target: Target) -> dict[str, str]:
    """Return what distinguishes test images from others of the same names: the version, and hashes of the files.

    The lists' hashes cover only names, identities and cameras. InputError if an image cannot be read.
    """

    def pixels(split: datasets.Split) -> str:
        if config.data.cache == "none":
            return pixels_sha256(split.paths)
        return cached_pixels_sha256(split.paths, config.image_size, "bilinear", config.data.cache_dir)

    version = {"version": target.version} if target.version else {}
    hashes = {f"{part}_pixels_sha256": pixels(getattr(target, part)) for part in ("query", "gallery")}
    return version | hashes


def pixel_statistics(config: Config, images: pipeline.Images) -> tuple[Statistic, Statistic]:
    """Return data.mean and data.std as numbers; "dataset" measures them on at most 512 training images."""
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
    """Return how many threads read batches ahead: one suffices unless they decode."""
    return THREADS if config.data.cache == "none" else 1
