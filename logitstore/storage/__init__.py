"""Shards of records at a place: storage backends, the commit protocol, sealed entries and the index."""

from .base import ShardFile, StorageBackend, open_storage, parse_storage
from .shard import Shard

__all__ = ["Shard", "ShardFile", "StorageBackend", "open_storage", "parse_storage"]
