"""How rows become shard files, and back. One file a storage; it knows neither teachers nor encodings."""

from .base import Shard, ShardFile, StorageBackend, open_storage, parse_storage

__all__ = ["Shard", "ShardFile", "StorageBackend", "open_storage", "parse_storage"]
