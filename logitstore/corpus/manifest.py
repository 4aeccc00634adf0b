"""Manifests: lists of utterances in any known format, read as a stream and checked."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import numpy as np

from ..errors import ManifestError
from ..schema.checksums import id_hash
from ..schema.ids import check_id
from .formats import ManifestLine, find_format
from .formats.base import load


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
        channel: of the recording, from 0; None for the mean of all.
        expected: seconds that the whole recording lasts by the manifest: to plan with, never to cut by.
        pipe: a shell command whose output is the recording; ``audio`` is then only its name.
        recording: id of the recording, where the manifest has one: rows keep it (SPEC S16).
    """

    id: str
    audio: Path
    offset: float = 0.0
    duration: float | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    line: int = 0
    channel: int | None = None
    expected: float | None = None
    pipe: str = ""
    recording: str = ""

    def origin(self) -> dict[str, Any]:
        """Where in which recording it lies, as its row says it (SPEC S16)."""
        value = {
            "id": self.recording,
            "start": self.offset,
            "seconds": self.expected,
            "channel": self.channel,
        }
        return {k: v for k, v in value.items() if v is not None}


def _number(value: dict[str, Any], key: str, where: str) -> float | None:
    number = value.get(key)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e9:
        raise ManifestError(f"{key} is {number!r}, not seconds", where=where)
    return float(number)


@dataclass(frozen=True)
class ManifestSource:
    """A manifest that can be read again and again.

    Attributes:
        path: the file or folder.
        format: its format, a module of ``logitstore.corpus.formats``.
        root: what relative audio paths are relative to.
        pipes: whether recordings may be given as shell commands.
        unpack: a folder that recordings inside the manifest are written to; None to refuse them.
    """

    path: Path
    format: str
    root: Path
    pipes: bool = False
    unpack: Path | None = None

    def lines(self) -> Iterator[ManifestLine]:
        """Every line, good or bad."""
        return load(self.format).lines(self.path)

    def utterance(self, line: ManifestLine) -> Utterance:
        """What a line says; raises ``ManifestError`` naming the field that is wrong."""
        if line.error is not None:
            raise line.error
        value, where = line.value, line.where
        utt_id = check_id(value.get("id"), where)
        duration = _number(value, "duration", where)
        if duration == 0:
            raise ManifestError(f"duration of {utt_id!r} is 0", where=where)
        channel, tokens = value.get("channel"), value.get("tokens")
        if channel is not None and not (type(channel) is int and channel >= 0):
            raise ManifestError(f"channel of {utt_id!r} is {channel!r}, not a number from 0", where=where)
        if tokens is not None and not (
            isinstance(tokens, list) and all(type(i) is int and i >= 0 for i in tokens)
        ):
            raise ManifestError(f"tokens of {utt_id!r} are not a list of ids", where=where)
        text = value.get("text")
        if text is not None and not isinstance(text, str):
            raise ManifestError(f"text of {utt_id!r} is not a string", where=where)
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError as e:
            raise ManifestError(f"text of {utt_id!r} is not valid Unicode: {e}", where=where) from None
        pipe = self._pipe(value, utt_id, where)
        return Utterance(
            id=utt_id,
            audio=Path(pipe) if pipe else self._audio(line, utt_id),
            offset=_number(value, "offset", where) or 0.0,
            duration=duration,
            text=text,
            tokens=tuple(tokens) if tokens is not None else None,
            line=line.number,
            channel=channel,
            expected=_number(value, "expected", where),
            pipe=pipe,
            recording=check_id(value["recording"], where) if value.get("recording") else "",
        )

    def _pipe(self, value: dict[str, Any], utt_id: str, where: str) -> str:
        pipe = value.get("pipe", "")
        if not isinstance(pipe, str):
            raise ManifestError(f"pipe of {utt_id!r} is {pipe!r}, not a command", where=where)
        if pipe and not self.pipes:
            raise ManifestError(
                f"the audio of {utt_id!r} is a shell command: {pipe} |",
                where=where,
                why="Whoever wrote the manifest would run programs here.",
                do="Read it, then allow such commands: --allow-pipes.",
            )
        return pipe

    def _audio(self, line: ManifestLine, utt_id: str) -> Path:
        audio = line.value.get("audio")
        if line.inside is not None:
            return self._unpacked(line, utt_id)
        if not isinstance(audio, str) or not audio or "\0" in audio:
            raise ManifestError(f"audio of {utt_id!r} is {audio!r}, not a path", where=line.where)
        try:
            os.fsencode(audio)  # a name that is not UTF-8 comes as half surrogates, as os.fsdecode gives it
        except UnicodeEncodeError as e:
            raise ManifestError(f"audio of {utt_id!r} is not valid Unicode: {e}", where=line.where) from None
        return self.root / audio

    def _unpacked(self, line: ManifestLine, utt_id: str) -> Path:
        """A recording inside the manifest, written to a file named after its utterance."""
        if self.unpack is None:
            raise ManifestError(
                f"the audio of {utt_id!r} lies inside the manifest as bytes, not in a file",
                where=line.where,
                do="Write the recordings to files first: logitstore manifest FROM TO.jsonl --audio-dir DIR.",
            )
        assert line.inside is not None
        name, suffix = (
            quote(utt_id, safe="").replace(".", "%2E"),
            PurePath(str(line.value.get("audio"))).suffix,
        )
        if len(name) > 100:
            name = f"{name[:80]}~{id_hash(utt_id):016x}"
        path = self.unpack / (name + (suffix if suffix.isascii() else ""))
        if not path.is_file() or path.stat().st_size != len(line.inside):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(line.inside)
        return path


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
        source: where it is and how it is read.
        sha256: of the manifest's bytes.
        utterances: good lines.
        seconds: of audio, as far as durations are given.
        problems: lines that cannot be used, in order.
        bad_lines: their numbers.
        limit: read only so many good lines; 0 for all.
    """

    source: ManifestSource
    sha256: str
    utterances: int
    seconds: float
    problems: tuple[Problem, ...]
    bad_lines: frozenset[int]
    limit: int = 0

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.source.path

    def __iter__(self) -> Iterator[Utterance]:
        taken = 0
        for line in self.source.lines():
            if line.number in self.bad_lines:
                continue
            if self.limit and taken >= self.limit:
                return
            taken += 1
            yield self.source.utterance(line)

    def to_json(self) -> dict[str, Any]:
        """What a store keeps of it."""
        return {"sha256": self.sha256}


def open_source(
    path: str | Path,
    *,
    audio_root: str | Path | None = None,
    format: str | None = None,
    allow_pipes: bool = False,
    unpack: str | Path | None = None,
) -> ManifestSource:
    """A manifest of any known format; raises ``ManifestError``, ``UnknownName`` or ``UsageError``."""
    path = Path(path)
    name, found = find_format(path, format)
    root = Path(audio_root) if audio_root is not None else path.parent if found.BESIDE else Path()
    return ManifestSource(path, name, root, allow_pipes, Path(unpack) if unpack is not None else None)


def read_manifest(
    path: str | Path,
    *,
    audio_root: str | Path | None = None,
    limit: int = 0,
    format: str | None = None,
    allow_pipes: bool = False,
) -> Manifest:
    """Check every line of a manifest: its fields, and that no id stands twice.

    Args:
        path: a file or folder of any known format.
        audio_root: what relative audio paths are relative to; the format's own habit when not given.
        limit: only so many good lines.
        format: ``jsonl``, ``nemo``, ``kaldi``, ``lhotse`` or ``huggingface``; recognised when not given.
        allow_pipes: run shell commands that stand for recordings.

    Raises:
        ManifestError: nothing can be read at all; bad lines are listed in ``problems``.
        UnknownName: no format of that name.
        UsageError: the library that reads the format is not installed.
    """
    return check(open_source(path, audio_root=audio_root, format=format, allow_pipes=allow_pipes), limit)


def check(source: ManifestSource, limit: int = 0) -> Manifest:
    """Read a source from end to end; raises as :func:`read_manifest`.

    Ids are compared by hash, so that sixteen bytes an utterance are all the memory it takes.
    """
    problems: dict[int, Problem] = {}
    hashes, numbers = array("Q"), array("q")
    seconds = 0.0
    try:
        digest = _sha256(load(source.format).files(source.path), source.path)
        for line in source.lines():
            try:
                utt = source.utterance(line)
            except ManifestError as e:
                problems[line.number] = Problem(_name(line), type(e).__name__, str(e))
                continue
            hashes.append(id_hash(utt.id))
            numbers.append(line.number)
            seconds += utt.duration or utt.expected or 0.0
        repeated = _repeated(hashes, numbers)
        for line in source.lines() if repeated else ():
            if line.number in repeated:
                name = _name(line)
                what = f"{line.where}: the id {name!r} stands already at line {repeated[line.number]}"
                problems[line.number] = Problem(name, "ManifestError", what)
    except OSError as e:
        raise ManifestError(f"cannot be read: {e.strerror or e}", where=str(source.path)) from None
    good = len(hashes) - len(repeated)
    return Manifest(
        source=source,
        sha256="sha256:" + digest,
        utterances=min(good, limit) if limit else good,
        seconds=seconds,
        problems=tuple(problems[n] for n in sorted(problems)),
        bad_lines=frozenset(problems),
        limit=limit,
    )


def _sha256(files: Sequence[Path], path: Path) -> str:
    """Over the bytes of a file; over the names and bytes of a folder's files."""
    digest = hashlib.sha256()
    for file in files:
        if file != path:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with open(file, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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


def _name(line: ManifestLine) -> str:
    try:
        return check_id(line.value.get("id"))
    except ManifestError:
        return f"line {line.number}"
