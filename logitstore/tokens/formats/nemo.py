"""NeMo's token tables: labels in a config (YAML), a JSON list, or one token per line; the blank comes last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import UsageError, VocabError
from ..table import TokenTable
from . import _blank, _lines

KEYS = ("labels", "vocabulary", "token_list")


def recognises(name: str, data: bytes) -> bool:
    """Return whether it is a JSON list, a YAML file, or a vocab*.txt of one token per line without a blank."""
    if name.endswith((".yaml", ".yml")):
        return True
    if name.endswith(".json"):
        return data.lstrip()[:1] == b"["
    if not name.startswith("vocab") or _lines.kind(name, data) != "list":
        return False
    return _blank.named([line.token for line in _lines.peek(data)]) is None


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """Parse a table; append a blank unless a token is named like one, or ``blank`` is the id of a token."""
    where = str(path)
    if path.suffix == ".json":
        tokens = _json(data, where)
    elif path.suffix in (".yaml", ".yml"):
        tokens = _yaml(data, where)
    else:
        tokens = _listed(data, where)
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if token in seen:
            raise VocabError(f"token {token!r} stands at both {seen[token]} and {i}", where=where)
        seen[token] = i
    if blank is None:
        blank = _blank.named(tokens)
    if blank is None or blank == len(tokens):
        return _blank.appended(tokens, where)
    return TokenTable(tuple(tokens), blank)


def _json(data: bytes, where: str) -> list[str]:
    try:
        value = json.loads(_lines.decode(data, where))
    except ValueError as e:
        raise VocabError(f"not JSON: {e}", where=where) from None
    return _strings(value, where)


def _yaml(data: bytes, where: str) -> list[str]:
    """Return the list itself, or the one under a key ``labels``, ``vocabulary`` or ``token_list`` at any depth."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise UsageError("YAML needs the Python package 'yaml'", do="pip install pyyaml") from None
    try:
        # The base loader returns strings only, so that the unquoted tokens no, y and 1 are not converted.
        value = yaml.load(_lines.decode(data, where), Loader=yaml.BaseLoader)
    except yaml.YAMLError as e:
        raise VocabError(f"not YAML: {e}", where=where) from None
    if isinstance(value, list):
        return _strings(value, where)
    found: dict[tuple[str, ...], str] = {}
    _search(value, "", found)
    if len(found) != 1:
        places = ", ".join(found.values()) or "none"
        raise VocabError(
            f"not one list of tokens under {', '.join(KEYS)}, but {places}",
            where=where,
            do="Write the list of the model's head into a file of its own.",
        )
    return list(next(iter(found)))


def _search(value: Any, path: str, found: dict[tuple[str, ...], str]) -> None:
    """Collect different token lists below a value, with the path of the first of each."""
    if not isinstance(value, dict):
        return
    for key, below in value.items():
        here = f"{path}.{key}" if path else str(key)
        if key in KEYS and isinstance(below, list) and below and all(isinstance(t, str) for t in below):
            found.setdefault(tuple(below), here)
        else:
            _search(below, here, found)


def _listed(data: bytes, where: str) -> list[str]:
    """Return one token per line; a line of one space is the space token."""
    lines = _lines.decode(data, where).replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            raise VocabError("an empty line in the middle", where=f"{where}:{number}")
    if any(t.startswith("##") for t in lines) and not {"<unk>", "[UNK]"} & set(lines):
        raise VocabError(
            "tokens begin with ##, and there is no <unk>: it is the readable list that NeMo writes beside "
            "tokenizer.model, which does not have the ids of the model",
            where=where,
            do="Read tokenizer.model or tokenizer.vocab.",
        )
    return lines


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(t, str) for t in value):
        raise VocabError("not a list of strings", where=where)
    return value
