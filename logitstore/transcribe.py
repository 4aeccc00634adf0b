"""What the teacher itself would write down: greedy decoding, branch by branch, as a dump goes along."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .decode import edit_distance, greedy_ctc, words
from .drive import Driver, Joining, Spoken

MAX_SYMBOLS = 10  # tokens a frame; a joiner that never says blank must end
FRAMES_AT_ONCE = 32  # that the joiner looks through for the next token


@dataclass(frozen=True)
class Transcript:
    """One branch's greedy decode of one utterance.

    Attributes:
        tokens: ids.
        text: their text.
        score: natural logarithm of the probability of the path taken, blanks included.
        words: errors and length of the reference in words; None without a reference text.
        labels: errors and length of the reference in tokens; None without reference token ids.
        reference: these ids.
    """

    tokens: tuple[int, ...]
    text: str
    score: float
    words: tuple[int, int] | None
    labels: tuple[int, int] | None
    reference: tuple[int, ...] | None = None

    @property
    def rounded(self) -> float | None:
        """The score as it is stored; None where NaN or infinity stood on the path."""
        return round(self.score, 3) if math.isfinite(self.score) else None

    def to_json(self) -> dict[str, Any]:
        """What a row keeps of it (SPEC S8)."""
        value: dict[str, Any] = {"text": self.text, "score": self.rounded}
        for name, errors in (("wer", self.words), ("ter", self.labels)):
            if errors is not None:
                value[name] = rate(*errors)
        return value


def rate(errors: int, length: int) -> float:
    """Errors over the length of the reference, 0.0001 exact; over one where that is empty."""
    return round(errors / max(length, 1), 4)


class Scribe:
    """Writes down what a driver's teacher said.

    Args:
        driver: its streams are decoded.
        keep: put transcripts into the rows: of no stream (``none``), of the ``ctc`` stream, which costs next
            to nothing, or of ``all``: a transducer is then decoded frame by frame, which can double a
            dump's time. Labels that are missing are decoded in any case.
    """

    def __init__(self, driver: Driver, *, keep: str = "ctc") -> None:
        self._driver = driver
        self._keep = [s for s in driver.streams if keep in ("all", s)]
        self._blank, self._streams = driver.table.blank, driver.streams

    def listen(self, spoken: Spoken, judged: bool = False) -> tuple[Spoken, dict[str, Transcript]]:
        """The transcript of every stream; the utterance with its row's notes, and labels if it had none.

        Nothing is decoded for nobody: once the teacher is ``judged``, only streams that rows keep, and a
        transducer whose labels are missing. Raises what the teacher raises.
        """
        loaded = spoken.loaded
        wanted = [
            s
            for s in self._streams
            if not judged or s in self._keep or (s == "rnnt" and loaded.labels is None)
        ]
        if not wanted:
            return spoken, {}
        reference = self._reference(spoken)
        heard = {s: self._transcript(s, spoken, reference) for s in wanted}
        kept = {s: heard[s].to_json() for s in self._keep}
        notes: dict[str, Any] = {"hyp": kept} if kept else {}
        if loaded.labels is None and "rnnt" in heard:
            loaded = replace(loaded, labels=list(heard["rnnt"].tokens))
            notes["labels_from"] = "rnnt"
            notes["labels_score"] = heard["rnnt"].rounded
        return replace(spoken, loaded=loaded, notes=notes), heard

    def _reference(self, spoken: Spoken) -> Sequence[int] | None:
        """Token ids of the reference: the labels, or the text tokenised where the teacher can."""
        utt = spoken.loaded.utt
        if spoken.loaded.labels is not None:
            return spoken.loaded.labels
        tokenise = getattr(self._driver.teacher, "labels", None)
        if utt.tokens is not None or utt.text is None or tokenise is None:
            return utt.tokens
        try:
            return [int(i) for i in tokenise(utt.text)]
        except Exception:  # a figure that is merely nice to have never ends a dump
            return None

    def _transcript(self, stream: str, spoken: Spoken, reference: Sequence[int] | None) -> Transcript:
        tokens, score = search(self._driver, spoken) if stream == "rnnt" else self._ctc(spoken)
        text = self._driver.table.text(tokens)
        said = spoken.loaded.utt.text
        by_words = None if said is None else (edit_distance(words(said), words(text)), len(words(said)))
        by_labels = None if reference is None else (edit_distance(reference, tokens), len(reference))
        known = None if reference is None else tuple(reference)
        return Transcript(tuple(tokens), text, score, by_words, by_labels, known)

    def _ctc(self, spoken: Spoken) -> tuple[list[int], float]:
        """Best path (Graves et al. 2006)."""
        assert spoken.ctc is not None
        rows = spoken.ctc.float()
        if not len(rows):
            return [], 0.0
        top, best = rows.max(-1)
        score = float((top - rows.logsumexp(-1)).sum())
        return greedy_ctc(np.asarray(best.cpu().numpy(), np.int64), self._blank), score


def search(joining: Joining, spoken: Spoken) -> tuple[list[int], float]:
    """Time-synchronous greedy search (Graves 2012): token ids, and the score of the path.

    The joiner looks ahead for the next token that is not blank, so it runs once a token and once in every
    thirty-two frames.
    """
    blank = joining.table.blank
    tokens: list[int] = []
    score, t, here = 0.0, 0, 0
    enc, dec = joining.project(spoken, tokens)
    while t < spoken.T:
        logits = joining.join(enc[t : t + FRAMES_AT_ONCE], dec[-1:])
        top, best = _best(logits.reshape(-1, logits.shape[-1]).float())
        ahead = next((i for i, token in enumerate(best) if token != blank), len(best))
        score += sum(top[:ahead])
        here = 0 if ahead else here
        t += ahead
        if ahead == len(best):
            continue
        if here >= MAX_SYMBOLS or len(tokens) >= spoken.T:
            t, here = t + 1, 0
            continue
        tokens.append(best[ahead])
        score += top[ahead]
        here += 1
        _, dec = joining.project(spoken, tokens)
    return tokens, score


def _best(rows: torch.Tensor) -> tuple[list[float], list[int]]:
    """Log-probability and class of the best entry of every row."""
    top, best = rows.max(-1)
    return (top - rows.logsumexp(-1)).tolist(), best.tolist()
