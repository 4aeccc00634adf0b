"""Writing of ZIP archives whose members are stored as they are and begin where a memory map needs them."""

from __future__ import annotations

import struct
from collections.abc import Callable

ALIGNMENT = 64
_DATE, _MODE = 0x0021, 0o100644 << 16  # 1980-01-01; a regular file
_PLAIN, _ZIP64 = 20, 45  # versions needed to extract
_LIMIT = _MARK = 0xFFFFFFFF  # numbers from the limit on stand in a ZIP64 field, and the mark in their place
_PADDING = 0xD935  # id of an extra field that aligns data, as zipalign writes


class StoredZip:
    """An archive that is written from its first byte to its last.

    Args:
        write: function that appends bytes to the file.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._append, self._at = write, 0
        self._listed: list[tuple[bytes, int, int, int]] = []  # name, CRC-32, bytes, byte of the header

    def begin(self, name: str, size: int, crc32: int, align: bool = False) -> int:
        """Write the header of a member; the caller then writes exactly its bytes. Return where they begin.

        Args:
            name: name of the member, in ASCII.
            size: bytes of the member.
            crc32: CRC-32 (not CRC-32C) of these bytes.
            align: let the bytes begin at a multiple of ``ALIGNMENT``.
        """
        encoded, start, large = name.encode("ascii"), self._at, size >= _LIMIT
        extra = struct.pack("<HHQQ", 1, 16, size, size) if large else b""
        if align:
            gap = -(start + 30 + len(encoded) + len(extra)) % ALIGNMENT
            if gap:
                gap += ALIGNMENT if gap < 4 else 0  # an extra field has a head of four bytes
                extra += struct.pack("<HH", _PADDING, gap - 4) + bytes(gap - 4)
        short = _MARK if large else size
        version = _ZIP64 if large else _PLAIN
        head = struct.pack(
            "<HHHHHIIIHH", version, 0, 0, 0, _DATE, crc32, short, short, len(encoded), len(extra)
        )
        self._listed.append((encoded, crc32, size, start))
        self.write(b"PK\3\4" + head + encoded + extra)
        return self._at

    def write(self, data: bytes) -> None:
        """Append bytes of the member that was begun last."""
        self._append(data)
        self._at += len(data)

    def finish(self) -> None:
        """Write the central directory."""
        begin, size = self._at, 0
        for name, crc32, length, start in self._listed:
            numbers = [n for n in (length, length, start) if n >= _LIMIT]
            extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
            version = _ZIP64 if numbers else _PLAIN
            record = struct.pack(
                "<HHHHHHIIIHHHHHII",
                *(3 << 8 | version, version, 0, 0, 0, _DATE, crc32, _short(length), _short(length)),
                *(len(name), len(extra), 0, 0, 0, _MODE, _short(start)),
            )
            size += 4 + len(record) + len(name) + len(extra)
            self.write(b"PK\1\2" + record + name + extra)
        count, end = len(self._listed), self._at
        if begin >= _LIMIT or count >= 0xFFFF:
            body = struct.pack("<QHHIIQQQQ", 44, 3 << 8 | _ZIP64, _ZIP64, 0, 0, count, count, size, begin)
            self.write(b"PK\6\6" + body)
            self.write(b"PK\6\7" + struct.pack("<IQI", 0, end, 1))
        few, near = min(count, 0xFFFF), _short(begin)
        self.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, few, few, size, near, 0))


def _short(number: int) -> int:
    """Return a number as its four bytes hold it; ``_MARK`` where it stands in a ZIP64 field."""
    return _MARK if number >= _LIMIT else number
