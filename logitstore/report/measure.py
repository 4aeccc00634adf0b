"""Measurements of sampled utterances, from which a report picks the worst and draws distributions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.base import LOSS
from ..errors import StoreError
from ..schema.kinds import kind_of
from ..schema.lattice import Form
from ..schema.spec import StreamSpec
from ..store.reader import Store
from ..targets.decode import decode
from ..targets.target import Target
from ..tokens.transcript import edit_distance, words
from .rows import TEMPERATURES, evenly, statistics

ROWS = 1500  # rows of a stream of an utterance that are measured
LONGEST = 1e7  # seconds of a recording that are believed
LARGEST = 20_000_000  # numbers of a stream beyond which a lattice is not decoded for the list of the worst


@dataclass(frozen=True)
class Measured:
    """Measurements of one utterance; None where one does not apply.

    Attributes:
        id: id of the utterance.
        T: valid teacher frames.
        seconds: seconds of audio.
        wer: word error rate of the first stream that has a transcript.
        lost: mean KL(teacher ‖ stored) of a row in nats, of the stream that loses most.
        tail: mean probability at temperature 1 of classes that are not stored, of the first stream of classes.
        entropy: mean entropy of a row in nats, of the first stream of classes.
        off: teacher frames by which T differs from the audio's length.
        disagreement: edits between the decodes of CTC and RNN-T, per token of the longer one.
        tokens: tokens of the decode of the first stream, or labels.
    """

    id: str
    T: int
    seconds: float | None
    wer: float | None
    lost: float | None
    tail: float | None
    entropy: float | None
    off: float | None
    disagreement: float | None
    tokens: int


@dataclass
class Histogram:
    """A histogram with bins of equal width; numbers outside of its range count in its first or last bin.

    Attributes:
        low: lower end of the first bin.
        high: upper end of the last bin.
        counts: number of values in each bin.
    """

    low: float
    high: float
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(40, np.int64))
    total: float = 0.0

    def add(self, values: NDArray[np.floating]) -> None:
        """Count values."""
        place = (values - self.low) / max(self.high - self.low, 1e-9) * len(self.counts)
        inside = np.clip(np.nan_to_num(place), 0, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(inside, minlength=len(self.counts))
        self.total += float(np.nan_to_num(values).sum())

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return self.total / max(int(self.counts.sum()), 1)


TAIL_LOW = -8.0  # decadic logarithm of the smallest tail mass that a histogram tells apart


@dataclass
class StreamDistributions:
    """Histograms of the rows of one stream.

    Attributes:
        entropy: entropy in nats.
        blank: probability of the blank.
        top1: probability of the most probable class.
        tails: decadic logarithm of the mass left out, at temperatures 1, 2, 4 and 8; empty where all is kept.
    """

    entropy: Histogram
    blank: Histogram
    top1: Histogram
    tails: list[Histogram]

    @classmethod
    def of(cls, spec: StreamSpec) -> StreamDistributions:
        """Return empty histograms for a stream."""
        return cls(
            Histogram(0.0, float(np.log(max(spec.classes, 2)))),
            Histogram(0.0, 1.0),
            Histogram(0.0, 1.0),
            [Histogram(TAIL_LOW, 0.0) for _ in TEMPERATURES],
        )


@dataclass
class Measurements:
    """Measurements of all sampled utterances.

    Attributes:
        utterances: one for each utterance that could be read.
        streams: distributions by stream of classes.
        unreadable: (id, error) of utterances that could not be read.
    """

    utterances: list[Measured]
    streams: dict[str, StreamDistributions]
    unreadable: list[tuple[str, str]]


def sampled(ids: list[str], most: int, seed: int) -> list[str]:
    """Return at most ``most`` ids in stored order, drawn by a seed; all of them if there are no more."""
    if len(ids) <= most:
        return ids
    return [ids[i] for i in sorted(random.Random(seed).sample(range(len(ids)), most))]


def measure(store: Store, ids: Iterable[str]) -> Measurements:
    """Measure utterances; one that cannot be read is listed and hides no other."""
    streams = {s.name: StreamDistributions.of(s) for s in store.spec.streams if s.stream_kind.classes}
    found = Measurements([], streams, [])
    for utt_id in ids:
        try:
            target = store[utt_id]
            found.utterances.append(_measured(store, target, streams))
        except StoreError as error:
            found.unreadable.append((utt_id, str(error)))
    return found


def _measured(store: Store, target: Target, streams: dict[str, StreamDistributions]) -> Measured:
    entropies, tails = [], []
    for name, histograms in streams.items():
        rows = target[name]
        of_rows = statistics(rows.take(evenly(len(rows), ROWS)), target.blank)
        histograms.entropy.add(of_rows.entropy)
        histograms.blank.add(of_rows.blank)
        histograms.top1.add(of_rows.top1)
        with np.errstate(divide="ignore"):
            logs = np.maximum(np.log10(of_rows.tails), TAIL_LOW)
        for number, histogram in enumerate(histograms.tails):
            histogram.add(logs[:, number])
        entropies.append(float(of_rows.entropy.mean()) if len(rows) else 0.0)
        tails.append(float(of_rows.tails[:, 0].mean()) if len(rows) else 0.0)
    decodes = Decodes(store, target)
    return Measured(
        id=target.id,
        T=target.T,
        seconds=seconds_of(target),
        wer=decodes.word_error_rate(),
        lost=max((mean for mean, _ in losses_of(target).values()), default=None),
        tail=tails[0] if tails else None,
        entropy=entropies[0] if entropies else None,
        off=frames_off(target),
        disagreement=decodes.disagreement(),
        tokens=decodes.tokens(),
    )


def losses_of(target: Target) -> dict[str, tuple[float, float]]:
    """Return by stream the (mean, maximum) nats lost of a row that the dump measured (SPEC E11)."""
    held: Any = target.meta.get(LOSS)
    found: dict[str, tuple[float, float]] = {}
    for stream, numbers in held.items() if isinstance(held, dict) else ():
        if isinstance(numbers, list | tuple) and len(numbers) >= 3:
            mean, most = numbers[0], numbers[2]
            if isinstance(mean, int | float) and isinstance(most, int | float):
                found[str(stream)] = float(mean), float(most)
    return found


def seconds_of(target: Target) -> float | None:
    """Return the seconds of audio; None where they are not known, or are no length of a recording."""
    seconds = target.meta.get("seconds")
    if isinstance(seconds, int | float) and 0 < seconds < LONGEST:
        return float(seconds)
    return None


def frames_off(target: Target) -> float | None:
    """Return the frames by which T exceeds the audio's length; None where a length or rate is not known."""
    seconds = seconds_of(target)
    if target.clock is None or not seconds:
        return None
    return target.T - seconds / float(target.clock.shift)


class Decodes:
    """Decodes and transcripts of one utterance, each made once.

    Args:
        store: the store.
        target: one utterance of it.
    """

    def __init__(self, store: Store, target: Target) -> None:
        self._store, self._target = store, target
        self._tokens: dict[str, list[int]] = {}
        self._specs = {s.name: s for s in store.spec.streams}

    def can_decode(self, stream: str) -> bool:
        """Return whether a stream's rows can be decoded, in reasonable time."""
        spec = self._specs[stream]
        if not spec.stream_kind.classes or stream not in self._target.streams:
            return False
        if spec.kind != "rnnt":
            return True
        small = len(self._target[stream]) * spec.classes <= LARGEST
        return small and not Form.parse(spec.form).framewise

    def of(self, stream: str) -> list[int]:
        """Return the token ids of the greedy decode of a stream, without an end token."""
        if stream not in self._tokens:
            spec, head = self._specs[stream], self._store.spec.teacher.head(stream)
            end = None if head is None else head.end
            found = decode(self._target, stream, spec.blank)
            self._tokens[stream] = [i for i in found if i != end]
        return self._tokens[stream]

    def text(self, stream: str) -> str | None:
        """Return the transcript that the record holds, else the text of the greedy decode; None without both."""
        stored = transcript(self._target, stream)
        if stored is not None:
            return stored
        return self._store.tokens.text(self.of(stream)) if self.can_decode(stream) else None

    def transcripts(self) -> dict[str, str]:
        """Return the text of every stream that has one."""
        texts = {name: self.text(name) for name in self._store.spec.transcript_streams}
        return {name: text for name, text in texts.items() if text is not None}

    def word_error_rate(self) -> float | None:
        """Return the word error rate of the first stream with a text; None without a reference."""
        if self._target.text is None:
            return None
        for name in self._store.spec.transcript_streams:
            text = self.text(name)
            if text is not None:
                reference = words(self._target.text)
                return edit_distance(reference, words(text)) / max(len(reference), 1)
        return None

    def disagreement(self) -> float | None:
        """Return the edits between the texts of CTC and RNN-T, per word of the longer; None without both."""
        texts: list[list[str]] = []
        for name in ("ctc", "rnnt"):
            text = self.text(name) if name in self._specs else None
            if text is None:
                return None
            texts.append(words(text))
        return edit_distance(*texts) / max(map(len, [*texts, [""]]))

    def tokens(self) -> int:
        """Return the number of tokens of the first decode, else of the labels."""
        for name, spec in self._specs.items():
            if spec.kind == "ctc" and self.can_decode(name):
                return len(self.of(name))
        return self._target.U


def transcript(target: Target, stream: str) -> str | None:
    """Return the transcript of a stream that a record holds; None where there is none."""
    held: Any = target.meta.get("hyp")
    one: Any = held.get(stream) if isinstance(held, dict) else None
    text = one.get("text") if isinstance(one, dict) else None
    return text if isinstance(text, str) else None


def worst(
    utterances: Iterable[Measured], value: Callable[[Measured], float | None], most: int
) -> list[tuple[Measured, float]]:
    """Return the utterances with the largest values, the largest first; those of value 0 are left out."""
    ranked = [(u, v) for u in utterances if (v := value(u)) is not None and np.isfinite(v) and v > 0]
    return sorted(ranked, key=lambda pair: -pair[1])[:most]


def is_frames(spec: StreamSpec) -> bool:
    """Return whether a stream has one distribution a frame."""
    if spec.kind == "rnnt":
        return Form.parse(spec.form).framewise
    return kind_of(spec.name).axes == ("T", "V")
