"""What the teacher itself would write down: greedy decoding, branch by branch, as a dump goes along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..targets.decode import greedy_ctc
from ..tokens.transcript import Transcript
from .driver import JoinerRunner, TeacherDriver, TeacherOutput

MAX_SYMBOLS = 10  # tokens a frame; a joiner that never says blank must end
FRAMES = 1 << 13  # whose log-normalisers are computed at once
FRAMES_AT_ONCE = 32  # that the joiner looks through for the next token


class TeacherTranscriber:
    """Writes down what a driver's teacher said.

    Args:
        driver: its streams are decoded.
        keep: put transcripts into the rows: of no stream (``none``), of the ``ctc`` stream, which costs next
            to nothing, or of ``all``: a transducer is then decoded frame by frame, an attention decoder token
            by token, which can double a dump's time and more. Labels that are missing are decoded in any
            case, and a ``text`` stream is its transcript.
    """

    def __init__(self, driver: TeacherDriver, *, keep: str = "ctc") -> None:
        self._driver = driver
        self._streams = [s for s in driver.streams if driver.kinds[s].has_transcript]
        self._keep = [s for s in self._streams if keep in ("all", s) or not driver.kinds[s].axes]
        self._blank = driver.table.blank

    def transcribe(
        self, output: TeacherOutput, judged: bool = False
    ) -> tuple[TeacherOutput, dict[str, Transcript]]:
        """The transcript of every stream; the utterance with its row's notes, and labels if it had none.

        Nothing is decoded for nobody: once the teacher is ``judged``, only streams that rows keep, and those
        whose labels are missing. Raises what the teacher raises.
        """
        kinds, labels = self._driver.kinds, dict(output.labels)
        mute = [s for s in self._streams if kinds[s].labels and s not in labels]
        wanted = [s for s in self._streams if not judged or s in self._keep or s in mute]
        if not wanted:
            return output, {}
        reference = self._reference(output)
        transcripts: dict[str, Transcript] = {}
        for s in sorted(wanted, key=lambda s: not kinds[s].axes):  # a text stream may be that of another one
            transcripts[s] = self._transcript(s, output, reference, transcripts)
        transcripts = {s: transcripts[s] for s in wanted}
        kept = {s: transcripts[s].to_json() for s in self._keep}
        notes: dict[str, Any] = {"hyp": kept} if kept else {}
        for s in mute:
            labels[s] = self._driver.with_end(s, transcripts[s].tokens)
            notes.setdefault("labels_from", s)
            notes.setdefault("labels_score", transcripts[s].rounded)
        return replace(output, labels=labels, notes=notes), transcripts

    def _reference(self, output: TeacherOutput) -> Sequence[int] | None:
        """Token ids of the reference: the labels, or the text tokenised where the teacher can."""
        utt = output.loaded.utt
        if output.loaded.labels is not None:
            return output.loaded.labels
        tokenise = getattr(self._driver.teacher, "labels", None)
        if utt.tokens is not None or utt.text is None or tokenise is None:
            return utt.tokens
        try:
            return [int(i) for i in tokenise(utt.text)]
        except Exception:  # a figure that is merely nice to have never ends a dump
            return None

    def _transcript(
        self,
        stream: str,
        output: TeacherOutput,
        reference: Sequence[int] | None,
        others: dict[str, Transcript],
    ) -> Transcript:
        text = output.loaded.utt.text
        kind = self._driver.kinds[stream].name
        if kind == "text":
            found = self._driver.transcribed(output)
            if found is not None:
                return Transcript.of((), found[0], found[1], text, None)
            first = next(iter(self._streams_with_rows()), "")
            return others[first] if first in others else self._transcript(first, output, reference, others)
        ways: dict[str, Callable[[TeacherOutput], tuple[list[int], float]]] = {
            "ctc": self._ctc,
            "rnnt": partial(search, self._driver),
            "seq2seq": self._driver.generated,
        }
        tokens, score = ways[kind](output)
        return Transcript.of(tokens, self._driver.table.text(tokens), score, text, reference)

    def _streams_with_rows(self) -> list[str]:
        return [s for s in self._streams if self._driver.kinds[s].axes]

    def _ctc(self, output: TeacherOutput) -> tuple[list[int], float]:
        """Best path (Graves et al. 2006)."""
        rows = output.rows["ctc"].float()
        if not len(rows):
            return [], 0.0
        top, best = rows.max(-1)
        total = torch.cat([some.logsumexp(-1) for some in torch.split(rows, FRAMES)])
        score = float((top - total).sum())
        return greedy_ctc(np.asarray(best.cpu().numpy(), np.int64), self._blank), score


def search(joiner: JoinerRunner, output: TeacherOutput) -> tuple[list[int], float]:
    """Time-synchronous greedy search (Graves 2012): token ids, and the score of the path.

    The joiner looks ahead for the next token that is not blank, so it runs once a token and once in every
    thirty-two frames.
    """
    blank = joiner.table.blank
    tokens: list[int] = []
    score, t, here = 0.0, 0, 0
    enc, dec = joiner.project(output, tokens)
    while t < output.T:
        logits = joiner.join(enc[t : t + FRAMES_AT_ONCE], dec[-1:])
        top, best = _best(logits.reshape(-1, logits.shape[-1]).float())
        ahead = next((i for i, token in enumerate(best) if token != blank), len(best))
        score += sum(top[:ahead])
        here = 0 if ahead else here
        t += ahead
        if ahead == len(best):
            continue
        if here >= MAX_SYMBOLS or len(tokens) >= output.T:
            t, here = t + 1, 0
            continue
        tokens.append(best[ahead])
        score += top[ahead]
        here += 1
        _, dec = joiner.project(output, tokens)
    return tokens, score


def _best(rows: torch.Tensor) -> tuple[list[float], list[int]]:
    """Log-probability and class of the best entry of every row."""
    top, best = rows.max(-1)
    return (top - rows.logsumexp(-1)).tolist(), best.tolist()
