"""Where a store lives. One file per kind of place; a URL's scheme names it."""

from ._disk_errors import disk_errors
from .base import Place, open_place

__all__ = ["Place", "disk_errors", "open_place"]
