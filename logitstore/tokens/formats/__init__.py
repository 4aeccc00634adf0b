"""Token tables as other toolkits write them. One file a format; its name opens the file."""

from .base import TokenFormat, read_table, recognise

__all__ = ["TokenFormat", "read_table", "recognise"]
