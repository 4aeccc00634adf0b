"""Manifests: lists of utterances in any known format, checked and read line by line."""

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
    """One utterance of a manifest.

    Attributes:
        id: id, unique in the manifest; any Unicode text without control characters.
        audio: path of the recording, relative to the working directory or absolute.
        offset: seconds from the beginning of the recording to that of the utterance.
        duration: seconds of the utterance; None if it ends with the recording.
        text: reference text; None if there is none.
        tokens: reference token ids, used instead of ``text``; None if there are none.
        line: number of the line, from 1.
        channel: channel of the recording, from 0; None for the mean of all channels.
        expected: seconds of the whole recording according to the manifest; never used to cut audio.
        pipe: shell command that writes the recording to its output; ``audio`` is then a name only.
        recording: id of the recording, stored as record metadata (SPEC S16); empty if there is none.
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
        """Return its recording and position as record metadata (SPEC S16)."""
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
    """A manifest that has not been checked.

    Attributes:
        path: the file or folder.
        format: name of its format, a module of ``logitstore.corpus.formats``.
        root: folder that relative audio paths are relative to.
        pipes: whether recordings may be shell commands.
        unpack: folder that recordings inside the manifest are written to; None to refuse such recordings.
    """

    path: Path
    format: str
    root: Path
    pipes: bool = False
    unpack: Path | None = None

    def lines(self) -> Iterator[ManifestLine]:
        """Yield every line, valid or not."""
        return load(self.format).lines(self.path)

    def utterance(self, line: ManifestLine) -> Utterance:
        """Return the utterance of a line; raise ``ManifestError`` with the field that is wrong."""
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
                why="The author of the manifest could run any program on this machine.",
                do="Check the commands, then allow them: allow_pipes=True, or --allow-pipes.",
            )
        return pipe

    def _audio(self, line: ManifestLine, utt_id: str) -> Path:
        audio = line.value.get("audio")
        if line.recording_bytes is not None:
            return self._unpacked(line, utt_id)
        if not isinstance(audio, str) or not audio or "\0" in audio:
            raise ManifestError(f"audio of {utt_id!r} is {audio!r}, not a path", where=line.where)
        try:
            os.fsencode(audio)  # a name that is not UTF-8 has half surrogates, as from os.fsdecode
        except UnicodeEncodeError as e:
            raise ManifestError(f"audio of {utt_id!r} is not valid Unicode: {e}", where=line.where) from None
        return self.root / audio

    def _unpacked(self, line: ManifestLine, utt_id: str) -> Path:
        """Write a recording inside the manifest to a file named after its utterance; return the path."""
        if self.unpack is None:
            raise ManifestError(
                f"the audio of {utt_id!r} is inside the manifest, not in a file",
                where=line.where,
                do="Write the recordings to files first: logitstore manifest FROM TO.jsonl --audio-dir DIR.",
            )
        assert line.recording_bytes is not None
        name, suffix = (
            quote(utt_id, safe="").replace(".", "%2E"),
            PurePath(str(line.value.get("audio"))).suffix,
        )
        if len(name) > 100:
            name = f"{name[:80]}~{id_hash(utt_id):016x}"
        path = self.unpack / (name + (suffix if suffix.isascii() else ""))
        if not path.is_file() or path.stat().st_size != len(line.recording_bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(line.recording_bytes)
        return path


@dataclass(frozen=True)
class Problem:
    """A line or utterance that cannot be used.

    Attributes:
        id: utterance id, or ``line N``.
        reason: name of the error's class.
        what: text of the error.
    """

    id: str
    reason: str
    what: str

    def to_json(self) -> dict[str, str]:
        return {"id": self.id, "reason": self.reason, "what": self.what}


@dataclass(frozen=True)
class Manifest:
    """A checked manifest, iterable over its valid utterances; utterances are not kept in memory.

    Attributes:
        source: the manifest, and how it is read.
        sha256: SHA-256 of the manifest's bytes.
        utterances: number of valid utterances.
        seconds: total audio in seconds of the utterances with a duration.
        problems: lines that cannot be used, in order.
        bad_lines: numbers of these lines.
        limit: number of valid utterances to read; 0 for all.
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
        """Return the description that a store holds of it."""
        return {"sha256": self.sha256}


def open_source(
    path: str | Path,
    *,
    audio_root: str | Path | None = None,
    format: str | None = None,
    allow_pipes: bool = False,
    unpack: str | Path | None = None,
) -> ManifestSource:
    """Open a manifest of any known format, without a check of its lines; see :func:`read_manifest`.

    Args:
        path: a file or folder.
        audio_root: folder that relative audio paths are relative to; by default as the format defines it.
        format: name of the format; by default recognised.
        allow_pipes: run shell commands that stand for recordings.
        unpack: folder that recordings inside the manifest are written to; None to refuse such recordings.

    Raises:
        ManifestError: the file cannot be read, or the folder has no known format.
        UnknownName: there is no format of that name.
        UsageError: the library that reads the format is not installed.
    """
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
    """Read a manifest and check every line: its fields, and that its id is unique.

    Args:
        path: a file or folder of any known format.
        audio_root: folder that relative audio paths are relative to; by default as the format defines it.
        limit: number of valid utterances to read; 0 for all.
        format: ``jsonl``, ``nemo``, ``kaldi``, ``lhotse``, ``wenet`` or ``huggingface``; by default recognised.
        allow_pipes: run shell commands that stand for recordings.

    Raises:
        ManifestError: the manifest cannot be read at all; single bad lines are listed in ``problems``.
        UnknownName: there is no format of that name.
        UsageError: the library that reads the format is not installed.
    """
    return check(open_source(path, audio_root=audio_root, format=format, allow_pipes=allow_pipes), limit)


def check(source: ManifestSource, limit: int = 0) -> Manifest:
    """Check every line of an opened manifest; raise the errors of :func:`read_manifest`.

    Ids are compared by hash, which takes sixteen bytes of memory per utterance.
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
                what = f"{line.where}: the id {name!r} is already at line {repeated[line.number]}"
                problems[line.number] = Problem(name, "ManifestError", what)
    except OSError as e:
        raise ManifestError(f"it cannot be read: {e.strerror or e}", where=str(source.path)) from None
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
    """Return the SHA-256 of a file's bytes, or of the names and bytes of a folder's files."""
    digest = hashlib.sha256()
    for file in files:
        if file != path:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with open(file, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _repeated(hashes: array[int], numbers: array[int]) -> dict[int, int]:
    """Return {line: first line of its id} for every line with an id that appeared before."""
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
