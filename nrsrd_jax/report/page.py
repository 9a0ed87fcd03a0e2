"""Write the results of an evaluation as one HTML file that needs no other file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ..analysis.maps import Probe
from ..data.datasets import Split
from ..data.protocol import Target
from ..errors import InputError, counted, printable
from ..files import writable_folder, written_whole
from ..metrics_log import TITLES
from ..retrieval.calibration import Calibration
from ..retrieval.ranking import RankMetrics
from ..retrieval.scoring import Evaluation
from .curves import read_curves
from .overlays import make_overlays
from .pictures import make_pictures
from .ranked import LEFT_OUT, RESOLUTION, RIGHT, WRONG, Pairs, RankedList, read_ranking

# The most bytes of the whole file. Pictures get the bytes that everything else leaves.
PAGE_BYTES = 14_500_000
# The most bytes of all maps. If not all fit, only the worst queries have maps.
MAP_BYTES = 3_000_000
# The most maps of a query.
MAPS = 4
TOP = 10
OUTCOMES = (RIGHT, WRONG, LEFT_OUT)
LEFT_OUT_WORDS = {"cross-camera": "same camera, left out", "all-cameras": "copy of the query, left out"}
# The page first shows the threshold with 1 false match in this many impostor pairs.
USUAL_RATE = 1000
HERE = Path(__file__).parent
# The images of query and gallery, uint8 [N, H, W, 3] each.
Images = tuple[np.ndarray, np.ndarray]


def report_file(folder: str) -> Path:
    """Return the report's file in `folder`, which is created if it is missing.

    Raises:
        InputError: the file cannot be written, or is a folder or a symbolic link.
    """
    path = writable_folder(folder, "--report") / "index.html"
    if path.is_dir():
        raise InputError(f"--report: {path} is a folder, but must be the report's file; name another folder")
    if path.is_symlink():
        raise InputError(f"--report: {path} is a symbolic link; remove it, or name another folder")
    return path


def write_report(
    path: Path,
    name: str,
    result: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    targets: Mapping[str, Target],
    images: Mapping[str, Images],
    probe: Probe | None,
    workdir: Path,
    calibration: Calibration | None = None,
) -> None:
    """Write the page of an evaluation. It has less than 15 MB, and loads no other file.

    Args:
        path: the file to write.
        name: the heading.
        result: the content of result.json.
        evaluations: the Evaluation of each data set, by name.
        targets: the data sets.
        images: the images of each data set. Only those that the page shows are read.
        probe: the evaluated model, for maps of its attention; None for a page without maps.
        workdir: the run whose training curves are drawn.
        calibration: the model's calibration, to say how many strangers are this similar; None for no statement.

    Raises:
        InputError: the page cannot be written.
    """
    # A map takes less than 2 bytes for each patch, as base64, and about 40 bytes for its numbers.
    most_maps = MAP_BYTES // (MAPS * (2 * math.prod(probe.grid) + 40) * len(targets)) if probe else 0
    sections, wanted = {}, {}
    for key, target in targets.items():
        lists, pairs = read_ranking(evaluations[key].distances, *target.labels, top=TOP)
        worst = worst_first(evaluations[key].metrics)
        shown = np.unique(np.concatenate([ranked.gallery for ranked in lists]))
        sections[key] = _section(target, evaluations[key], result, lists, pairs, shown, calibration)
        overlays = make_overlays(probe, images[key][0], worst[:most_maps]) if probe else []
        sections[key]["maps"] = {"grid": probe.grid if probe else (0, 0), "rows": worst[:most_maps].tolist()}
        sections[key]["maps"]["kinds"] = [overlay.to_json() for overlay in overlays]
        wanted[key] = by_importance(worst, lists), {i: place for place, i in enumerate(shown.tolist())}
        sections[key]["pictures"] = {"query": [None] * len(target.query), "gallery": [None] * len(shown)}
        # With a large number of missing pictures, the size of the page includes the sentence about them.
        sections[key]["pictures"] |= {"missing": 10**9, "height": 0}
    page = {"name": name, "result": result, "charts": read_curves(workdir)}
    # Render the page without pictures first, to see how many bytes they may take.
    left = max(0, PAGE_BYTES - len(_render(sections, **page)))
    total = sum(len(order) for order, _ in wanted.values())
    for key, (order, place) in wanted.items():
        _add_pictures(sections[key]["pictures"], order, place, images[key], left * len(order) // total)
    with written_whole(path) as partial:
        partial.write_bytes(_render(sections, **page))


def _add_pictures(
    pictures: dict, order: list[tuple[str, int]], place: dict[int, int], images: Images, budget: int
) -> None:
    """Add the pictures that `order` names, in at most `budget` bytes. `place` says where those of the gallery go."""
    query, gallery = images
    made = make_pictures([(query if part == "query" else gallery, i) for part, i in order], budget)
    for (part, i), picture in zip(order, made.items, strict=True):
        if picture:
            pictures[part][i if part == "query" else place[i]] = [picture.webp, picture.factor]
    pictures |= {"missing": made.items.count(None), "height": made.height}


def worst_first(metrics: RankMetrics) -> np.ndarray:
    """Return the indices of queries by rising average precision. Queries without a match come last."""
    return np.argsort(np.where(metrics.valid, metrics.average_precision, np.inf), kind="stable")


def by_importance(order: np.ndarray, lists: list[RankedList]) -> list[tuple[str, int]]:
    """Return the images that a page needs, each once: every query in `order`, followed by the images of its list."""
    wanted: dict[tuple[str, int], None] = {}
    for query in order.tolist():
        wanted |= {("query", query): None} | dict.fromkeys(("gallery", i) for i in lists[query].gallery.tolist())
    return list(wanted)


def _section(
    target: Target,
    evaluation: Evaluation,
    result: Mapping[str, Any],
    lists: list[RankedList],
    pairs: Pairs,
    shown: np.ndarray,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """Return everything that the page shows of one data set, except pictures and maps."""
    metrics = evaluation.metrics
    edges, genuine, impostor = pairs.bars()
    thresholds = [(one_in, *pairs.threshold(one_in)) for one_in in pairs.rates()]
    cmc = {"re-ranked" if evaluation.plain else "CMC": metrics.cmc}
    if evaluation.plain:
        cmc["not re-ranked"] = evaluation.plain.cmc
    places = [np.searchsorted(shown, ranked.gallery) for ranked in lists]
    # Features of length 1 have distances of at most 4, at a cosine of -1. Re-ranked distances are at most 1.
    per_distance = 100.0 if result["rerank"] else 50.0
    span = per_distance * (pairs.highest - pairs.lowest)
    digits = int(np.clip(2 - math.floor(math.log10(max(span, 1e-6))), 1, 6))

    def similarity(distance: float) -> float:
        return round(100 - per_distance * float(distance), digits + 2)

    def strangers(distance: float) -> list[int]:
        # The squared distance of features of length 1 is 2 − 2·cosine.
        return [round(calibration.strangers(1 - float(distance) / 2))] if calibration else []

    return {
        "left_out": LEFT_OUT_WORDS.get(result["config"]["eval"]["protocol"], "left out by the protocol"),
        "similarity": "similarity after re-ranking (%)" if result["rerank"] else "cosine similarity (%)",
        "digits": digits,
        "cmc": {name: [round(float(x), 5) for x in values] for name, values in cmc.items()},
        "bars": {
            "edges": [similarity(x) for x in edges[::-1]],
            "genuine": genuine[::-1].tolist(),
            "impostor": impostor[::-1].tolist(),
        },
        "pairs": {"genuine": int(pairs.genuine.sum()), "impostor": int(pairs.impostor.sum())},
        "resolution": RESOLUTION,
        "thresholds": [
            [one_in, similarity(limit), *(_short(x) if x == x else None for x in shares)]
            for one_in, limit, *shares in thresholds
        ],
        "usual": USUAL_RATE,
        "calibration": calibration
        and {
            "name": calibration.path.name,
            "people": calibration.people,
            "most": round(calibration.most),
            "thresholds": [[one_in, 100 * limit] for one_in, limit in calibration.round_thresholds()],
        },
        "outcomes": OUTCOMES,
        "query": _columns(target.query, np.arange(len(target.query)))
        | {
            "precision": [round(float(x), 4) if x == x else None for x in metrics.average_precision],
            "first": metrics.first_match.tolist(),
            "hidden": [ranked.hidden for ranked in lists],
            "lists": [
                [
                    [int(place), OUTCOMES.index(outcome), int(rank), similarity(distance), *strangers(distance)]
                    for place, outcome, rank, distance in zip(of, r.outcome, r.rank, r.distance, strict=True)
                ]
                for of, r in zip(places, lists, strict=True)
            ],
        },
        "gallery": _columns(target.gallery, shown),
    }


def _columns(split: Split, rows: np.ndarray) -> dict[str, list]:
    names = [without_controls(split.paths[i].name) for i in rows]
    return {"names": names, "ids": list(map(str, split.pids[rows].tolist())), "cameras": split.cameras[rows].tolist()}


def _short(number: float) -> float:
    return float(f"{number:.6g}")


def _render(sections: Mapping[str, dict], name: str, result: Mapping[str, Any], charts: list[dict]) -> bytes:
    environment = templates()
    environment.filters |= {"percent": lambda share: f"{100 * share:.1f}", "embedded": embedded, "flat": flat}
    environment.filters["counted"] = counted
    scripts = [(HERE / file).read_text(encoding="utf-8") for file in ("charts.js", "overlays.js", "page.js")]
    page = environment.get_template("page.html").render(
        name=name, result=result, sections=sections, charts=charts, metrics=TITLES, bytes_limit=PAGE_BYTES,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")), script=Markup("\n".join(scripts)),
    )  # fmt: skip
    return page.encode()


def without_controls(text: str) -> str:
    """Return text without control characters. Line breaks stay, because on a page they can forge nothing."""
    return "\n".join(map(printable, text.split("\n")))


def templates() -> jinja2.Environment:
    """Return the environment of the pages' templates, which pass all text through `without_controls`."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_finalize,
    )  # fmt: skip


def _finalize(value: Any) -> Any:
    return without_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embedded(data: Any) -> Markup:
    """Return JSON for a script element, escaped so that it cannot end the element or begin a comment or a tag."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as text by their full names: {"eval.rerank.k1": "20", …}."""
    rows = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{name}.")
        else:
            parts = value if isinstance(value, list | tuple) else [value]
            rows[prefix + name] = ", ".join("none" if part is None else str(part) for part in parts)
    return rows
