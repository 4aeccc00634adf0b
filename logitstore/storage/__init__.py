"""How rows become shard files, and back. One file a storage; it knows neither teachers nor encodings."""

from .base import Shard, ShardFile, Storage, open_storage, parse_storage

__all__ = ["Shard", "ShardFile", "Storage", "open_storage", "parse_storage"]
