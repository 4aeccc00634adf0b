"""``text:HYPOTHESES``: what some recogniser wrote down, whichever it was, as a teacher of a ``text`` stream.

A Kaldi ``text`` file (``ID WORDS``), JSON lines of ``id`` and ``text`` or ``pred_text``, with a ``score``
where there is one, or a NeMo manifest with ``pred_text``, as its transcribe scripts write it: utterances are
named by their recordings, as :mod:`logitstore.corpus.formats.nemo` names them.
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
from .protocol import BlackBox, Teacher

RATE, SHIFT = 16000, 160  # Hz and samples: of the frames that such a store counts its audio in


def load(where: str) -> Teacher:
    """Read every hypothesis; ``text:FILE,name=NAME`` says whose they are.

    Raises ``UsageError`` for a wrong path, ``TeacherError`` for a line that is no hypothesis.
    """
    asked = read_where(where, "file", ("name",))
    path = existing(asked["file"], "a Kaldi text file, JSON lines or a NeMo manifest")
    teacher: Any = BlackBox(Hypotheses(path, asked.get("name", path.name)))
    checked: Teacher = teacher
    return checked


class Hypotheses:
    """Texts by utterance id.

    Args:
        path: the file.
        name: whose they are.
    """

    def __init__(self, path: Path, name: str) -> None:
        data = path.read_bytes()
        self._path, self._name, self._sha256 = path, name, sha256(data)
        self._said: dict[str, tuple[str, float | None]] = {}
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError as e:
            raise TeacherError(f"not UTF-8: {e}", where=str(path)) from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                here = f"{path}:{number}"
                utt_id, said = _json(line, here) if line.lstrip().startswith("{") else _kaldi(line)
                if utt_id in self._said:
                    raise TeacherError(f"{utt_id!r} stands twice", where=here)
                self._said[utt_id] = said

    def describe(self) -> TeacherSpec:
        """Whose, and of which file; no frames of a model."""
        return TeacherSpec(self._name, RATE, SHIFT, features={"hypotheses": self._sha256})

    def wrote(self, utt_id: str) -> tuple[str, float | None]:
        """Text and score of an utterance; raises ``TeacherError`` where there is none."""
        if utt_id not in self._said:
            raise TeacherError(
                "no hypothesis of this id",
                where=utt_id,
                why=f"{self._path} has {len(self._said)} others, the first {next(iter(self._said), '')!r}.",
                do="--on-error skip leaves such utterances out and lists them.",
            )
        return self._said[utt_id]


def _kaldi(line: str) -> tuple[str, tuple[str, None]]:
    utt_id, _, text = line.strip().replace("\t", " ", 1).partition(" ")
    return utt_id, (text.strip(), None)


def _json(line: str, where: str) -> tuple[str, tuple[str, float | None]]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as e:
        raise TeacherError(f"not JSON: {e}", where=where) from None
    audio, text, score = value.get("audio_filepath"), value.get("pred_text"), value.get("score")
    if text is None and audio is None:  # beside a NeMo recording, text is the reference
        text = value.get("text")
    utt_id = value.get("id") or (name_of(audio, value) if isinstance(audio, str) else None)
    if not isinstance(utt_id, str) or not isinstance(text, str):
        raise TeacherError(
            f"no {'id' if not isinstance(utt_id, str) else 'text' if audio is None else 'pred_text'}",
            where=where,
            do="A line has id and text (or pred_text), or audio_filepath and pred_text.",
        )
    if not (score is None or (isinstance(score, int | float) and not isinstance(score, bool))):
        raise TeacherError(f"the score of {utt_id!r} is {score!r}, not a number", where=where)
    return utt_id, (text, None if score is None else float(score))
