"""Manifests, their file formats, and audio."""
