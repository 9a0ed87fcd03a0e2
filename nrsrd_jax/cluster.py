"""Group the crops of a gallery into people, without labels.

  nrsrd cluster --gallery gallery --output groups.csv
  nrsrd cluster --gallery gallery --report groups.html              also a page, the doubtful groups first
  nrsrd cluster --gallery gallery --must-link track                 crops of one track (of one camera) stay together
  nrsrd cluster --gallery gallery --where "camera = 'c1'" --method hdbscan --min-size 4

groups.csv has a row for each crop: path, group (a number from 0; empty if the crop is in no group), doubt, camera, time
and person. Crops of one camera at the same time are never in one group; --same-time says how far apart that may be.
If one person is seen several times at one time, because times are whole seconds, use --same-time none.

The doubt of a group, in 0..1, is the distance of its weakest link: without this link it would fall into two.

How to choose: k1 is about the number of crops of a person; if people have many more, they are torn apart. If groups mix
people, lower --eps; if people are torn apart, raise it. On the demo's 424 night crops, 9 of a person, the mean F of
pairs of three models was best with k1 20 and eps 0.35 (0.34; 0.23 at 0.50), and better with k1 10, k2 3 and eps 0.50
(0.39). HDBSCAN, which chooses a distance for each group, had 0.36 and 0.40 with an eps of 0.8 and hardly less with 0.6.

If crops have a known person, the groups are compared with them; the result never depends on them.
"""

import argparse
import math
from typing import TYPE_CHECKING, Any

from .command import Parser, number, one_line, positive
from .errors import InputError, counted, say

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

NORMALIZE = ("none", "gallery", "camera", "brightness")
EPS = {"dbscan": 0.35, "hdbscan": 0.8}
COLUMNS = ("path", "camera", "time", "person", "track", "brightness")
SCORES = {"precision": "precision of pairs", "recall": "recall", "f": "F", "nmi": "NMI", "ami": "AMI"}


def main() -> None:
    options = _read_options()
    # Not imported before the flags are parsed, so that --help is quick.
    import jax

    from .files import refuse_same_files, writable_file
    from .gallery.conditions import PRESENT, in_brackets
    from .gallery.store import Gallery
    from .retrieval.clustering import cluster, memory_bound, scores

    output = writable_file(options.output, "--output")
    report = writable_file(options.report, "--report") if options.report else None
    refuse_same_files([output, report] if report else [output])
    gallery = Gallery.open(options.gallery)
    table, features = gallery.read(f"{PRESENT} AND {in_brackets(options.where)}" if options.where else PRESENT, COLUMNS)
    if not len(features):
        condition = f" with {options.where}" if options.where else ""
        raise InputError(f"the gallery {options.gallery} has no crops{condition}")
    cameras, times, tracks = _known(table, options)
    gibibytes = memory_bound(len(features), features.shape[1], options.k1, options.k2, jax.device_count()) / 2**30
    say(f"{counted(len(features), 'crop')}, k1 {options.k1}: at most {gibibytes:.1f} GiB of memory")
    features = _normalized(features, table, cameras, options.normalize)
    groups = cluster(
        features,
        eps=options.eps,
        min_size=options.min_size,
        method=options.method,
        k1=options.k1,
        k2=options.k2,
        tracks=tracks if options.must_link else None,
        cameras=cameras,
        times=times,
        same_time=options.same_time,
    )
    people = table["person"].to_numpy(zero_copy_only=False)
    labelled = table["person"].is_valid().to_numpy()
    results = scores(groups.labels[labelled], people[labelled].astype(str)) if labelled.any() else {}
    found = f"{counted(len(groups.doubt), 'group')}; {counted(int((groups.labels < 0).sum()), 'crop')} in no group"
    lines = [found]
    if results:
        of = "" if labelled.all() else f" of the {counted(int(labelled.sum()), 'crop')} with a known person"
        told = ", ".join(f"{SCORES[name]} {value:.3f}" for name, value in results.items())
        lines.append(f"compared with the known people{of}: {told}")
    _write(output, table, groups)
    if report:
        from .report.groups import write_groups

        facts = [
            f"gallery {options.gallery}",
            f"{options.method}, eps {options.eps:g}, k1 {options.k1}, k2 {options.k2}",
        ]
        facts += [f"at least {options.min_size} crops a group"]
        facts += [f"normalised by {options.normalize}"] * (options.normalize != "none")
        facts += ["crops of one track together"] * bool(options.must_link)
        write_groups(report, table, groups, [" · ".join(facts), *lines], f"all are in {output.name}")
    say(*lines[1:], f"{found}; written to {output}" + (f", {report}" if report else ""))


def _read_options() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd cluster")
    parser.add_argument("--gallery", required=True, metavar="G", help="a gallery that nrsrd embed made")
    parser.add_argument("--where", default="", metavar="SQL", help="only these crops, such as \"camera = 'c1'\"")
    parser.add_argument("--output", default="groups.csv", help="the file to write or replace; default: groups.csv")
    parser.add_argument("--report", default="", metavar="PAGE.html", help="a page of the groups to write or replace")
    parser.add_argument("--method", choices=("dbscan", "hdbscan"), default="dbscan", help="default: dbscan")
    parser.add_argument(
        "--eps",
        type=float,
        help="the largest distance that joins two crops, in 0..1; default: 0.35, or 0.8 with hdbscan, which chooses "
        "smaller ones by itself",
    )
    parser.add_argument("--min-size", type=positive, default=2, metavar="N", help="crops of a group; default: 2")
    parser.add_argument("--k1", type=positive, default=20, help="neighbours of a crop; default: 20")
    parser.add_argument("--k2", type=positive, default=6, help="crops to average neighbours over; default: 6")
    parser.add_argument("--must-link", choices=("track",), help="keep the crops of a camera's track in one group")
    parser.add_argument(
        "--same-time",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="crops of one camera whose times differ by at most SECONDS show different people; default: 0; none: they "
        "may show one",
    )
    parser.add_argument(
        "--normalize",
        choices=NORMALIZE,
        default="none",
        help="scale features by the mean and deviation of the gallery, or of crops of one camera or of like brightness",
    )
    options = parser.parse_args()
    if options.eps is None:
        options.eps = EPS[options.method]
    if not 0 < options.eps < 1:
        parser.error(f"argument --eps: {options.eps:g} is not between 0 and 1")
    if options.min_size < 2:
        parser.error("argument --min-size: a group has at least 2 crops")
    return options


def _seconds(text: str) -> float | None:
    """Return a number of seconds, or None for "none"."""
    if text == "none":
        return None
    seconds = number(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is neither a number of seconds of at least 0 nor none")
    return seconds


def _known(table: "pa.Table", options: argparse.Namespace) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Return the cameras, times and tracks of crops. InputError if an option needs what is unknown of all of them."""
    import numpy as np

    from .retrieval.linking import contested

    cameras, times, tracks = _numbered(table["camera"]), table["time"].to_numpy(), _numbered(table["track"])
    for needed, option, name in (
        (options.normalize == "camera", "--normalize camera", "camera"),
        (options.must_link == "track", "--must-link track", "track"),
    ):
        if needed and not table[name].is_valid().to_numpy().any():
            raise InputError(f"{option}: no crop of {options.gallery} has a {name}; embed crops with {name}s")
    # A tracker counts anew in each camera.
    tracks = np.where(tracks < 0, -1, tracks * (cameras.max() + 2) + cameras + 1)
    if options.same_time is not None:
        apart = contested(cameras, times, options.same_time)
        if len(apart):
            several = counted(len(apart), "crop shares", "crops share")
            say(f"{several} camera and time with another: they are kept apart, unless you give --same-time none")
        tracked = apart[tracks[apart] >= 0]
        if len(np.unique(np.stack([tracks, times.astype(np.int64)])[:, tracked], axis=1).T) < len(tracked):
            say(
                "warning: some tracks have several crops at one time, so times seem to be rounded, which tears people "
                "apart: give --same-time none",
                error=True,
            )
    return cameras, times, tracks


def _numbered(column: "pa.ChunkedArray") -> "np.ndarray":
    """Return a number for each different text of a column, −1 for null; int [N]."""
    return column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy().astype(int)


def _normalized(features: "np.ndarray", table: "pa.Table", cameras: "np.ndarray", how: str) -> "np.ndarray":
    """Return the features, normalised as the user chose. Each number depends on the whole gallery then."""
    import numpy as np

    from .retrieval.standardize import brightness_groups, standardize_groups

    if how == "none":
        return features
    groups = {"gallery": np.zeros(len(features), int), "camera": cameras}
    if how == "brightness":
        brightness = table["brightness"].to_numpy()
        groups["brightness"] = brightness_groups(np.nan_to_num(brightness), brightness[:0])[0]
    return standardize_groups(features, features[:0], groups[how], groups[how][:0])[0]


def _write(output: Any, table: "pa.Table", groups: Any) -> None:
    """Write the CSV file: a row for each crop."""
    from .files import write_csv

    rows = [
        {
            "path": row["path"],
            "group": group if group >= 0 else "",
            "doubt": f"{groups.doubt[group]:.4f}" if group >= 0 else "",
            "camera": row["camera"] or "",
            "time": row["time"].isoformat() if row["time"] is not None else "",
            "person": row["person"] or "",
        }
        for row, group in zip(table.to_pylist(), groups.labels.tolist(), strict=True)
    ]
    write_csv(output, rows, follow=True)


def command() -> None:
    """Run `nrsrd cluster` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
