"""How transducers of public frameworks are driven from outside. One file a convention."""

from .base import Drive, Found, find, search, sides

__all__ = ["Drive", "Found", "find", "search", "sides"]
