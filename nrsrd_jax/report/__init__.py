"""One self-contained HTML page that shows an evaluation: numbers, curves, ranked lists and attention."""

from .page import report_file, write_report

__all__ = ["report_file", "write_report"]
