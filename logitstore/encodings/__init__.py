"""How rows of logits become named arrays, and back. One file an encoding; its name opens the file."""

from .base import Encoding, HeadEncoding, parse_encoding

__all__ = ["Encoding", "HeadEncoding", "parse_encoding"]
