"""``vocab.json`` and ``tokenizer.json`` of Hugging Face, where the padding token is the blank of CTC models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import VocabError
from ..table import TokenTable, find_blank, in_order
from . import _lines

PADS = ("[PAD]", "<pad>")
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")


def recognises(name: str, data: bytes) -> bool:
    """Return whether the file is a JSON object."""
    return name.endswith(".json") and data.lstrip()[:1] == b"{"


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Parse a table; the blank is the padding token, and the word delimiter stays ``|``.

    The padding token is read from the tokenizer's config beside the file; without one it is ``[PAD]`` or
    ``<pad>``. Tokens of ``added_tokens.json`` are left out, because the head may have no classes for them.
    """
    where = str(path)
    value = _load(data, where)
    found: dict[int, str] = {}
    for token, i in _entries(value, where):
        if isinstance(i, bool) or not isinstance(i, int) or i < 0:
            raise VocabError(f"token {token!r} has id {i!r}", where=where)
        if found.setdefault(i, token) != token:
            raise VocabError(f"id {i} is given to {found[i]!r} and to {token!r}", where=where)
    tokens = in_order(found, where)
    return TokenTable(tokens, _pad(path, tokens) if blank is None else blank)


def _load(data: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            keys = [k for k, _ in pairs]
            twice = next(k for k in keys if keys.count(k) > 1)
            raise VocabError(f"the key {twice!r} appears twice", where=where)
        return value

    try:
        value = json.loads(_lines.decode(data, where), object_pairs_hook=unique)
    except ValueError as e:
        raise VocabError(f"not JSON: {e}", where=where) from None
    if not isinstance(value, dict):
        raise VocabError("not a JSON object of tokens and ids", where=where)
    return value


def _entries(value: dict[str, Any], where: str) -> list[tuple[str, Any]]:
    """Return (token, id) pairs of either file."""
    if isinstance(value.get("model"), dict):
        vocab, added = value["model"].get("vocab"), value.get("added_tokens") or []
        if not isinstance(vocab, list | dict):
            raise VocabError("it has no model.vocab", where=where)
        try:
            if isinstance(vocab, list):  # Unigram: pieces and scores in id order
                vocab = {str(piece[0]): i for i, piece in enumerate(vocab)}
            return [*vocab.items(), *((str(t["content"]), t["id"]) for t in added)]
        except (TypeError, KeyError, IndexError) as e:
            raise VocabError(f"not a tokenizer.json: {e!r}", where=where) from None
    if any(isinstance(i, dict) for i in value.values()):
        names = ", ".join(k for k, i in value.items() if isinstance(i, dict))
        raise VocabError(
            f"it holds several tables: {names}",
            where=where,
            do="Write the table of the head's language into a file of its own.",
        )
    return list(value.items())


def _pad(path: Path, tokens: tuple[str, ...]) -> int:
    for name in CONFIGS:
        beside = path.with_name(name)
        if beside.is_file():
            pad = _load(beside.read_bytes(), str(beside)).get("pad_token")
            pad = pad.get("content") if isinstance(pad, dict) else pad
            if isinstance(pad, str):
                if pad not in tokens:
                    raise VocabError(
                        f"the padding token {pad!r} of {name} is not in the table",
                        where=str(path),
                        do="Give the id of the blank.",
                    )
                return tokens.index(pad)
    pads = [p for p in PADS if p in tokens]
    if len(pads) > 1:
        raise VocabError(
            f"both {' and '.join(pads)} are in it, and no {CONFIGS[0]} beside it says which is the blank",
            where=str(path),
            do="Give the id of the blank.",
        )
    return tokens.index(pads[0]) if pads else find_blank(tokens, str(path))
