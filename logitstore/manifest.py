"""Manifests: JSON lines, one utterance each, read as a stream."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .digest import id_hash
from .errors import ManifestError

MAX_ID_BYTES = 4096


@dataclass(frozen=True)
class Utterance:
    """One manifest line.

    Attributes:
        id: unique in the manifest; any UTF-8 text without control characters.
        audio: path of the recording, resolved.
        offset: seconds into the recording where it begins.
        duration: seconds; None for all that follows.
        text: reference text, if any.
        tokens: reference token ids, if any; they win over ``text``.
        line: where it stands, from 1.
    """

    id: str
    audio: Path
    offset: float = 0.0
    duration: float | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    line: int = 0


def check_id(utt_id: Any, where: str = "") -> str:
    """An utterance id that can be stored and shown; raises ``ManifestError``."""
    if not isinstance(utt_id, str) or not utt_id:
        raise ManifestError(f"the id is {utt_id!r}, not a non-empty string", where=where)
    try:
        size = len(utt_id.encode("utf-8"))
    except UnicodeEncodeError:
        raise ManifestError(f"the id {utt_id!r} is not valid Unicode", where=where) from None
    if size > MAX_ID_BYTES:
        raise ManifestError(f"an id of {size} bytes, more than {MAX_ID_BYTES}", where=where)
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in utt_id):
        raise ManifestError(f"the id {utt_id!r} holds control characters", where=where)
    return utt_id


def _number(value: dict[str, Any], key: str, where: str) -> float | None:
    number = value.get(key)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e9:
        raise ManifestError(f"{key} is {number!r}, not seconds", where=where)
    return float(number)


def parse_line(line: bytes, root: Path, where: str, number: int) -> Utterance:
    """One line of a manifest; raises ``ManifestError`` naming the field that is wrong."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise ManifestError(f"not UTF-8: {e}", where=where) from None
    except (ValueError, RecursionError) as e:
        raise ManifestError(f"not JSON: {e}", where=where) from None
    if not isinstance(value, dict):
        raise ManifestError("not a JSON object", where=where)
    utt_id = check_id(value.get("id"), where)
    audio = value.get("audio")
    if not isinstance(audio, str) or not audio or "\0" in audio:
        raise ManifestError(f"audio of {utt_id!r} is {audio!r}, not a path", where=where)
    text = value.get("text")
    if text is not None and not isinstance(text, str):
        raise ManifestError(f"text of {utt_id!r} is not a string", where=where)
    try:
        os.fsencode(audio)  # a name that is not UTF-8 comes as half surrogates, as os.fsdecode gives it
        (text or "").encode("utf-8")
    except UnicodeEncodeError as e:
        raise ManifestError(f"audio or text of {utt_id!r} is not valid Unicode: {e}", where=where) from None
    tokens = value.get("tokens")
    if tokens is not None and not (
        isinstance(tokens, list) and all(type(i) is int and i >= 0 for i in tokens)
    ):
        raise ManifestError(f"tokens of {utt_id!r} are not a list of ids", where=where)
    duration = _number(value, "duration", where)
    if duration == 0:
        raise ManifestError(f"duration of {utt_id!r} is 0", where=where)
    return Utterance(
        id=utt_id,
        audio=root / audio,
        offset=_number(value, "offset", where) or 0.0,
        duration=duration,
        text=text,
        tokens=tuple(tokens) if tokens is not None else None,
        line=number,
    )


@dataclass(frozen=True)
class Problem:
    """A line that cannot be used: the utterance (or ``line N``), the class of the error, and its text."""

    id: str
    reason: str
    what: str

    def to_json(self) -> dict[str, str]:
        return {"id": self.id, "reason": self.reason, "what": self.what}


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; reading it again costs no memory.

    Attributes:
        path: the file.
        root: what relative audio paths are relative to.
        sha256: of the file's bytes.
        utterances: good lines.
        seconds: of audio, as far as durations are given.
        problems: lines that cannot be used, in order.
        bad_lines: their numbers.
        limit: read only so many good lines; 0 for all.
    """

    path: Path
    root: Path
    sha256: str
    utterances: int
    seconds: float
    problems: tuple[Problem, ...]
    bad_lines: frozenset[int]
    limit: int = 0

    def __iter__(self) -> Iterator[Utterance]:
        taken = 0
        for number, line in _lines(self.path):
            if number in self.bad_lines:
                continue
            if self.limit and taken >= self.limit:
                return
            taken += 1
            yield parse_line(line, self.root, f"{self.path}:{number}", number)

    def to_json(self) -> dict[str, Any]:
        """What a store keeps of it."""
        return {"sha256": self.sha256}


def _lines(path: Path, digest: Any = None) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as f:
        for number, raw in enumerate(f, 1):
            if digest is not None:
                digest.update(raw)
            if raw.strip():
                yield number, raw


def read_manifest(path: str | Path, *, audio_root: str | Path | None = None, limit: int = 0) -> Manifest:
    """Check every line of a manifest: JSON, fields, duplicate ids.

    Ids are compared by hash, so that sixteen bytes an utterance are all the memory it takes. Raises
    ``ManifestError`` only when the file itself cannot be read; bad lines are listed in ``problems``.
    """
    path = Path(path)
    root = Path(audio_root) if audio_root is not None else path.parent
    digest = hashlib.sha256()
    problems: dict[int, Problem] = {}
    hashes, numbers = array("Q"), array("q")
    seconds = 0.0
    try:
        for number, line in _lines(path, digest):
            try:
                utt = parse_line(line, root, f"{path}:{number}", number)
            except ManifestError as e:
                problems[number] = Problem(_name(line, number), type(e).__name__, str(e))
                continue
            hashes.append(id_hash(utt.id))
            numbers.append(number)
            seconds += utt.duration or 0.0
    except OSError as e:
        raise ManifestError(f"cannot be read: {e.strerror}", where=str(path)) from None
    repeated = _repeated(hashes, numbers)
    for number, line in _lines(path) if repeated else ():
        if number in repeated:
            name = _name(line, number)
            problems[number] = Problem(
                name,
                "ManifestError",
                f"{path}:{number}: the id {name!r} stands already at line {repeated[number]}",
            )
    good = len(hashes) - len(repeated)
    return Manifest(
        path=path,
        root=root,
        sha256="sha256:" + digest.hexdigest(),
        utterances=min(good, limit) if limit else good,
        seconds=seconds,
        problems=tuple(problems[n] for n in sorted(problems)),
        bad_lines=frozenset(problems),
        limit=limit,
    )


def _repeated(hashes: array[int], numbers: array[int]) -> dict[int, int]:
    """Line numbers whose id stood before, each with the line where it stood first."""
    keys, lines = np.frombuffer(hashes, np.uint64), np.frombuffer(numbers, np.int64)
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    found: dict[int, int] = {}
    for at in same.tolist():
        before = int(lines[order[at - 1]])
        found[int(lines[order[at]])] = found.get(before, before)
    return found


def _name(line: bytes, number: int) -> str:
    try:
        return check_id(json.loads(line)["id"])
    except (ManifestError, ValueError, TypeError, KeyError, RecursionError):
        return f"line {number}"
