"""The teacher's transcripts out of a store: pseudo-labels as JSON lines, or as a manifest."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..corpus.manifest import Manifest
from ..corpus.survey import to_line, write_bytes
from ..errors import MissingUtterance, UsageError
from .reader import Store, as_store
from .select import Where


def transcript_lines(
    store: Any,
    where: str = "",
    *,
    stream: str = "",
    manifest: Manifest | None = None,
    beside: Path = Path(),
) -> Iterator[bytes]:
    """Yield a JSON line in UTF-8 for every chosen record, with the teacher's own transcript as ``text``.

    Args:
        store: an opened store, or its folder or URL.
        where: condition that chooses records; see :mod:`logitstore.store.select`. Empty for all.
        stream: stream that the transcripts are taken from; empty for the first stream that has any.
        manifest: manifest of the recordings. The lines then follow its order, keep its fields and are a
            manifest themselves; without it they hold ``id``, ``text``, ``duration`` and ``score``, in stored
            order.
        beside: folder that relative audio paths start from.

    Raises:
        UsageError: the condition cannot be read, the stream is not in the store, or a chosen record has no
            transcript.

    Warns:
        UserWarning: no record meets the condition, so that there are no lines; with the likeliest reason.
    """
    store = as_store(store)
    names = store.spec.transcript_streams
    stream = stream or next(iter(names), "")
    if stream not in names:
        known = f"It has: {', '.join(names)}." if names else "No stream of this store has transcripts."
        raise UsageError(f"no stream {stream!r}", where=str(store.place), do=known)
    chosen = Where(where, names)
    if manifest is None:
        for meta in store.metadata():
            if chosen(meta):
                text, score = _transcript(meta, stream, store)
                line = {"id": meta["id"], "text": text, "duration": meta.get("seconds"), "score": score}
                yield (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8")
        _warn_of_nothing(chosen)
        return
    for utterance in manifest:
        try:
            meta = store.record(utterance.id, only=()).meta
        except MissingUtterance:
            continue
        if chosen(meta):
            text, _ = _transcript(meta, stream, store)
            yield to_line(replace(utterance, text=text, tokens=None), beside)
    _warn_of_nothing(chosen)


def _warn_of_nothing(chosen: Where) -> None:
    """Warn where a condition has chosen no record."""
    if reason := chosen.explain_nothing():
        warnings.warn(reason, UserWarning, stacklevel=2)


def write_transcripts(
    store: Any,
    out: str | os.PathLike[str],
    where: str = "",
    *,
    stream: str = "",
    manifest: Manifest | None = None,
) -> int:
    """Write the lines of :func:`transcript_lines` to a file and return their number.

    The file appears under its name when it is complete. Audio paths below its folder are relative to it.

    Args:
        store: an opened store, or its folder or URL.
        out: path of the file.
        where: condition that chooses records; empty for all.
        stream: stream that the transcripts are taken from; empty for the first stream that has any.
        manifest: manifest of the recordings, as in :func:`transcript_lines`.
    """
    path = Path(out)
    lines = transcript_lines(store, where, stream=stream, manifest=manifest, beside=path.parent)
    return write_bytes(lines, path)


def _transcript(meta: Mapping[str, Any], stream: str, store: Store) -> tuple[str, float]:
    """Return text and score of a record's transcript; raises ``UsageError`` where there is none."""
    transcript = (meta.get("hyp") or {}).get(stream)
    if transcript is None:
        raise UsageError(
            f"{meta['id']!r} has no transcript of {stream}",
            where=str(store.place),
            why="The store was made without transcripts, or by a loop that gave none to StoreWriter.add().",
            do="Choose records that have one with the condition 'hyp != None'; or dump again with "
            'DumpOptions(transcripts="all"), or --transcripts all.',
        )
    return transcript["text"], transcript["score"]
