"""``text:HYPOTHESES``: transcripts that any recogniser wrote to a file, as a teacher of a ``text`` stream.

The file is a Kaldi ``text`` file (``ID WORDS``), JSON lines of ``id`` and ``text`` or ``pred_text`` with an
optional ``score``, or a NeMo manifest with ``pred_text``, as NeMo's transcribe scripts write it; there,
utterances are named by their recordings, as :mod:`logitstore.corpus.formats.nemo` names them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..corpus.formats.nemo import name_of
from ..errors import TeacherError
from ..schema.checksums import sha256
from ..schema.spec import TeacherSpec
from ._options import existing, read_where
from .protocol import Teacher, TranscriberTeacher

RATE, SHIFT = 16000, 160  # Hz and samples: the frames in which such a store counts the length of its audio


def load(where: str) -> Teacher:
    """Read every transcript; ``text:FILE,name=NAME`` names the recogniser.

    Raises ``UsageError`` for a wrong path and ``TeacherError`` for a line that is no transcript.
    """
    options = read_where(where, "file", ("name",))
    path = existing(options["file"], "a Kaldi text file, JSON lines or a NeMo manifest")
    teacher: Any = TranscriberTeacher(Hypotheses(path, options.get("name", path.name)))
    checked: Teacher = teacher
    return checked


class Hypotheses:
    """Transcripts by utterance id.

    Args:
        path: file of transcripts.
        name: name of the recogniser that wrote them.
    """

    def __init__(self, path: Path, name: str) -> None:
        data = path.read_bytes()
        self._path, self._name, self._sha256 = path, name, sha256(data)
        self._transcripts: dict[str, tuple[str, float | None]] = {}
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError as e:
            raise TeacherError(f"not UTF-8: {e}", where=str(path)) from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                here = f"{path}:{number}"
                is_json = line.lstrip().startswith("{")
                utt_id, transcript = _parse_json(line, here) if is_json else _parse_kaldi(line)
                if utt_id in self._transcripts:
                    raise TeacherError(f"{utt_id!r} stands twice", where=here)
                self._transcripts[utt_id] = transcript

    def describe(self) -> TeacherSpec:
        """Return the recogniser's name and the file's digest; the frames are not those of a model."""
        return TeacherSpec(self._name, RATE, SHIFT, features={"hypotheses": self._sha256})

    def stored_transcript(self, utt_id: str) -> tuple[str, float | None]:
        """Return text and log-probability of an utterance; raises ``TeacherError`` where there is none."""
        if utt_id not in self._transcripts:
            first = next(iter(self._transcripts), "")
            raise TeacherError(
                "no hypothesis of this id",
                where=utt_id,
                why=f"{self._path} has {len(self._transcripts)} others, the first {first!r}.",
                do="--on-error skip leaves such utterances out and lists them.",
            )
        return self._transcripts[utt_id]


def _parse_kaldi(line: str) -> tuple[str, tuple[str, None]]:
    utt_id, _, text = line.strip().replace("\t", " ", 1).partition(" ")
    return utt_id, (text.strip(), None)


def _parse_json(line: str, where: str) -> tuple[str, tuple[str, float | None]]:
    """Parse a JSON line to (utterance id, (text, score)); raises ``TeacherError``."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as e:
        raise TeacherError(f"not JSON: {e}", where=where) from None
    audio, text, score = value.get("audio_filepath"), value.get("pred_text"), value.get("score")
    if text is None and audio is None:  # in a NeMo manifest, text is the reference
        text = value.get("text")
    utt_id = value.get("id") or (name_of(audio, value) if isinstance(audio, str) else None)
    if not isinstance(utt_id, str) or not isinstance(text, str):
        missing = "text" if audio is None else "pred_text"
        raise TeacherError(
            f"no {missing if isinstance(utt_id, str) else 'id'}",
            where=where,
            do="A line has id and text (or pred_text), or audio_filepath and pred_text.",
        )
    if not (score is None or (isinstance(score, int | float) and not isinstance(score, bool))):
        raise TeacherError(f"the score of {utt_id!r} is {score!r}, not a number", where=where)
    return utt_id, (text, None if score is None else float(score))
