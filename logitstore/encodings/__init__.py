"""How rows of logits become named arrays, and back. One file an encoding; its name opens the file."""

from .base import Encoding, parse_encoding

__all__ = ["Encoding", "parse_encoding"]
