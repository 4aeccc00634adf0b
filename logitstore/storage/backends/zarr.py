"""``zarr``: a shard is a Zarr v3 group; each array one sharding-codec file that can also be memory-mapped.

Rows are appended to the array files as they come, so a shard needs no memory of its size. The metadata is
zarr's own; the data file follows the sharding codec of the Zarr v3 specification (inner chunks one after
the other, then the index of (offset, nbytes) pairs and its CRC-32C), with every inner chunk written.
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
_TABLE = ("table/start", "table/crc32c")


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
        """The root and ``shards`` are groups, so that ``zarr.open_group(STORE)`` shows all of it."""
        for name, attributes in (("zarr.json", {"logitstore": about}), ("shards/zarr.json", {})):
            if not place.exists(name):
                place.write(name, _group(attributes))


def _group(attributes: dict[str, Any]) -> bytes:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.group import GroupMetadata

    metadata = GroupMetadata(attributes=attributes)
    return metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()


def parse(setting: str | None) -> ZarrStorage:
    """``zarr`` or ``zarr:COMPRESSOR``."""
    if setting is not None and setting not in COMPRESSORS:
        raise UsageError(f"no compressor {setting!r}", do=f"Known: {', '.join(COMPRESSORS)}.")
    return ZarrStorage(setting or "none")
