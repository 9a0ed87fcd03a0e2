"""Group the crops of a gallery into people, without labels.

  nrsrd cluster --gallery gallery --output groups.csv
  nrsrd cluster --gallery gallery --report groups.html              also writes a page, the most doubtful groups first
  nrsrd cluster --gallery gallery --must-link track                 keeps crops of one track of a camera together
  nrsrd cluster --gallery gallery --where "camera = 'c1'" --method hdbscan --min-size 4

groups.csv has a row for each crop: path, group (a number from 0; empty if the crop is in no group), doubt, camera, time
and person. Crops that one camera took at the same time are never in one group. --same-time sets how many seconds apart
still count as the same time. If times are whole seconds, so that a person may have several crops with one time, use
--same-time none.

The doubt of a group, in 0..1, is the distance of its weakest link. Without this link, the group would split in two.

How to choose the options: set --k1 to about the number of crops of a person; with many more crops, a person is split
into several groups. If groups mix people, lower --eps; if people are split, raise it. On the demo's 424 night crops, 9
of each person, the F-measure of pairs, averaged over three models, was 0.34 with --k1 20 and --eps 0.35, the best eps
for this k1 (0.23 with 0.50), and 0.39 with --k1 10, --k2 3 and --eps 0.50. HDBSCAN, which chooses a distance for each
group, gave 0.36 and 0.40 for these two k1 with --eps 0.8, and hardly less with 0.6.

If the person of some crops is known, the groups are compared with these people. The groups never depend on them.
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
# DBSCAN joins crops within eps. HDBSCAN chooses a distance for each group, and eps is only its upper limit.
EPS = {"dbscan": 0.35, "hdbscan": 0.8}
COLUMNS = ("path", "camera", "time", "person", "track", "brightness")
SCORES = {"precision": "precision of pairs", "recall": "recall", "f": "F", "nmi": "NMI", "ami": "AMI"}


def main() -> None:
    options = _read_options()
    # Import these after reading the arguments, so that --help is quick.
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
    parser.add_argument("--gallery", required=True, metavar="G", help="the gallery, as nrsrd embed made it")
    parser.add_argument(
        "--where",
        default="",
        metavar="SQL",
        help="group only crops that meet this condition, such as \"camera = 'c1'\"",
    )
    parser.add_argument("--output", default="groups.csv", help="the file to write or replace; default: groups.csv")
    parser.add_argument(
        "--report", default="", metavar="PAGE.html", help="the page to write or replace, which shows the groups"
    )
    parser.add_argument(
        "--method", choices=("dbscan", "hdbscan"), default="dbscan", help="the clustering method; default: dbscan"
    )
    parser.add_argument(
        "--eps",
        type=float,
        help="the largest distance that joins two crops, in 0..1; default: 0.35, or 0.8 with hdbscan, which chooses a "
        "smaller one for each group",
    )
    parser.add_argument(
        "--min-size", type=positive, default=2, metavar="N", help="the fewest crops of a group; default: 2"
    )
    parser.add_argument("--k1", type=positive, default=20, help="how many neighbours each crop has; default: 20")
    parser.add_argument("--k2", type=positive, default=6, help="over how many crops to average neighbours; default: 6")
    parser.add_argument("--must-link", choices=("track",), help="keep the crops of one track of a camera in one group")
    parser.add_argument(
        "--same-time",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="treat crops of one camera as different people if their times differ by at most SECONDS; none: never; "
        "default: 0",
    )
    parser.add_argument(
        "--normalize",
        choices=NORMALIZE,
        default="none",
        help="standardise features by the mean and deviation of the whole gallery, of the crops of the same camera, or "
        "of crops of similar brightness; default: none",
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
    """Parse a number of seconds; "none" gives None."""
    if text == "none":
        return None
    seconds = number(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds; give 0 or more, or none")
    return seconds


def _known(table: "pa.Table", options: argparse.Namespace) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Return the cameras, times and tracks of crops. InputError if an option needs a column that is empty."""
    import numpy as np

    from .retrieval.linking import contested

    cameras, times, tracks = _numbered(table["camera"]), table["time"].to_numpy(), _numbered(table["track"])
    for needed, option, name in (
        (options.normalize == "camera", "--normalize camera", "camera"),
        (options.must_link == "track", "--must-link track", "track"),
    ):
        if needed and not table[name].is_valid().to_numpy().any():
            raise InputError(f"{option}: no crop of {options.gallery} has a {name}; embed crops with {name}s")
    # Trackers number the tracks of each camera from the start, so equal numbers at two cameras are different tracks.
    tracks = np.where(tracks < 0, -1, tracks * (cameras.max() + 2) + cameras + 1)
    if options.same_time is not None:
        apart = contested(cameras, times, options.same_time)
        if len(apart):
            several = counted(len(apart), "crop shares", "crops share")
            say(f"{several} camera and time with another: they are kept apart unless you give --same-time none")
        tracked = apart[tracks[apart] >= 0]
        if len(np.unique(np.stack([tracks, times.astype(np.int64)])[:, tracked], axis=1).T) < len(tracked):
            say(
                "warning: some tracks have several crops with the same time, so the times seem to be rounded, and "
                "people would be split: give --same-time none",
                error=True,
            )
    return cameras, times, tracks


def _numbered(column: "pa.ChunkedArray") -> "np.ndarray":
    """Return int [N]: equal numbers for equal texts of a column, and −1 for null."""
    return column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy().astype(int)


def _normalized(features: "np.ndarray", table: "pa.Table", cameras: "np.ndarray", how: str) -> "np.ndarray":
    """Return the features, standardised over the gallery, each camera or each level of brightness."""
    import numpy as np

    from .retrieval.standardize import brightness_groups, standardize_groups

    if how == "none":
        return features
    groups = {"gallery": np.zeros(len(features), int), "camera": cameras}
    if how == "brightness":
        brightness = table["brightness"].to_numpy()
        groups["brightness"] = brightness_groups(np.nan_to_num(brightness), brightness[:0])[0]
    # The function takes queries and a gallery. Here all crops are queries, and the gallery is empty.
    return standardize_groups(features, features[:0], groups[how], groups[how][:0])[0]


def _write(output: Any, table: "pa.Table", groups: Any) -> None:
    """Write the CSV file, with a row for each crop."""
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
