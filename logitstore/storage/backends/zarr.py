"""The storage backend ``zarr``: a shard is a Zarr v3 group in one ZIP archive, which zarr's ZipStore opens.

The members of the archive are stored as they are. Each column is one array of the sharding codec; without a
compressor its items lie one behind the other, and records are read from a memory map of the archive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import FormatError, UsageError
from ...schema.spec import Column
from ..base import ShardContents
from ..places import Place
from ..shard import Shard, open_shard
from ._zarr_read import unpacker
from ._zarr_write import ZarrShardWriter

COMPRESSORS = ("none", "blosc")


@dataclass(frozen=True)
class ZarrStorage:
    """Zarr v3 groups, each in one ZIP archive.

    Attributes:
        compressor: ``none`` (mappable) or ``blosc`` (byte shuffle and zstd) on the inner chunks.
    """

    compressor: str = "none"

    def __str__(self) -> str:
        return "zarr" if self.compressor == "none" else f"zarr:{self.compressor}"

    def path(self, shard: str) -> str:
        return f"shards/{shard}.zarr.zip"

    def create(
        self, staged: Path, shard: str, columns: Sequence[Column], about: Mapping[str, Any]
    ) -> ZarrShardWriter:
        return ZarrShardWriter(staged, self.path(shard), self.compressor, columns, {**about, "shard": shard})

    def open(self, place: Place, shard: str, contents: ShardContents, columns: Sequence[Column]) -> Shard:
        raw, table, watch = open_shard(place, shard, contents, columns)
        compressed = self.compressor != "none"
        if compressed != bool(table.chunks) and columns:
            raise FormatError(f"its columns are not those of {self} (SPEC Z3)", where=f"shard {shard}")
        if compressed and len(table.pack) > 2:
            raise FormatError("it has more than one pack (SPEC Z1)", where=f"shard {shard}")
        return Shard(shard, raw, table, watch, unpacker(table, shard) if compressed else None)


def parse(setting: str | None) -> ZarrStorage:
    """Return the backend for ``zarr`` or ``zarr:COMPRESSOR``; raise ``UsageError`` for an unknown one."""
    if setting is not None and setting not in COMPRESSORS:
        raise UsageError(f"there is no compressor {setting!r}", do=f"Known: {', '.join(COMPRESSORS)}.")
    return ZarrStorage(setting or "none")
