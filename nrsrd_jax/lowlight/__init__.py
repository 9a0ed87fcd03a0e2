"""Physics-based low-light degradation of well-lit images."""

from .degradation import PRESETS, Degradation, degrade, degrade_to, resolve

__all__ = ["PRESETS", "Degradation", "degrade", "degrade_to", "resolve"]
