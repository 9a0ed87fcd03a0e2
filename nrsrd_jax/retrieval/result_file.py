"""Choose the file of a result if the user does not name it, so that no evaluation replaces another's result.

RUN/result.json is the plain evaluation: the run's own test without options. Any other result is
RUN/result-WORDS-HASH.json: the words say how it differs, and the hash covers everything that its scores depend on. The
results of an ONNX file FILE.onnx are written beside it, as FILE.result.json and FILE.result-WORDS-HASH.json.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_bounded
from ..inputs import HELD_OUT

PLAIN = "result.json"
MOST_BYTES = 2**27


def refuse_links(plain: Path) -> None:
    """Raise InputError if `plain` or a result beside it is a symbolic link, which could point to any file."""
    for path in sorted(plain.parent.glob(glob.escape(plain.stem) + "*")):
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link; remove it, or name the result's file with --output")


def choose_file(plain: Path, result: Mapping[str, Any], trained_data: Any) -> Path:
    """Return the file for a result, so that another evaluation's result is kept.

    An existing result.json of other weights, or of other contents of the same test, is renamed to
    result-earlier-HASH.json.

    Args:
        plain: the file of the plain evaluation, RUN/result.json or FILE.result.json. Other results are beside it.
        result: the record, complete except for the times.
        trained_data: if known, the hashes of the lists that the weights were trained and tested with, by "NAME/query"
            and "NAME/gallery".

    Returns:
        The file to write.
    """
    words, before = _words(result, trained_data), _read(plain)
    # The plain name is for the run's own test, so another test gets the names of its data sets.
    if not words and before and _is_other_test(before, result):
        words = _names(result)
    if words:
        return plain.with_name(f"{plain.stem}-{'-'.join(words)}-{_hash(_subject(result))}.json")
    if plain.exists() and (before is None or before != _subject(result)):
        name = _hash(before) if before else hashlib.sha256(read_bounded(plain, MOST_BYTES)).hexdigest()[:8]
        os.replace(plain, plain.with_name(f"{plain.stem}-earlier-{name}.json"))
    return plain


def _subject(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that a result's scores depend on, in the form in which JSON reads it back."""
    config, lights = result["config"], result["lights"]
    hashes = {
        name: {key: value for key, value in row.items() if key.endswith("_sha256")}
        for name, row in result["targets"].items()
    }
    subject = {name: result[name] for name in ("weights_sha256", "protocol", "rerank", "flip", "expand")}
    subject |= _features(result) | ({"onnx_sha256": result["onnx_sha256"]} if "onnx_sha256" in result else {})
    together = [[each["weights_sha256"], each["weight"]] for each in result.get("also", [])]
    subject |= {"also": [result["weight"], *together]} if together else {}
    subject |= {"tests": hashes, "precision": config["train"]["precision"], "lights": lights, "data": _where(result)}
    return json.loads(json.dumps(subject | {"degradation": config["degradation"] if lights else None}))


def _features(result: Mapping[str, Any]) -> dict[str, str]:
    """Return which features are compared. Results from before these options existed do not name them."""
    return {"feature": result.get("feature", "cls"), "normalize": result.get("normalize", "none")}


def _where(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result["data"][name] for name in ("name", "protocol", "exclude")}


def _read(path: Path) -> dict[str, Any] | None:
    """Return what the result in a file depends on; None if the file is missing or not a result of this version."""
    try:
        return _subject(json.loads(read_bounded(path, MOST_BYTES)))
    # A result of an earlier version, or a file of another program, lacks entries or has other types.
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None


def _words(result: Mapping[str, Any], trained_data: Any) -> list[str]:
    """Return how a result differs from the plain one: names of data sets and options."""
    trained = _mapping(result["trained_with"])
    if "onnx_sha256" in result:
        # An ONNX file has only one kind of features, so these are the plain ones.
        trained = {"eval.feature": result["feature"], "eval.flip": result["flip"]}
    listed = {
        f"{name}/{split}": row[f"{split}_list_sha256"]
        for name, row in result["targets"].items()
        for split in ("query", "gallery")
    }
    tests = {name: value for name, value in _mapping(trained_data).items() if name.endswith(("/query", "/gallery"))}
    # A run that held out people for its evaluation has no test set of its own.
    known = {name: value for name, value in tests.items() if name.split("/")[0] != HELD_OUT}
    protocol, precision = result["config"]["eval"]["protocol"], result["config"]["train"]["precision"]
    words = _names(result) if known and known != listed else []
    words += [protocol] if protocol != trained.get("eval.protocol", "cross-camera") else []
    words += [precision] if precision != trained.get("train.precision", precision) else []
    words += ["reranked"] if result["rerank"] else []
    feature, normalize = _features(result).values()
    words += [feature] if feature != trained.get("eval.feature", "cls") else []
    if normalize != trained.get("eval.normalize", "none"):
        words.append("unnormalised" if normalize == "none" else normalize)
    flip = "flip" if result["flip"] else "unflipped"
    words += [flip] if result["flip"] != trained.get("eval.flip", False) else []
    words += [f"expand{result['expand']}"] if result["expand"] != trained.get("eval.expand", 0) else []
    words += ["also"] if result.get("also") else []
    return words + (["lights"] if result["lights"] else [])


def _names(result: Mapping[str, Any]) -> list[str]:
    return [re.sub(r"[^A-Za-z0-9.]+", "_", name)[:40] for name in sorted(result["targets"])]


def _is_other_test(before: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Return whether the same weights were tested on other data, and the new data is not the run's own."""
    new, trained = _subject(result), _mapping(result["trained_with"])
    own = trained.get("eval.data.root" if trained.get("eval.data.name") else "data.root")
    same_weights = before["weights_sha256"] == new["weights_sha256"]
    return same_weights and before["tests"] != new["tests"] and result["data"]["root"] != own


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a value from a checkpoint if it is a mapping, otherwise an empty mapping."""
    return value if isinstance(value, Mapping) else {}


def _hash(subject: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:8]
