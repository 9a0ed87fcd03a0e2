"""Delete crops from a gallery for good.

  nrsrd forget gallery --where "person = '17'"
  nrsrd forget gallery --before 2026-10-01
  nrsrd forget gallery --path crops/0007.jpg --yes

Without --yes it only says how many crops it would delete. It deletes the features of the crops and everything that is
known of them, also in older versions of the gallery. For this it writes the gallery again, which needs as much free
space as the gallery takes. It does not delete the image files. Delete them too, or `nrsrd embed` embeds them again.
"""

from pathlib import Path

from .command import Parser, one_line
from .errors import counted, say
from .files import absolute


def main() -> None:
    parser = Parser(__doc__, "nrsrd forget")
    parser.add_argument("gallery", help="the gallery, as nrsrd embed made it")
    parser.add_argument("--where", metavar="SQL", help="delete crops that meet this condition on columns")
    parser.add_argument("--before", metavar="TIME", help="delete crops from before this time (UTC)")
    parser.add_argument("--path", type=Path, action="append", default=[], help="delete this crop; can be repeated")
    parser.add_argument("--vanished", action="store_true", help="delete crops whose files are gone")
    parser.add_argument("--yes", action="store_true", help="really delete the crops")
    arguments = parser.parse_args()
    # Import these after reading the arguments, so that --help is quick.
    from .gallery.conditions import in_brackets, one_of, time_condition
    from .gallery.lock import writing
    from .gallery.matching import FEWEST, has_index, make_index
    from .gallery.store import Gallery

    parts = [in_brackets(arguments.where)] if arguments.where else []
    if arguments.before:
        parts.append(time_condition("--before", "<", arguments.before))
    if arguments.path:
        parts.append(one_of("path", [str(absolute(path)) for path in arguments.path]))
    if arguments.vanished:
        parts.append("vanished IS NOT NULL")
    if not parts:
        parser.error("say which crops to delete: --where, --before, --path or --vanished")
    gallery = Gallery.open(arguments.gallery)
    where = " AND ".join(parts)
    count, total = gallery.count(where), gallery.count()
    if arguments.before and (unknown := gallery.count("time IS NULL")):
        say(f"warning: {counted(unknown, 'crop has', 'crops have')} no time, so --before keeps them", error=True)
    if not arguments.yes:
        say(f"{count:,} of {counted(total, 'crop')} would be deleted: {where}; --yes deletes them")
        return
    with writing(arguments.gallery):
        indexed = has_index(gallery)
        count = gallery.delete(where)
        total = count + gallery.count()
        # The index went with the old table: it held the deleted features, too.
        if indexed and gallery.count() >= FEWEST:
            make_index(gallery)
    if count:
        say("image files are not deleted: delete them too, or nrsrd embed embeds them again")
    say(f"{counted(count, 'crop')} deleted from {arguments.gallery}; {total - count:,} are left")


def command() -> None:
    """Run `nrsrd forget` with the arguments of the process."""
    one_line(main, "interrupted; run the same command again: deleted features may still be in files of the gallery")


if __name__ == "__main__":
    command()
