"""Places of stores: one module per kind of place, named like the scheme of its URLs."""

from ._disk_errors import disk_errors
from .base import Place, open_place

__all__ = ["Place", "disk_errors", "open_place"]
