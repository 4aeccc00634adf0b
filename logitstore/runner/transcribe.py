"""Transcripts by the teacher: greedy decoding of every stream, while a dump runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import TeacherError
from ..targets.decode import greedy_ctc
from ..tokens.transcript import Transcript
from .driver import JoinerRunner, TeacherDriver, TeacherOutput

MAX_SYMBOLS = 10  # tokens at one frame, so that the search ends with a joiner that never gives a blank
FRAMES_AT_ONCE = 1 << 13  # frames of one log-normaliser computation
FRAMES_AHEAD = 32  # frames that the joiner searches for the next token at once


class TeacherTranscriber:
    """Greedy decoder of the streams of a teacher.

    Args:
        driver: the teacher on its device.
        keep: streams with transcripts in the records: ``none``; ``ctc``, which costs next to nothing;
            or ``all``, where a transducer is decoded frame by frame and an attention decoder token by token,
            which can double the time of a dump and more. Missing labels are decoded in any case, and so is a
            ``text`` stream.
    """

    def __init__(self, driver: TeacherDriver, *, keep: str = "ctc") -> None:
        self._driver = driver
        self._streams = [s for s in driver.streams if driver.kinds[s].has_transcript]
        self._keep = [s for s in self._streams if keep in ("all", s) or not driver.kinds[s].axes]
        self._blank = driver.table.blank

    def transcribe(
        self, output: TeacherOutput, judged: bool = False
    ) -> tuple[TeacherOutput, dict[str, Transcript]]:
        """Decode an utterance; raises the teacher's errors.

        Args:
            output: one utterance.
            judged: decode only streams that are stored or that need labels. Otherwise every stream is
                decoded.

        Returns:
            The utterance, with notes for its record and with labels if it had none; and its transcripts by
            stream.
        """
        kinds, labels = self._driver.kinds, dict(output.labels)
        unlabelled = [s for s in self._streams if kinds[s].labels and s not in labels]
        wanted = [s for s in self._streams if not judged or s in self._keep or s in unlabelled]
        if not wanted:
            return output, {}
        reference = self._reference(output)
        transcripts: dict[str, Transcript] = {}
        # Streams with rows come first: the transcript of a text stream may be that of another stream.
        for stream in sorted(wanted, key=lambda s: not kinds[s].axes):
            transcripts[stream] = self._transcript(stream, output, reference, transcripts)
        transcripts = {s: transcripts[s] for s in wanted}
        kept = {s: transcripts[s].to_json() for s in self._keep}
        notes: dict[str, Any] = {"hyp": kept} if kept else {}
        for stream in unlabelled:
            labels[stream] = self._driver.with_end(stream, transcripts[stream].tokens)
            notes.setdefault("labels_from", stream)
            notes.setdefault("labels_score", transcripts[stream].rounded)
        return replace(output, labels=labels, notes=notes), transcripts

    def _reference(self, output: TeacherOutput) -> Sequence[int] | None:
        """Return token ids of the reference: its labels, or its text tokenised where the teacher can."""
        utt = output.loaded.utt
        if output.loaded.labels is not None:
            return output.loaded.labels
        tokenise = getattr(self._driver.teacher, "labels", None)
        if utt.tokens is not None or utt.text is None or tokenise is None:
            return utt.tokens
        try:
            return [int(i) for i in tokenise(utt.text)]
        except Exception:  # without a reference only the token error rate is missing: no reason to end a dump
            return None

    def _transcript(
        self,
        stream: str,
        output: TeacherOutput,
        reference: Sequence[int] | None,
        others: dict[str, Transcript],
    ) -> Transcript:
        """Decode one stream; a text stream takes another stream's transcript if the teacher has no texts."""
        reference_text = output.loaded.utt.text
        kind = self._driver.kinds[stream].name
        if kind == "text":
            given = self._driver.transcribed(output)
            if given is not None:
                return Transcript.of((), given[0], given[1], reference_text, None)
            first = next((s for s in self._streams if self._driver.kinds[s].axes), "")
            return others[first] if first in others else self._transcript(first, output, reference, others)
        if kind == "ctc":
            tokens, score = self._best_path(output)
        elif kind == "rnnt":
            tokens, score = search(self._driver, output)
        else:
            tokens, score = self._driver.generated(output)
        return Transcript.of(tokens, self._text(tokens, output), score, reference_text, reference)

    def _text(self, tokens: Sequence[int], output: TeacherOutput) -> str:
        """Return the text of token ids, by the teacher's ``text`` where it has one, else by the table."""
        spell = getattr(self._driver.teacher, "text", None)
        if not callable(spell):
            return self._driver.table.text(tokens)
        where = output.loaded.utt.id
        try:
            text = spell(list(tokens))
        except Exception as e:  # the teacher is the user's code: any error is reported with its utterance
            raise TeacherError(f"text() failed with {type(e).__name__}: {e}", where=where) from e
        if not isinstance(text, str):
            raise TeacherError(f"text() gives {type(text).__name__}, not a text", where=where)
        return text

    def _best_path(self, output: TeacherOutput) -> tuple[list[int], float]:
        """Decode CTC rows by their best path (Graves et al. 2006): token ids and log-probability."""
        rows = output.rows["ctc"].float()
        if not len(rows):
            return [], 0.0
        top, best = rows.max(-1)
        normalisers = torch.cat([part.logsumexp(-1) for part in torch.split(rows, FRAMES_AT_ONCE)])
        score = float((top - normalisers).sum())
        return greedy_ctc(np.asarray(best.cpu().numpy(), np.int64), self._blank), score


def search(joiner: JoinerRunner, output: TeacherOutput) -> tuple[list[int], float]:
    """Decode an utterance by time-synchronous greedy search (Graves 2012).

    The joiner looks ahead for the next token that is not blank, so it runs once a token and once in every 32
    frames.

    Returns:
        Token ids, and the log-probability of the path.
    """
    blank = joiner.table.blank
    tokens: list[int] = []
    score, t, at_frame = 0.0, 0, 0  # at_frame: tokens given at frame t
    enc, dec = joiner.project(output, tokens)
    while t < output.T:
        logits = joiner.join(enc[t : t + FRAMES_AHEAD], dec[-1:])
        top, best = _best(logits.reshape(-1, logits.shape[-1]).float())
        blanks = next((i for i, token in enumerate(best) if token != blank), len(best))
        score += sum(top[:blanks])
        t += blanks
        if blanks:
            at_frame = 0
        if blanks == len(best):
            continue
        if at_frame >= MAX_SYMBOLS or len(tokens) >= output.T:
            t, at_frame = t + 1, 0
            continue
        tokens.append(best[blanks])
        score += top[blanks]
        at_frame += 1
        _, dec = joiner.project(output, tokens)
    return tokens, score


def _best(rows: torch.Tensor) -> tuple[list[float], list[int]]:
    """Return log-probability and class of the best entry of every row."""
    top, best = rows.max(-1)
    return (top - rows.logsumexp(-1)).tolist(), best.tolist()
