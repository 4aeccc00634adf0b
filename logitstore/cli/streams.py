"""``--stream NAME=ENCODING``, given several times."""

from __future__ import annotations

from ..errors import UsageError


def parse_streams(values: tuple[str, ...]) -> dict[str, str]:
    """Encoding by stream name; raises ``UsageError``."""
    streams: dict[str, str] = {}
    for value in values:
        name, found, encoding = value.partition("=")
        if not found or not encoding or name in streams:
            raise UsageError(
                f"--stream {value!r}", do="Give each stream once, as NAME=ENCODING: ctc=dense, rnnt=topk:16."
            )
        streams[name] = encoding
    return streams
