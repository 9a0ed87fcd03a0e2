"""One self-contained HTML page that shows an evaluation: numbers, curves, ranked lists and attention."""

from .page import check_folder, write_report

__all__ = ["check_folder", "write_report"]
