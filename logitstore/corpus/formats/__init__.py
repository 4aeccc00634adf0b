"""File formats of manifests, one module each."""

from .base import ManifestFormat, ManifestLine, find_format, recognise

__all__ = ["ManifestFormat", "ManifestLine", "find_format", "recognise"]
