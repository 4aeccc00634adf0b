"""A file that is written once, with the number and the checksum of its bytes."""

from __future__ import annotations

from pathlib import Path

from ...schema.checksums import crc32c


class SummedFile:
    """A new file.

    Args:
        path: local path; must not exist.

    Attributes:
        bytes: number of the bytes written.
        crc: their CRC-32C.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb")
        self.bytes = self.crc = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self.bytes += len(data)
        self.crc = crc32c(data, self.crc)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
