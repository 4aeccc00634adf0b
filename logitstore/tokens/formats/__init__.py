"""Token tables as other toolkits write them. One file a format; its name opens the file."""

from .base import Format, read_table, recognise

__all__ = ["Format", "read_table", "recognise"]
