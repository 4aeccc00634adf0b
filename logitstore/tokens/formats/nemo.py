"""NeMo's vocabularies: labels in a config (YAML), a JSON list, or one token a line. Blank comes last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import UsageError, VocabError
from ..table import TokenTable
from . import _blank, _lines

KEYS = ("labels", "vocabulary", "token_list")


def recognises(name: str, data: bytes) -> bool:
    """A JSON list, a YAML file, or a vocab*.txt with a token a line and none named like a blank."""
    if name.endswith((".yaml", ".yml")):
        return True
    if name.endswith(".json"):
        return data.lstrip()[:1] == b"["
    if not name.startswith("vocab") or _lines.kind(name, data) != "list":
        return False
    return _blank.named([line.token for line in _lines.peek(data)]) is None


def parse(path: Path, data: bytes, blank: int | None) -> TokenTable:
    """The tokens with the blank after them, unless one of them is named like a blank or ``blank`` says so."""
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
    """The list itself, or the one under ``labels``, ``vocabulary`` or ``token_list``, however deep."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise UsageError("YAML needs the Python package 'yaml'", do="pip install pyyaml") from None
    try:
        # The base loader knows strings alone: unquoted, the tokens no, y and 1 stay what they are.
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
            do="Write the list that the model's head has into a file of its own.",
        )
    return list(next(iter(found)))


def _search(value: Any, path: str, found: dict[tuple[str, ...], str]) -> None:
    """Different token lists below a value, and the place of the first of each."""
    if not isinstance(value, dict):
        return
    for key, below in value.items():
        here = f"{path}.{key}" if path else str(key)
        if key in KEYS and isinstance(below, list) and below and all(isinstance(t, str) for t in below):
            found.setdefault(tuple(below), here)
        else:
            _search(below, here, found)


def _listed(data: bytes, where: str) -> list[str]:
    """A token a line; a line of one space is the space."""
    lines = _lines.decode(data, where).replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            raise VocabError("an empty line in the middle", where=f"{where}:{number}")
    if any(t.startswith("##") for t in lines) and not {"<unk>", "[UNK]"} & set(lines):
        raise VocabError(
            "pieces begin with ##, and there is no <unk>: this is the list for people that lies beside "
            "a tokenizer.model, not the table of its ids",
            where=where,
            do="Read tokenizer.model or tokenizer.vocab.",
        )
    return lines


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(t, str) for t in value):
        raise VocabError("not a list of strings", where=where)
    return value
