r"""Search a gallery of crops for people: rank its crops by their similarity to each query.

  nrsrd search query.jpg --gallery gallery
  nrsrd search queries/ --gallery gallery --top 20 --output matches.json --csv matches.csv --report page
  nrsrd search --like crops/0007.jpg --gallery gallery --camera c3 --since 2026-11-27T18:00
  nrsrd search queries/ --gallery gallery --not-same-camera --pattern '(?P<camera>c\d+)' --threshold calibration.json

Queries are images, folders or manifests, as in `nrsrd embed`, or crops of the gallery itself, with --like. A crop never
matches itself. The search is exact unless you use the index of `nrsrd index`, with --approximate. The similarity is a
cosine in -1..1, not a probability: `nrsrd calibrate` measures what it means for a model.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import Parser, one_line, positive
from .data.crops import crops_of, make_source
from .errors import InputError, counted, say
from .files import absolute, expanded, refuse_same_files, writable_file, write_csv, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .gallery.matching import Matches, Queries
    from .gallery.store import Gallery
    from .retrieval.calibration import Calibration

SHOWN = 10  # queries in the table on the terminal
FMR = 0.01  # the default false-match rate of --threshold FILE
LISTED = 3  # matches of each query in the table


def main() -> None:
    arguments = _read_arguments()
    files = {
        name: writable_file(path, f"--{name}")
        for name in ("output", "csv", "report")
        if (path := getattr(arguments, name))
    }
    refuse_same_files(files.values())
    # Import these after reading the arguments, so that --help is quick.
    from .gallery.matching import search, search_approximately, search_whole
    from .gallery.store import Gallery

    gallery = Gallery.open(arguments.gallery)
    where = condition(arguments, gallery)
    calibration = find_calibration(arguments, gallery)
    threshold = arguments.threshold
    if isinstance(threshold, Path):
        assert calibration
        threshold = calibration.threshold_at(FMR if arguments.fmr is None else arguments.fmr)
    queries = read_queries(arguments, gallery)
    if arguments.not_same_camera and None in queries.cameras:
        path = queries.paths[queries.cameras.index(None)]
        raise InputError(
            f"--not-same-camera: the query {path} has no camera; give a --pattern that finds the camera in its name"
        )
    limits = {"top": arguments.top, "where": where, "other_cameras": arguments.not_same_camera}
    # k1, k2 and λ are the defaults of nrsrd eval, those of Zhong et al. 2017.
    whole = {"normalize": arguments.normalize, "rerank": (20, 6, 0.3) if arguments.rerank else None}
    if arguments.approximate:
        found = search_approximately(gallery, queries, **limits)
    elif arguments.normalize != "none" or arguments.rerank:
        found = search_whole(gallery, queries, **limits, **whole)
    else:
        found = search(gallery, queries, **limits)
    lists = match_lists(gallery, queries.paths, found, threshold, calibration)
    how = {
        "gallery": str(arguments.gallery),
        "crops": gallery.count(where),
        "where": where,
        "normalize": arguments.normalize,
        "rerank": arguments.rerank,
        "exact": not arguments.approximate,
        "transductive": arguments.normalize != "none" or arguments.rerank,
        "threshold": threshold,
        "calibration": str(calibration.path) if calibration else None,
        "model": gallery.about.model,
        **gallery.about.identity,
    }
    # All files have the same matches; the JSON file also says how they were found.
    if "output" in files:
        write_whole(files["output"], json.dumps({**how, "queries": lists}, indent=1) + "\n", follow=True)
    if "csv" in files:
        matches = [(each["path"], rank, match) for each in lists for rank, match in enumerate(each["matches"], 1)]
        # Matches may have different columns: the header needs each of them once.
        columns = list(dict.fromkeys(["path", "similarity", *(name for *_, match in matches for name in match)]))
        flat = [
            {"query": path, "rank": rank} | {name: match.get(name, "") for name in columns}
            for path, rank, match in matches
        ]
        write_csv(files["csv"], flat, True, ["query", "rank", *columns])
    if "report" in files:
        from .report.matches import write_matches

        write_matches(files["report"], how, lists)
    written = f"; written to {', '.join(map(str, files.values()))}" if files else ""
    matched = sum(bool(each["matches"]) for each in lists)
    least = "" if threshold is None else f" of a similarity of at least {threshold:.4f}"
    total, among = counted(len(lists), "query", "queries"), counted(how["crops"], "crop")
    mark = " (transductive: their order depends on all of these crops)" if how["transductive"] else ""
    say(*table(lists), f"{total}, {matched:,} with matches{least} among {among}{mark}{written}")


def condition(arguments: argparse.Namespace, gallery: "Gallery") -> str:
    """Return the arguments' condition on crops in SQL. InputError if it is invalid, or no crop meets it."""
    from .gallery.conditions import PRESENT, in_brackets, one_of, time_condition

    parts = [] if arguments.vanished else [PRESENT]
    if arguments.camera:
        parts.append(one_of("camera", arguments.camera))
    for name, sign in (("since", ">="), ("until", "<")):
        if text := getattr(arguments, name):
            parts.append(time_condition(f"--{name}", sign, text))
    if arguments.where:
        # Check the user's condition alone first, so that an error message shows only what the user wrote.
        gallery.count(arguments.where)
        parts.append(in_brackets(arguments.where))
    where = " AND ".join(parts)
    if not gallery.count(where):
        total = counted(gallery.count(), "crop")
        if not gallery.count():
            raise InputError(f"the gallery {gallery.uri} holds no crops; add some with nrsrd embed")
        if where == PRESENT:
            raise InputError(
                f"the files of all {total} of {gallery.uri} have vanished; put them back and run nrsrd embed again, or "
                "search with --vanished"
            )
        raise InputError(f"none of the {total} of {gallery.uri} fits {where}; {_hint(arguments, gallery)}")
    return where


def _hint(arguments: argparse.Namespace, gallery: "Gallery") -> str:
    """Return advice for a condition that no crop meets."""
    if (arguments.since or arguments.until) and not gallery.count("time IS NOT NULL"):
        return "no crop has a time: embed the crops again with a --pattern or a manifest that gives times"
    batches = gallery.batches(columns=("camera",), vectors=False) if arguments.camera else ()
    cameras = {camera for batch in batches for camera in batch["camera"].to_pylist()} - {None}
    if arguments.camera and not cameras:
        return "no crop has a camera: embed the crops again with a --pattern or a manifest that gives cameras"
    if arguments.camera and cameras.isdisjoint(arguments.camera):
        return f"its cameras are {', '.join(sorted(cameras)[:20])}"
    return "loosen the condition"


def find_calibration(arguments: argparse.Namespace, gallery: "Gallery") -> "Calibration | None":
    """Return the calibration of --threshold, or otherwise the one beside the model, if any.

    With --normalize it is None. InputError if the calibration of --threshold is of another model.
    """
    from .retrieval.calibration import calibration_beside, load_calibration

    named = isinstance(arguments.threshold, Path)
    if arguments.normalize != "none":
        if named:
            raise InputError("a calibration does not apply to normalised similarities; leave out --normalize")
        return None
    if not named:
        return calibration_beside(expanded(arguments.model or gallery.about.model), gallery.about.identity)
    calibration = load_calibration(arguments.threshold)
    calibration.check_model(gallery.about.identity)
    return calibration


def read_queries(arguments: argparse.Namespace, gallery: "Gallery") -> "Queries":
    """Return the queries with their features. InputError if a query is unreadable or not in the gallery."""
    from .gallery.matching import Queries, from_gallery
    from .retrieval.embedding import Embedder
    from .retrieval.files import cameras_for, embed_all

    if arguments.like:
        return from_gallery(gallery, [str(absolute(path)) for path in arguments.like])
    sources = [make_source(path, arguments.pattern, "") for path in arguments.queries]
    crops = list(crops_of(sources).values())
    identity = gallery.about.identity
    model = arguments.model or gallery.about.model
    try:
        embedder = Embedder.load(model, feature=identity["feature"], flip=identity["flip"])
    except InputError as error:
        raise (
            error if arguments.model else InputError(f"the gallery's model: {error}; name the model with --model")
        ) from error
    gallery.check_model(embedder.identity())
    paths = [crop.path for crop in crops]
    cameras: list[Any] = [crop.values.get("camera") for crop in crops]
    numbers = cameras_for(embedder.description, paths, cameras)
    found = embed_all(embedder, list(map(Path, paths)), numbers)
    return Queries(paths, found.features, cameras, found.brightness)


def match_lists(
    gallery: "Gallery",
    paths: "Sequence[str]",
    found: "Sequence[Matches]",
    threshold: float | None,
    calibration: "Calibration | None",
) -> list[dict[str, Any]]:
    """Return a dict for each query, as written to the output: its path, and its matches above the threshold."""
    # A crop may match several queries, but is read only once.
    rows = gallery.rows(sorted({int(row) for each in found for row in each.rows}), gallery.columns)
    lists = []
    for path, each in zip(paths, found, strict=True):
        matches = [_match(rows[int(row)], cosine) for row, cosine in zip(each.rows, each.similarity, strict=True)]
        # Only re-ranking gives distances; otherwise `each.distance` is empty.
        for match, distance in zip(matches, each.distance, strict=False):
            match["reranked_distance"] = round(float(distance), 6)
        matches = [match for match in matches if threshold is None or match["similarity"] >= threshold]
        if calibration:
            for match in matches:
                match["strangers"] = round(calibration.strangers(match["similarity"]), 1)
                match["meaning"] = calibration.statement(match["similarity"])
        lists.append({"path": path, "matches": matches})
    return lists


def _match(row: dict[str, Any], similarity: float) -> dict[str, Any]:
    """Return a match as written to the output: its path, similarity, and the columns that have a value."""
    # Size and time of change serve only nrsrd embed, which finds changed files by them.
    left = {
        name: value for name, value in row.items() if name not in ("path", "size", "modified") and value is not None
    }
    for name in ("time", "vanished"):
        if name in left:
            left[name] = left[name].isoformat()
    if "brightness" in left:
        left["brightness"] = round(left["brightness"], 4)
    known = {"camera": left.pop("camera", None), "time": left.pop("time", None)}
    return {"path": row["path"], "similarity": round(float(similarity), 6), **known, **left}


def table(lists: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table with the best matches of the first queries."""
    lines = []
    for each in lists[:SHOWN]:
        lines.append(each["path"])
        for rank, match in enumerate(each["matches"][:LISTED], 1):
            known = "".join(f"  {name} {match[name]}" for name in ("camera", "time") if match.get(name))
            meaning = f"  {match['meaning']}" if "meaning" in match else ""
            lines.append(f"  {rank}. {match['similarity']:7.4f}  {match['path']}{known}{meaning}")
        if not each["matches"]:
            lines.append("  no match")
    limits = [f"the first {SHOWN} queries"] if len(lists) > SHOWN else []
    limits += [f"the best {LISTED} matches of each"] if any(len(each["matches"]) > LISTED for each in lists) else []
    shown = f"this table shows {' and '.join(limits)}; --output, --csv and --report write all"
    return [*lines, shown] if limits else lines


def _read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd search")
    parser.add_argument("queries", nargs="*", type=Path, metavar="QUERY", help="images, folders or manifests (.csv)")
    parser.add_argument("--gallery", required=True, help="the gallery, as nrsrd embed made it")
    parser.add_argument(
        "--like",
        type=Path,
        action="append",
        metavar="PATH",
        help="use this crop of the gallery as a query; can be repeated",
    )
    parser.add_argument("--model", help="the model of the gallery, if it is not where the gallery says")
    parser.add_argument(
        "--top", type=positive, default=10, metavar="K", help="how many matches to find for each query; default: 10"
    )
    parser.add_argument("--camera", action="append", help="search only crops of this camera; can be repeated")
    parser.add_argument(
        "--not-same-camera", action="store_true", help="search only crops of other cameras than the query's"
    )
    parser.add_argument(
        "--since", metavar="TIME", help="search only crops from this time on, such as 2026-11-27T18:00 (UTC)"
    )
    parser.add_argument("--until", metavar="TIME", help="search only crops from before this time")
    parser.add_argument(
        "--where", metavar="SQL", help="search only crops that meet this condition, such as \"floor = '2'\""
    )
    parser.add_argument("--vanished", action="store_true", help="also search crops whose files are gone")
    parser.add_argument(
        "--pattern", default="", help="a regular expression for the names of the queries, as in nrsrd embed"
    )
    parser.add_argument(
        "--threshold",
        type=_threshold,
        metavar="T|FILE",
        help="leave out matches whose similarity is below T, in -1..1, or below the threshold for --fmr in a FILE of "
        "nrsrd calibrate",
    )
    parser.add_argument(
        "--fmr",
        type=float,
        metavar="RATE",
        help=f"the false-match rate of --threshold FILE; default: {FMR}",
    )
    parser.add_argument(
        "--rerank", action="store_true", help="re-rank matches by k-reciprocal neighbours (transductive)"
    )
    parser.add_argument(
        "--normalize",
        choices=("none", "gallery", "camera", "brightness"),
        default="none",
        help="standardise features over the whole gallery, over crops of the same camera, or over crops of similar "
        "brightness (transductive); default: none",
    )
    parser.add_argument("--approximate", action="store_true", help="use the index that nrsrd index made")
    parser.add_argument("--output", metavar="FILE", help="write all matches as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write all matches as CSV")
    parser.add_argument("--report", metavar="FILE", help="write an HTML page that shows the matches, such as page.html")
    arguments = parser.parse_args()
    if bool(arguments.queries) == bool(arguments.like):
        parser.error("give either queries, or crops of the gallery with --like")
    if arguments.fmr is not None and not isinstance(arguments.threshold, Path):
        parser.error("--fmr needs a calibration: give --threshold FILE")
    if arguments.approximate and (arguments.rerank or arguments.normalize != "none"):
        parser.error("--rerank and --normalize compare all crops: leave out --approximate")
    return arguments


def _threshold(text: str) -> float | Path:
    """Parse --threshold: a similarity, or otherwise the path of a calibration."""
    try:
        value = float(text)
    except ValueError:
        return Path(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a similarity; give a number in -1..1")
    return value


def command() -> None:
    """Run `nrsrd search` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
