"""Evaluate a gallery: rank its labelled crops by their stored features."""

import importlib.metadata
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..data.datasets import Dataset, Split
from ..data.naming import JUNK, as_numbers, is_unknown, manifest_label
from ..errors import InputError, counted
from ..inputs import make_targets
from ..options import Options
from ..retrieval.provenance import protocol_record
from ..retrieval.result import find_warnings, numbers_by_group
from ..retrieval.scoring import headline, score
from .conditions import PRESENT, in_brackets
from .store import Gallery

# The name of the data set in the result.
NAME = "gallery"
LABELLED = f"{PRESENT} AND person IS NOT NULL"


def evaluate_gallery(uri: str, queries: str, options: Options) -> dict[str, Any]:
    """Rank the crops of a gallery whose person is known, and return the result as `nrsrd eval` writes it.

    Crops of unknown people are left out, because it is unknown whether they would be matches.

    Args:
        uri: the gallery.
        queries: a condition in SQL. Labelled crops that fulfil it are the queries, and the other labelled crops are
            searched. "" makes each labelled crop a query, which is compared with all others.
        options: the options, of which `eval` counts, except for `data`, `feature` and `flip`: the gallery decides them.

    Returns:
        The content of result.json.

    Raises:
        InputError: the gallery cannot be read or has no labelled crops; the condition is invalid, or leaves no queries
            or nothing to search; or no query has a match.
    """
    gallery = Gallery.open(uri)
    data, cameras, features, light = _labelled(gallery, queries)
    target = make_targets(options, {NAME: data})[NAME]
    scored = score(features, target, options.eval, luminance=light)
    # A gallery stores brightness in 0..1; results group queries by 0..255.
    row = numbers_by_group(scored, target, light["query"] * 255)
    # The evaluation numbers the cameras, so give them back the names that the user knows.
    row["by_camera"] = {cameras[int(camera)]: numbers for camera, numbers in row["by_camera"].items()}
    row |= {f"{part}_list_sha256": getattr(target, part).hash() for part in ("query", "gallery")}
    normalized = options.eval.normalize != "none"
    return {
        **headline({NAME: scored}),
        "targets": {NAME: row | {"seconds": scored.seconds}},
        "warnings": find_warnings({NAME: target}),
        **protocol_record(options.eval),
        "transductive": normalized or options.eval.rerank.enabled,
        **gallery.about.identity,
        "checkpoint": gallery.about.model,
        "backbone": gallery.about.backbone,
        "gallery": gallery.uri,
        "crops": gallery.count(PRESENT),
        "labelled": len(np.unique([str(path) for split in (data.query, data.gallery) for path in split.paths])),
        "queries_where": queries,
        "software": f"nrsrd-jax {importlib.metadata.version('nrsrd-jax')}",
        "command": shlex.join(sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _labelled(
    gallery: Gallery, queries: str
) -> tuple[Dataset, dict[int, str], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the labelled crops, the names of their cameras by number, and each part's features and brightness."""
    table, features = gallery.read(LABELLED, ("path", "person", "camera", "brightness"))
    known = np.flatnonzero([not is_unknown(person) for person in table["person"].to_pylist()])
    table, features = table.take(known), features[known]
    paths, named = table["path"].to_pylist(), table["camera"].to_pylist()
    where = [f"the crop {path} of {gallery.uri}" for path in paths]
    rows = zip(where, table["person"].to_pylist(), named, strict=True)
    labels = [manifest_label(place, person, camera or "", any(named)) for place, person, camera in rows]
    people, cameras = (np.array(as_numbers([label[i] for label in labels]), np.int64) for i in (0, 1))
    fit = np.ones(len(paths), bool)
    if queries:
        # Count by the user's condition alone, so that an error message shows only this condition.
        gallery.count(queries)
        batches = gallery.batches(f"{LABELLED} AND {in_brackets(queries)}", vectors=False)
        fit = np.isin(paths, [path for batch in batches for path in batch["path"].to_pylist()])
    chosen = {"query": fit & (people != JUNK), "gallery": (~fit if queries else fit) & (people != JUNK)}
    if not (chosen["query"] | chosen["gallery"]).any():
        total = counted(gallery.count(PRESENT), "crop")
        raise InputError(
            f"no person is known among the {total} of {gallery.uri}: label some crops in a table with the columns "
            "path,person,camera, and give it to nrsrd embed"
        )
    for part, mask in chosen.items():
        if not mask.any():
            how = "none of" if part == "query" else "all of"
            raise InputError(f"{how} the labelled crops of {gallery.uri} fit {queries}; choose other --queries")
    crops = Split(tuple(map(Path, paths)), people, cameras)
    splits = {part: crops.subset(np.flatnonzero(mask)) for part, mask in chosen.items()}
    light = table["brightness"].to_numpy()
    return (
        Dataset(crops.subset(np.empty(0, int)), splits["query"], splits["gallery"]),
        {number: name or "unknown" for number, name in zip(cameras.tolist(), named, strict=True)},
        {part: features[mask] for part, mask in chosen.items()},
        {part: light[mask].astype(np.float64) for part, mask in chosen.items()},
    )
