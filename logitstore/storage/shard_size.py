"""The size of a shard, as users write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError

DEFAULT_SHARD_SIZE = "auto"
DEFAULT_BYTES, MOST_UTTERANCES, FEWEST_UTTERANCES, SHARES = 256 * 10**6, 5000, 500, 64
_LIMIT = re.compile(r"(\d{1,9})(s|m|h|kB|MB|GB|)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class ShardSize:
    """The size of one shard, which is complete at the first limit that it reaches.

    Attributes:
        utterances: largest number of utterances; 0 for no limit.
        seconds: seconds of audio from which on a shard is complete; 0 for no limit.
        bytes: bytes of encoded records from which on a shard is complete; 0 for no limit.
    """

    utterances: int = 0
    seconds: float = 0.0
    bytes: int = 0

    @classmethod
    def parse(cls, text: str) -> ShardSize:
        """Parse limits with commas between them: utterances (``500``), audio (``90s``, ``30m``, ``2h``), ``256MB``.

        ``auto`` is 256 MB or 5000 utterances.
        """
        if text == DEFAULT_SHARD_SIZE:
            return cls(utterances=MOST_UTTERANCES, bytes=DEFAULT_BYTES)
        limits: dict[str, float] = {}
        for limit in text.split(","):
            found = _LIMIT.fullmatch(limit.strip())
            number = int(found[1]) if found else 0
            unit = found[2] if found else ""
            name = "seconds" if unit in _SECONDS else "bytes" if unit in _BYTES else "utterances"
            if not number or name in limits:
                raise UsageError(
                    f"{text!r} is not a shard size",
                    do="Give a number of utterances (500), an amount of audio (90s, 30m, 2h) or of bytes "
                    "(256MB), or several with commas between them; or auto.",
                )
            limits[name] = number * {**_SECONDS, **_BYTES, "": 1}[unit]
        utterances, seconds, size = (limits.get(n, 0) for n in ("utterances", "seconds", "bytes"))
        return cls(int(utterances), float(seconds), int(size))

    @classmethod
    def of_manifest(cls, text: str, utterances: int) -> ShardSize:
        """Parse the size of the shards of a manifest.

        ``auto`` is 256 MB or a 64th of the utterances, from 500 to 5000, so that several jobs have work.
        """
        size = cls.parse(text)
        if text != DEFAULT_SHARD_SIZE:
            return size
        share = -(-utterances // SHARES)
        return cls(utterances=min(MOST_UTTERANCES, max(FEWEST_UTTERANCES, share)), bytes=size.bytes)

    def complete(self, utterances: int, seconds: float, encoded_bytes: float) -> bool:
        """Return whether a shard of these sums has reached a limit."""
        return (
            0 < self.utterances <= utterances
            or 0 < self.seconds <= seconds
            or 0 < self.bytes <= encoded_bytes
        )
