"""Embed a model's test images and score the features, for training and for `nrsrd eval`."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ..build import degradation_options
from ..data import sealed
from ..data.datasets import Split
from ..data.images import cache_folder, decoding_key, mean_luminance
from ..data.protocol import Target
from ..errors import say
from ..eval_options import Eval
from ..inputs import read_test_images
from ..options import Options
from ..sharding import own_mesh
from .distances import Distances, squared_distances
from .embedding import Embeds
from .illumination import SEED, darkener
from .ranking import RankMetrics, rank_by
from .rerank import expand_queries, reranked_distances
from .standardize import brightness_groups, standardize_groups


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of one data set.

    Attributes:
        features: the features of "query" [Q, D] and "gallery" [G, D], as embedded.
        distances: the distances that `metrics` rank by.
        metrics: the final metrics.
        plain: the metrics without re-ranking; None if nothing was re-ranked.
        seconds: the duration of each stage, by its name.
    """

    features: dict[str, np.ndarray]
    distances: Distances
    metrics: RankMetrics
    plain: RankMetrics | None
    seconds: dict[str, float]


def evaluate(
    embedder: Embeds,
    options: Options,
    targets: Mapping[str, Target],
    fingerprint: str = "",
    light: float | None = None,
    others: Sequence[tuple[Embeds, Options, str]] = (),
    weights: Sequence[float] = (),
) -> dict[str, Evaluation]:
    """Embed query and gallery of each data set, and rank the gallery for every query.

    Args:
        embedder: the model.
        options: the options, of which `eval` says how features are compared.
        targets: the data sets by name.
        fingerprint: the embedder's, to read features from the cache or to keep them there; "" for no cache.
        light: an intensity to degrade the images to, above 0 and at most 1; None for the images as they are.
        others: more models, each as (embedder, options, fingerprint). An image's features are those of all models one
            after the other.
        weights: with `others`, the length to which each model's features are scaled, the first for `embedder`.

    Returns:
        The Evaluation of each data set.

    Raises:
        InputError: an image cannot be read, or the cache cannot be written.
    """
    results = {}
    for name, target in targets.items():
        both = np.concatenate([target.query.cameras, target.gallery.cameras])
        notes = [model.description.camera_warning(both) for model in (embedder, *(each[0] for each in others))]
        # The same test in other lights would only repeat the warning.
        if light is None:
            say(*(f"{name}: {note}" for note in notes if note), error=True)
        seconds: dict[str, float] = {}
        with _stage("features", seconds):
            splits = {"query": target.query, "gallery": target.gallery}
            features = {}
            # Queries and gallery draw different noise, or images of one place in both lists would share theirs.
            for stream, (part, split) in enumerate(splits.items()):
                each = [
                    _features(*model, split=split, light=light, title=f"{name} {part}", stream=stream)
                    for model in ((embedder, options, fingerprint), *others)
                ]
                features[part] = _joined(each, weights) if others else each[0]
            luminance = None
            if options.eval.normalize == "brightness":
                luminance = {
                    part: mean_luminance(read_test_images(options, split)) / 255 for part, split in splits.items()
                }
        # Each process has all features, so it ranks them alone, without communication.
        scored = score(features, target, options.eval, own_mesh(embedder.mesh), luminance)
        results[name] = dataclasses.replace(scored, seconds=seconds | scored.seconds)
    return results


def _joined(features: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Scale each model's features [N, D] to the length of its weight, and concatenate them."""
    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in features]
    scaled = [w * x / np.maximum(n, 1e-12) for w, x, n in zip(weights, features, lengths, strict=True)]
    return np.concatenate(scaled, axis=1).astype(np.float32)


def _features(
    embedder: Embeds,
    options: Options,
    fingerprint: str,
    *,
    split: Split,
    light: float | None,
    title: str,
    stream: int,
) -> np.ndarray:
    """Embed the images of a split, or read their features from the cache."""
    degradation, alter = degradation_options(options), None
    if light is not None:
        alter = darkener(light, degradation, stream)
        title += f", light {light:g}"

    def embed() -> np.ndarray:
        return embedder(read_test_images(options, split), cameras=split.cameras, progress=title, alter=alter)

    if not fingerprint:
        return embed()
    key = [fingerprint, decoding_key(split.paths, embedder.description.image_size, "bilinear")]
    key += [light, degradation, SEED, stream] if alter else []
    # The features of such a model also depend on the cameras.
    key += [split.cameras.tolist()] if embedder.description.spec.needs_cameras else []
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    path = cache_folder(options.data.cache_dir) / f"features-{name}.npy"
    return cached_features(path, embed, (len(split), embedder.width))


def cached_features(path: Path, embed: Callable[[], np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Load cached features [N, D] from `path`. If the file is missing, call `embed()` and cache the result.

    A damaged file counts as missing, with a warning.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        if kept := sealed.read(path, np.float32, shape):
            return np.array(kept[0])
    except ValueError as error:
        say(f"warning: the features in {path} cannot be used: {error}; embedding again", error=True)
    features = embed()

    def fill(out: np.ndarray) -> bytes:
        out[:] = features
        return b""

    sealed.write(path, np.float32, shape, fill)
    return features


def score(
    features: dict[str, np.ndarray],
    target: Target,
    options: Eval,
    mesh: Mesh | None = None,
    luminance: dict[str, np.ndarray] | None = None,
) -> Evaluation:
    """Compute the metrics of features from any model.

    Args:
        features: {"query": [Q, D], "gallery": [G, D]}.
        target: the identities, cameras and views of query and gallery.
        options: the normalisation, query expansion and re-ranking.
        mesh: the devices to use; None for all.
        luminance: the mean luminance of the images in 0..1, {"query": [Q], "gallery": [G]}. Only the normalisation by
            brightness needs it.

    Returns:
        The Evaluation.
    """
    query, gallery = features["query"], features["gallery"]
    if options.normalize == "camera":
        query, gallery = standardize_groups(query, gallery, target.query.cameras, target.gallery.cameras)
    elif options.normalize == "brightness":
        assert luminance
        query, gallery = standardize_groups(query, gallery, *brightness_groups(**luminance))
    rerank = options.rerank
    seconds: dict[str, float] = {}
    with _stage("ranking", seconds):
        if options.expand:
            query = expand_queries(query, gallery, options.expand, mesh)
        distances = squared_distances(query, gallery, mesh)
        # This also runs if re-ranking follows: it costs little, and shows what re-ranking changes.
        metrics, plain = rank_by(distances, *target.labels, mesh=mesh), None
    if rerank.enabled:
        with _stage("re-ranking", seconds):
            distances = reranked_distances(query, gallery, rerank.k1, rerank.k2, rerank.lambda_value, mesh)
            metrics, plain = rank_by(distances, *target.labels, mesh=mesh), metrics
    return Evaluation(features, distances, metrics, plain, seconds)


@contextlib.contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how many seconds the stage `name` takes."""
    begin = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begin, 3)


def headline(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the scores of a single data set; for several, the means of the fractions and the sums of the counts."""
    rows = [result.metrics.summary() for result in results.values()]
    if len(rows) == 1:
        return rows[0]
    combine = {name: np.sum if name.startswith("queries") else np.mean for name in rows[0]}
    return {name: combine[name]([row[name] for row in rows]).item() for name in combine}
