"""Turn a run's options into the images that it trains on and is tested on."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from . import augment
from .data import datasets, pipeline
from .data.crops import CROPS, Source, crops_of, make_source, warn_links
from .data.images import (
    cached_images,
    cached_pixels_sha256,
    check_readable,
    decode_many,
    moments,
    pixels_sha256,
)
from .data.protocol import PROTOCOLS, Target, advice, hold_out, make_target
from .data.sampling import BatchPlan, Plan, ShuffledPlan, check_identities
from .data.sealed import THREADS
from .data_options import Aux, Data, fixed_statistic
from .errors import InputError, say
from .eval_options import EvalData
from .files import absolute, expanded
from .options import Options, Train

Statistic = tuple[float, ...]
# The name of the test on the identities that data.holdout keeps out of training.
HELD_OUT = "held-out people"


@dataclasses.dataclass(frozen=True)
class Records:
    """The file lists of a run, and its batch plans.

    Attributes:
        train: the real images to train on.
        targets: the tests to evaluate on during training, by data set.
        bright: the bright images of the auxiliary domain; None without it.
        dark: their dark versions; None if the training step darkens the bright images.
        plans: the batch plan of each domain: "real", and "aux" with an auxiliary domain.
    """

    train: datasets.Split
    targets: dict[str, Target]
    bright: datasets.Split | None
    dark: datasets.Split | None
    plans: dict[str, Plan]

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


def read_records(options: Options) -> Records:
    """List the files and plan the batches. InputError for every fault that can be found without decoding images."""
    exclude = datasets.read_exclude(options.data.exclude)
    if options.dino.enabled:
        return _read_unlabelled(options, exclude)
    sources = read_sources(options.data, exclude)
    splits, dark = make_domains(options.aux, sources, exclude)
    # Tests on held-out identities choose the best checkpoint without looking at the test data.
    if options.data.holdout:
        splits["real"], target = hold_out(splits["real"], options.data.holdout)
        if "aux" in splits and (both := set(target.gallery.paths) & set(splits["aux"].paths)):
            raise InputError(
                f"data.holdout: aux.bright_root has {len(both)} images of people who are held out, such as "
                f"{min(both)}; set data.holdout=0, or choose another auxiliary domain"
            )
        targets = {HELD_OUT: target}
        people, gallery = len(target.gallery.identities), len(target.gallery)
        counts = f"{people} people, {len(target.query)} queries, {gallery} in the gallery"
        say(f"held out of training for evaluation: {counts}")
    else:
        targets = make_targets(options, read_sources(options.eval.data, exclude) if options.eval.data.name else sources)
    return Records(splits["real"], targets, splits.get("aux"), dark, make_plans(options.train, splits))


def _read_unlabelled(options: Options, exclude: Collection[Path]) -> Records:
    """List the images of a pretraining, which does not use identities. It is tested on eval.data, if that is set."""
    if options.data.name == CROPS:
        train = read_crops(options.data, exclude)
    else:
        sources = read_sources(options.data, exclude).values()
        train = _unlabelled([absolute(path) for data in sources for path in data.train.paths], options.data, exclude)
    say(f"{len(train)} images to learn from, without labels")
    targets = make_targets(options, read_sources(options.eval.data, exclude)) if options.eval.data.name else {}
    plan = ShuffledPlan(len(train), options.train.batch_size, options.train.seed)
    return Records(train, targets, None, None, {"real": plan})


def read_crops(data: Data, exclude: Collection[Path]) -> datasets.Split:
    """Return the crops in the folders and lists of data.root. InputError if no crop is found, or a list is wrong."""
    sources = _crop_sources(data.root)
    paths = [Path(path) for path in crops_of(sources)]
    warn_links(sources)
    return _unlabelled(paths, data, exclude)


def _unlabelled(paths: Sequence[Path], data: Data, exclude: Collection[Path]) -> datasets.Split:
    """Return the images that are not excluded and, if data.include is set, listed there. Identity and camera are 0."""
    excluded = {absolute(path) for path in exclude}
    kept = tuple(path for path in paths if path not in excluded)
    if data.include:
        kept = _included(kept, excluded, data)
    return datasets.Split(kept, np.zeros(len(kept), np.int64), np.zeros(len(kept), np.int64))


def _crop_sources(root: str) -> list[Source]:
    """Return the folders and lists that data.root names: one path that exists, or several, separated by commas."""
    # The name of an existing folder may contain a comma.
    roots = [root] if expanded(root).exists() and root.strip() else [part.strip() for part in root.split(",")]
    if not all(roots):
        raise InputError(
            f"data.root is {root!r}: a part between commas is empty; give folders or lists, separated by commas"
        )
    sources = [make_source(Path(part), "", "") for part in roots]
    if lost := [source.path for source in sources if not source.path.exists()]:
        raise InputError(f"data.root: {lost[0]} does not exist; give folders or lists (.csv), separated by commas")
    return sources


def _included(paths: tuple[Path, ...], excluded: Collection[Path], data: Data) -> tuple[Path, ...]:
    """Return the paths that data.include lists.

    Raises:
        InputError: it is not a list, or lists crops that are neither in `paths` nor excluded.
    """
    source = make_source(Path(data.include), "", "")
    if not source.is_manifest:
        raise InputError(f"data.include {data.include} is not a list (.csv) with a column path")
    chosen = {Path(path) for path in crops_of([source])}
    if lost := sorted(chosen.difference(paths, excluded)):
        raise InputError(
            f"data.include: {len(lost)} of its {len(chosen)} crops are not in data.root {data.root}, such as "
            f"{lost[0]}; make the list again, or set data.root to the folders that it was made from"
        )
    return tuple(path for path in paths if path in chosen)


def read_targets(options: Options) -> dict[str, Target]:
    """Return the tests, by data set. InputError if the data has no queries, or no query has a match."""
    choice = test_data(options)
    if choice.name == CROPS:
        raise InputError(
            f"{choice.root} holds crops without labels, which a pretraining learns from: to evaluate, name labelled "
            "data, such as --config.eval.data.name=night600 --config.eval.data.root=DIR"
        )
    targets = make_targets(options, read_sources(choice, datasets.read_exclude(options.data.exclude)))
    if not targets:
        raise InputError(_no_queries(choice))
    return targets


def test_data(options: Options) -> Data | EvalData:
    """Return the options of the data to evaluate on: eval.data if it is set, otherwise data."""
    return options.eval.data if options.eval.data.name else options.data


def make_targets(options: Options, sources: dict[str, datasets.Dataset]) -> dict[str, Target]:
    """Make the tests on the data sets with queries, and print how many queries have a match.

    Raises:
        InputError: no query of a data set has a match, or eval.data names only data sets without queries.
    """
    protocol = options.eval.protocol
    targets = {name: make_target(data, protocol) for name, data in sources.items() if len(data.query)}
    for name, target in targets.items():
        queries, matched = len(target.query), int(target.matched.sum())
        if not matched:
            raise InputError(
                f"none of the {queries} queries of {name} has a match by the {protocol} protocol, "
                f"in which {PROTOCOLS[protocol].meaning}: nothing can be evaluated; {advice(sources[name])}"
            )
        say(f"{name}: {matched} of {queries} queries have a match among {len(target.gallery)}, {protocol}")
    if not targets and options.eval.data.name:
        raise InputError(_no_queries(options.eval.data))
    return targets


def _no_queries(choice: Data | EvalData) -> str:
    return f"data set {choice.name} in {choice.root} has no queries to evaluate with"


def make_domains(
    aux: Aux, sources: dict[str, datasets.Dataset], exclude: Collection[Path]
) -> tuple[dict[str, datasets.Split], datasets.Split | None]:
    """Return the images to train on, by domain, and the dark versions of the auxiliary domain's images.

    The domains are "real" and, with an auxiliary domain, "aux". Without a folder of dark versions, they are None.
    """
    splits, dark = {"real": datasets.join([data.train for data in sources.values()])}, None
    if aux.enabled:
        splits["aux"], dark = _read_aux(aux.bright_root, aux.dark_root, exclude)
    return splits, dark


def make_plans(train: Train, splits: dict[str, datasets.Split]) -> dict[str, Plan]:
    """Plan the batches of each domain. InputError if a domain has too few images or identities for a batch."""
    plans: dict[str, Plan] = {}
    for stream, (name, split) in enumerate(splits.items()):
        if train.instances:
            plans[name] = BatchPlan(split.labels, train.batch_size, train.instances, train.seed, stream)
        else:
            check_identities(split.labels)
            plans[name] = ShuffledPlan(len(split), train.batch_size, train.seed, stream)
    # Draw the first epoch now, so that a plan that fails stops the run before images are decoded.
    for plan in plans.values():
        plan.steps(1)
    return plans


def read_sources(
    choice: Data | EvalData, exclude: Collection[Path], read: Callable[..., datasets.Dataset] = datasets.read_dataset
) -> dict[str, datasets.Dataset]:
    """Read the data sets that name, root and protocol list, separated by commas.

    Args:
        choice: the options with the names, roots and protocols.
        exclude: paths to leave out.
        read: the function that reads one data set.

    Returns:
        The data sets by name. If a name repeats, its protocol or a number is added.

    Raises:
        InputError: the numbers of names, roots and protocols differ, or a data set cannot be read.
    """
    names, protocols = (text.replace(" ", "").split(",") for text in (choice.name, choice.protocol))
    # The folder of a single data set may have commas in its name.
    roots = [root.strip() for root in choice.root.split(",")] if len(names) > 1 else [choice.root]
    # Without a protocol, each data set uses its own default.
    if choice.protocol == "":
        protocols *= len(names)
    if not len(names) == len(roots) == len(protocols):
        raise InputError(
            f"{len(names)} data sets ({choice.name}), but {len(roots)} roots ({choice.root}) and {len(protocols)} "
            f"protocols ({choice.protocol}); give as many of each"
        )
    # A data set may be listed with several protocols: make the names in results different.
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
        say(
            f"warning: {lost} of {len(bright)} bright images have no dark version in {dark_root} and are left out",
            error=True,
        )
    return paired, dark


def read_domains(options: Options, records: Records) -> dict[str, pipeline.Domain]:
    """Return the training domains with their images, which are decoded into the cache unless data.cache is none."""
    splits = {"real": {"images": records.train}}
    if records.bright:
        splits["aux"] = {"images": records.bright} | ({"dark_images": records.dark} if records.dark else {})

    def source(split: datasets.Split) -> pipeline.Images:
        if options.data.cache == "none":
            # Training decodes the images itself in this case, and an unreadable one must not stop it in a later epoch.
            check_readable(split.paths)
            return pipeline.Files(split.paths, options.image_size, options.data.train_filter)
        return cached_images(split.paths, options.image_size, options.data.train_filter, options.data.cache_dir)

    return {
        name: pipeline.Domain(
            records.plans[name],
            named["images"].labels,
            named["images"].camera_ranks,
            {key: source(split) for key, split in named.items()},
        )
        for name, named in splits.items()
    }


def read_test_images(options: Options, split: datasets.Split) -> np.ndarray:
    """Return the images of a query or gallery split, uint8 [N, H, W, 3], resized as by the official test transform."""
    if options.data.cache != "none":
        return cached_images(split.paths, options.image_size, "bilinear", options.data.cache_dir)
    images = np.empty((len(split), *options.image_size, 3), np.uint8)
    decode_many(split.paths, options.image_size, "bilinear", images)
    return images


def stamps(options: Options, target: Target) -> dict[str, str]:
    """Return the version and the hashes of pixels that identify the images of a test.

    The hashes of the file lists cover only names, identities and cameras, so other images of the same names would go
    unnoticed. InputError if an image cannot be read.
    """

    def pixels(split: datasets.Split) -> str:
        if options.data.cache == "none":
            return pixels_sha256(split.paths)
        return cached_pixels_sha256(split.paths, options.image_size, "bilinear", options.data.cache_dir)

    version = {"version": target.version} if target.version else {}
    hashes = {f"{part}_pixels_sha256": pixels(getattr(target, part)) for part in ("query", "gallery")}
    return version | hashes


def pixel_statistics(data: Data, images: pipeline.Images) -> tuple[Statistic, Statistic]:
    """Return data.mean and data.std as numbers.

    "dataset" measures them on at most 512 training images, after brightening (data.brighten).
    """
    mean, std = fixed_statistic(data.mean, "data.mean"), fixed_statistic(data.std, "data.std")
    if mean and std:
        return mean, std
    # Neighbouring images often show the same person, so take the sample at even distances.
    sample = images[np.linspace(0, len(images) - 1, min(len(images), 512)).astype(int)]
    if data.brighten:
        brightened = augment.brighten(jnp.asarray(sample, jnp.float32) / 255, data.brighten)
        sample = np.asarray(brightened * 255).round().astype(np.uint8)
    # Compute the moments from histograms of the 256 values, which is exact and needs little memory.
    shares = np.stack([np.bincount(sample[..., c].ravel(), minlength=256) for c in range(3)]) / sample[..., 0].size
    measured_mean, measured_std = moments(shares)
    # At least one grey level, so that images of a single colour do not give a division by zero.
    measured_std = np.maximum(measured_std, 1 / 255)
    rounded = [tuple(round(float(x), 4) for x in values) for values in (measured_mean, measured_std)]
    return mean or rounded[0], std or rounded[1]


def reading_threads(options: Options) -> int:
    """Return how many threads read batches ahead. One is enough unless they decode images."""
    return THREADS if options.data.cache == "none" else 1
