"""Make an index of a large gallery, for `nrsrd search --approximate`.

  nrsrd index gallery [--check-recall]

An exact search reads every feature, which takes seconds for a gallery of a million crops. The index finds most of the
same crops in milliseconds. --check-recall searches for crops of the gallery in both ways, and prints what share of the
matches the index finds.
"""

from .command import Parser, one_line, positive
from .errors import InputError, counted, say


def main() -> None:
    parser = Parser(__doc__, "nrsrd index")
    parser.add_argument("gallery", help="the gallery, as nrsrd embed made it")
    parser.add_argument("--check-recall", action="store_true", help="compare the index with the exact search")
    parser.add_argument(
        "--queries", type=positive, default=100, help="the most queries of --check-recall; default: 100"
    )
    arguments = parser.parse_args()
    # Import these after reading the arguments, so that --help is quick.
    from .gallery.lock import writing
    from .gallery.matching import FEWEST, make_index, recall
    from .gallery.store import Gallery

    gallery = Gallery.open(arguments.gallery)
    total = gallery.count()
    if total < FEWEST:
        raise InputError(
            f"{arguments.gallery} has {counted(total, 'crop')}; an index needs {FEWEST}. Use the exact search, "
            "which is quick below a million crops"
        )
    with writing(arguments.gallery):
        make_index(gallery)
    say(f"index of {counted(total, 'crop')} made; nrsrd search --approximate uses it")
    if arguments.check_recall:
        top = 10
        used, share, fast, exact = recall(gallery, arguments.queries, top)
        say(
            f"of the {top} most similar crops the index finds {share:.1%} ({counted(used, 'query', 'queries')}); "
            f"a search for one crop takes {1000 * fast:.1f} ms instead of {1000 * exact:.1f} ms"
        )


def command() -> None:
    """Run `nrsrd index` with the arguments of the process."""
    one_line(main)


if __name__ == "__main__":
    command()
