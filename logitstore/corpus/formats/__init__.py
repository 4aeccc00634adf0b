"""Lists of utterances as other toolkits write them. One file a format; its name opens the file."""

from .base import ManifestFormat, ManifestLine, find_format, recognise

__all__ = ["ManifestFormat", "ManifestLine", "find_format", "recognise"]
