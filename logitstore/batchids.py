"""Where a batch keeps the ids and texts of its utterances, in the habits of the public frameworks.

lhotse: ``batch["supervisions"]["cut"]``, objects with an ``id``; ESPnet: a list of ids in front of a dict;
SpeechBrain: ``batch.id``; Kaldi-style and home-made ones: a list of strings under one of many names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ID_KEYS = (
    *("cut_ids", "cut", "cuts", "ids", "id", "utt_ids", "utt_id", "uttid", "utts", "utt"),
    *("keys", "key", "names", "name", "file_ids", "file_id", "sample_ids", "sample_id"),
    *("audio_filepath", "path", "paths", "file", "files"),
)
TEXT_KEYS = ("text", "texts", "transcript", "transcripts", "transcription", "sentence", "words", "wrd")
DEPTH = 4


@dataclass(frozen=True)
class Found:
    """Strings of a batch, one for each of its utterances, and the expression that finds them again."""

    expression: str
    values: tuple[str, ...]


def find_ids(batch: Any, count: int | None = None) -> list[Found]:
    """Every place of a batch that could hold utterance ids, the likeliest first.

    Args:
        batch: what a DataLoader yielded.
        count: B, where it is known: other counts are left out.
    """
    found: dict[tuple[str, ...], tuple[int, Found]] = {}
    for order, (key, expression, value) in enumerate(_walk(batch, "batch", DEPTH)):
        likely = ID_KEYS.index(key) if key in ID_KEYS else len(ID_KEYS)
        first = expression == "batch[0]" and likely == len(ID_KEYS)  # ESPnet: (ids, {...})
        if likely == len(ID_KEYS) and not first:
            continue
        strings = _strings(value, expression)
        if strings is None or (count is not None and len(strings.values) != count):
            continue
        if len(set(strings.values)) != len(strings.values):
            continue
        found.setdefault(strings.values, (likely * 100 + order, strings))
    return [f for _, f in sorted(found.values(), key=lambda pair: pair[0])]


def find_texts(batch: Any, count: int) -> Found | None:
    """The reference texts of a batch of ``count`` utterances, where it holds any."""
    for key, expression, value in _walk(batch, "batch", DEPTH):
        listed = isinstance(value, list | tuple) and len(value) == count
        if key in TEXT_KEYS and listed and all(isinstance(v, str) for v in value):
            return Found(expression, tuple(value))
    return None


def _walk(value: Any, expression: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """(last name, expression, value) of everything below a value, nearest first."""
    inner: list[tuple[str, str, Any]] = []
    if isinstance(value, Mapping):
        inner = [(k, f"{expression}[{k!r}]".replace("'", '"'), v) for k, v in value.items() if _plain(k)]
    elif isinstance(value, list | tuple):
        if hasattr(value, "_fields"):
            inner = [(k, f"{expression}.{k}", v) for k, v in zip(value._fields, value, strict=True)]
        elif len(value) <= 16 and not all(isinstance(v, str) for v in value):
            inner = [("", f"{expression}[{i}]", v) for i, v in enumerate(value)]
    elif hasattr(value, "__dict__"):
        inner = [(k, f"{expression}.{k}", v) for k, v in vars(value).items() if k.isidentifier()]
        inner = [x for x in inner if not x[0].startswith("_")]
    yield from inner
    if depth > 1:
        for key, below, v in inner:
            if key not in ID_KEYS or not isinstance(v, list | tuple):
                yield from _walk(v, below, depth - 1)


def _strings(value: Any, expression: str) -> Found | None:
    if isinstance(value, str) and value:
        return Found(f"[{expression}]", (value,))
    if not isinstance(value, list | tuple) or not value:
        return None
    if all(isinstance(v, str) and v for v in value):
        return Found(expression, tuple(value))
    ids = [getattr(v, "id", None) for v in value]
    if all(isinstance(i, str) and i for i in ids):
        return Found(f"[x.id for x in {expression}]", tuple(map(str, ids)))
    return None


def _plain(key: Any) -> bool:
    return isinstance(key, str) and '"' not in key and "'" not in key and "\\" not in key
