r"""Embed crops of people, and store their features in a gallery for `nrsrd search` and `nrsrd cluster`.

  nrsrd embed crops/ --model runs/night --gallery gallery
  nrsrd embed crops/ more/ one.jpg list.csv --model runs/night --gallery gallery
  nrsrd embed crops/ … --pattern '(?P<camera>c\d+)_(?P<time>\d{14})' --check     shows what it reads from names
  nrsrd embed crops/ … --shard 3/16                                       the third of 16 processes, on any machine

Crops are images in folders at any depth, or rows of a manifest. A manifest is a CSV file with the column path (relative
to the manifest) and, if known, camera, time, person, track and columns of your own. A second call embeds only files
that are new or have changed, and marks those that are gone. If the command is killed, run it again to continue. A
gallery belongs to one model.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

from .command import Parser, add_embedding_flags, one_line
from .data.crops import KNOWN, Source, crops_of, make_source, warn_links
from .errors import InputError, counted, say

# How many crops --check shows.
SHOWN = 5


def main() -> None:
    arguments = _read_arguments()
    sources = [make_source(path, arguments.pattern, arguments.time_format) for path in arguments.crops]
    if arguments.check:
        say(*check(sources))
        warn_links(sources)
        return
    # Import these after reading the arguments, so that --help is quick.
    from .gallery.embed import about, check_cameras, describe, embed, make_plan, warn_unreadable
    from .gallery.lock import writing
    from .gallery.store import Gallery, summary
    from .retrieval.embedding import Embedder

    shard = arguments.shard
    embedder = Embedder.load(
        arguments.model,
        batch_size=arguments.batch_size,
        precision=arguments.precision,
        flip=arguments.flip,
        feature=arguments.feature,
    )
    # Before the gallery is created, refuse crops whose camera the model does not know.
    check_cameras(sources, embedder)
    with writing(arguments.gallery, f"{shard[0]}-of-{shard[1]}" if shard else ""):
        gallery = Gallery.create(arguments.gallery, about(embedder, arguments.model))
        shared = "://" in gallery.uri
        if shared:
            gallery.remove_copies()
        known = gallery.known()
        plan = make_plan(sources, known, shard, embedder.description.spec.needs_cameras)
        start = time.perf_counter()
        faults = embed(plan.embed, gallery, embedder, known)
        unreadable = [*plan.unreadable, *faults.values()]
        # The file of such a crop can no longer be read, so its stored feature shows a picture that is gone.
        plan.gone += [path for path in faults if path in known and not known[path].vanished]
        seconds = time.perf_counter() - start
        describe(plan.describe, gallery)
        gallery.mark(plan.back, vanished=False)
        gallery.mark(plan.gone, vanished=True)
        if shared and (copies := gallery.remove_copies()):
            say(f"{counted(copies, 'crop')} that another process embedded at the same time left out")
        # With shards, other processes may still be writing, and the joined files would conflict with theirs.
        if not shard:
            gallery.compact()
        warn_unreadable(unreadable)
        if not shard and not gallery.count():
            raise InputError(f"no crop can be read, so the gallery {arguments.gallery} has none; give readable images")
    warn_links(sources)
    embedded = len(plan.embed) + len(plan.unreadable) - len(unreadable)
    counts = {
        "unchanged": plan.unchanged,
        "described anew": len(plan.describe),
        "there again": len(plan.back),
        "vanished": len(plan.gone),
        "unreadable": len(unreadable),
    }
    rate = f" at {embedded / seconds:.0f} images/s" if embedded else ""
    others = "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    say(f"{counted(embedded, 'crop')} embedded{rate}{others}; {arguments.gallery}: {summary(gallery)}")


def check(sources: Sequence[Source]) -> list[str]:
    """Return lines that list the first crops and how many crops have each column."""
    lines, filled = [], dict.fromkeys(map(str, KNOWN), 0)
    crops = crops_of(sources)
    for crop in crops.values():
        if len(lines) < SHOWN:
            known = ", ".join(f"{name} {value}" for name, value in crop.values.items() if value is not None)
            lines.append(f"{crop.path}: {known or 'only its path'}")
        for name, value in crop.values.items():
            filled[name] = filled.get(name, 0) + (value is not None)
    told = ", ".join(f"{name} of {count:,}" for name, count in filled.items() if count)
    return [*lines, f"{counted(len(crops), 'crop')}; known: {told or 'nothing but paths'}; nothing was embedded"]


def shard(text: str) -> tuple[int, int]:
    """Parse a shard: "3/16" gives (3, 16)."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text} is not a shard like 3/16, from 1/16 to 16/16")
    return number, count


def _read_arguments() -> argparse.Namespace:
    parser = Parser(__doc__, "nrsrd embed")
    parser.add_argument("crops", nargs="+", type=Path, metavar="CROPS", help="folders, images or manifests (.csv)")
    parser.add_argument("--model", help="the training run or checkpoint to embed with")
    parser.add_argument("--gallery", help="the folder of the gallery, or a LanceDB address such as s3://bucket/gallery")
    parser.add_argument(
        "--pattern",
        default="",
        help="a regular expression to search for in each path, relative to its folder; its named groups become "
        "columns: camera, time, person, track, or your own",
    )
    parser.add_argument(
        "--time-format",
        default="",
        help="the format of times, as in Python's strptime; default: ISO 8601, 20261127193000 or seconds",
    )
    parser.add_argument("--check", action="store_true", help="only show what is known of the crops, and embed nothing")
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="embed only part I of N of the crops, which are divided by their paths",
    )
    add_embedding_flags(parser)
    arguments = parser.parse_args()
    if not arguments.check and not (arguments.model and arguments.gallery):
        parser.error("give --model and --gallery, or --check to see what would be read")
    return arguments


def command() -> None:
    """Run `nrsrd embed` with the arguments of the process."""
    one_line(main, "interrupted; embedded crops are kept, and the same command continues")


if __name__ == "__main__":
    command()
