"""Where a store lives. One file per kind of place; a URL's scheme names it."""

from ._trouble import told
from .base import Place, open_place

__all__ = ["Place", "open_place", "told"]
