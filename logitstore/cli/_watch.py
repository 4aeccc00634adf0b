"""Progress of a store that is being filled, by any number of jobs, anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ..errors import StoreError
from ..pictures.amounts import size
from ..store.reader import Store, open_store
from ._terminal import clock


def watch(location: str, asked: int | None, wait: Callable[[], None]) -> Iterator[str]:
    """Yield a line whenever a store has grown, until it holds all utterances that are asked for.

    Args:
        location: folder or URL of the store, which need not exist yet.
        asked: number of utterances of the manifest; None where it is not known.
        wait: function that waits until the next look.
    """
    store: Store | None = None
    before = -1
    begin, first = time.monotonic(), 0
    while True:
        if store is None:
            store = _opened(location)
        count = 0 if store is None else len(store)
        if store is not None and before < 0:
            begin, first = time.monotonic(), count
        if count != before and store is not None:
            yield _line(store, count, asked, count - first, time.monotonic() - begin)
            before = count
        elif store is None and before < 0:
            yield f"{location}: no store yet"
            before = -2
        if asked is not None and count >= asked:
            return
        wait()


def _opened(location: str) -> Store | None:
    try:
        return open_store(location)
    except StoreError:
        return None


def _line(store: Store, count: int, asked: int | None, grown: int, elapsed: float) -> str:
    """Return one line: utterances, audio, bytes, shards; and the time that is left, where both can be known."""
    entries = [store.entry(shard) for shard in store.shards]
    skipped = sum(len(entry.skipped) for entry in entries)
    parts = [
        f"{count}/{asked} utterances" if asked else f"{count} utterances",
        f"{sum(entry.seconds for entry in entries) / 3600:.3f} h",
        size(sum(entry.bytes for entry in entries)),
        f"{len(entries)} shards",
    ]
    if skipped:
        parts[0] += f" ({skipped} skipped)"
    if asked and grown and elapsed > 0:
        parts.append(f"ETA {clock((asked - count) / grown * elapsed)}")
    return ", ".join(parts)
