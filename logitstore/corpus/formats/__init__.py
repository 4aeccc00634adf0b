"""Lists of utterances as other toolkits write them. One file a format; its name opens the file."""

from .base import Format, Line, find_format, recognise

__all__ = ["Format", "Line", "find_format", "recognise"]
