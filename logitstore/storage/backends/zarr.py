"""The storage backend ``zarr``: a shard is a Zarr v3 group; each array is one file of the sharding codec.

Records are appended to the array files when they are added, so a shard need not fit into memory. zarr
writes the metadata. The data file follows the sharding codec of the Zarr v3 specification (all inner chunks
in order, then the index of (offset, nbytes) pairs and its CRC-32C); without a compressor it can be
memory-mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...schema.spec import Column
from ..base import Shard, ShardContents
from ..places import Place
from ._zarr_read import open_zarr
from ._zarr_write import ZarrShardWriter

COMPRESSORS = ("none", "zstd", "blosc")


@dataclass(frozen=True)
class ZarrStorage:
    """Zarr v3 groups.

    Attributes:
        compressor: ``none`` (mappable), ``zstd`` or ``blosc`` (byte shuffle and zstd) on the inner chunks.
    """

    compressor: str = "none"

    def __str__(self) -> str:
        return "zarr" if self.compressor == "none" else f"zarr:{self.compressor}"

    def path(self, shard: str) -> str:
        return f"shards/{shard}"

    def create(self, staged: Path, shard: str, columns: Sequence[Column]) -> ZarrShardWriter:
        return ZarrShardWriter(staged, self.path(shard), self.compressor, columns)

    def open(self, place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
        return open_zarr(place, self.path(shard), self.compressor, contents, columns)

    def describe(self, place: Place, about: dict[str, Any]) -> None:
        """Make the root and ``shards`` Zarr groups, so that ``zarr.open_group(STORE)`` shows all shards."""
        for name, attributes in (("zarr.json", {"logitstore": about}), ("shards/zarr.json", {})):
            if not place.exists(name):
                place.write(name, _group(attributes))


def _group(attributes: dict[str, Any]) -> bytes:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.group import GroupMetadata

    metadata = GroupMetadata(attributes=attributes)
    return metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()


def parse(setting: str | None) -> ZarrStorage:
    """Return the backend for ``zarr`` or ``zarr:COMPRESSOR``; raise ``UsageError`` for an unknown one."""
    if setting is not None and setting not in COMPRESSORS:
        raise UsageError(f"there is no compressor {setting!r}", do=f"Known: {', '.join(COMPRESSORS)}.")
    return ZarrStorage(setting or "none")
