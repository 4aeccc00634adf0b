"""storage.backends."""
