"""File formats of token tables, one module each."""

from .base import TokenFormat, read_table, recognise

__all__ = ["TokenFormat", "read_table", "recognise"]
