"""Plugins: how packages are found, and the catalog name -> class, per kind.

pluggy finds packages through the entry-point group ``npft``; each returns classes from one or more
of the four hooks. Everything after that is ordinary Python.
"""

from __future__ import annotations

from npft.plugins.catalog import Catalog, Entry
from npft.plugins.discovery import discover
from npft.plugins.options import build

__all__ = ["Catalog", "Entry", "build", "discover"]
