"""Own crops: their features in a gallery, to search and to group."""

from .store import Gallery

__all__ = ["Gallery"]
