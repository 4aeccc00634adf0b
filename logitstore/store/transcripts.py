"""What the teacher wrote down, out of a store again: the hard-target way out, as a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..corpus.manifest import Manifest
from ..corpus.survey import to_line
from ..errors import MissingUtterance, UsageError
from .reader import Store
from .select import Where


def transcripts(
    store: Store,
    where: str = "",
    *,
    stream: str = "",
    manifest: Manifest | None = None,
    beside: Path = Path(),
) -> Iterator[bytes]:
    """JSON lines whose ``text`` is the teacher's own transcript.

    Args:
        store: dumped with transcripts.
        where: which rows; see :mod:`logitstore.store.select`.
        stream: whose transcript; the store's first stream that has one when not given.
        manifest: where the recordings are; lines are then in its order and make a manifest of their own.
            Without one they have no ``audio``, and stand in stored order.
        beside: recordings below this folder are written relative to it.

    Raises:
        UsageError: a condition that is none, a stream that is not there, rows without transcripts.
    """
    names = store.spec.transcript_streams
    stream = stream or next(iter(names), "")
    if stream not in names:
        raise UsageError(f"no stream {stream!r}", where=str(store.place), do=f"It has: {', '.join(names)}.")
    chosen = Where(where, names)
    if manifest is None:
        for meta in store.metas():
            if chosen(meta):
                text, score = _said(meta, stream, store)
                line = {"id": meta["id"], "text": text, "duration": meta.get("seconds"), "score": score}
                yield (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8")
        return
    for utt in manifest:
        try:
            meta = store.row(utt.id, only=()).meta
        except MissingUtterance:
            continue
        if chosen(meta):
            text, _ = _said(meta, stream, store)
            yield to_line(replace(utt, text=text, tokens=None), beside)


def _said(meta: Mapping[str, Any], stream: str, store: Store) -> tuple[str, float]:
    said = (meta.get("hyp") or {}).get(stream)
    if said is None:
        raise UsageError(
            f"{meta['id']!r} has no transcript of {stream}",
            where=str(store.place),
            why="The store was made without them (--no-transcripts, or one's own loop).",
            do="Choose rows that have one: --where 'hyp != None'; or dump again.",
        )
    return said["text"], said["score"]
