"""Audio to feature batches, loaded ahead while the teacher works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..corpus.audio import fingerprint, load_audio, seconds_of
from ..corpus.manifest import Utterance
from ..errors import AudioError, LogitStoreError, TeacherError, TokenError
from ..teachers.protocol import Teacher
from ..tokens.table import TokenTable


@dataclass(frozen=True)
class LoadedUtterance:
    """An utterance ready for the teacher.

    Attributes:
        utt: its manifest line.
        features: (T0, F) float32.
        seconds: of audio, as loaded.
        labels: (U,) token ids; None where no stream needs them, or nobody gave any.
        audio: fingerprint of the samples, as the teacher heard them.
        samples: (samples,) float32 themselves, for a teacher that transcribes; else None.
    """

    utt: Utterance
    features: torch.Tensor
    seconds: float
    labels: list[int] | None
    audio: str = ""
    samples: NDArray[np.float32] | None = None


FailedUtterance = tuple[Utterance, LogitStoreError]


def load(utt: Utterance, teacher: Teacher, table: TokenTable, needs_labels: bool) -> LoadedUtterance:
    """Load, resample and featurise one utterance.

    The recording of a teacher that does not hear, but looks up what was written, is not opened.

    Raises ``AudioError``, ``TokenError``, or ``TeacherError`` where ``features`` fails.
    """
    rate = teacher.describe().sample_rate
    labels = labels_of(utt, teacher, table) if needs_labels else None
    if not getattr(teacher, "hears", True):
        seconds = seconds_of(utt)
        return LoadedUtterance(
            utt, teacher.features(np.zeros(round(seconds * rate), np.float32)), seconds, labels
        )
    audio = load_audio(utt, rate)
    try:
        features = teacher.features(audio)
    except ValueError as e:
        raise AudioError(f"no features from {len(audio) / rate:.3f} s of audio: {e}", where=utt.id) from e
    except Exception as e:  # in a loader thread: whatever it is, it is named with its utterance
        raise TeacherError(f"features() failed with {type(e).__name__}: {e}", where=utt.id) from e
    if features.dim() < 1 or not len(features):
        raise AudioError(f"{len(audio) / rate:.3f} s of audio are too short for one frame", where=utt.id)
    samples = audio if hasattr(teacher, "transcribe") else None
    return LoadedUtterance(utt, features, len(audio) / rate, labels, fingerprint(audio), samples)


def labels_of(utt: Utterance, teacher: Teacher, table: TokenTable) -> list[int] | None:
    """Label ids from the manifest's tokens, or its text tokenised by the teacher; raises ``TokenError``.

    None where there is neither: the teacher's own decode will do.
    """
    if utt.tokens is not None:
        labels = list(utt.tokens)
    elif utt.text is not None:
        tokenise = getattr(teacher, "labels", None)
        if tokenise is None:
            raise TokenError(
                "the manifest has text, but the teacher has no labels()",
                where=utt.id,
                do="Add labels(text) to the teacher, or token ids to the manifest.",
            )
        try:
            labels = [int(i) for i in tokenise(utt.text)]
        except ValueError as e:
            raise TokenError(f"the text {utt.text!r} does not tokenise: {e}", where=utt.id) from e
    else:
        return None
    for i in labels:
        if not 0 <= i < len(table) or i == table.blank:
            what = "the blank" if i == table.blank else f"outside a table of {len(table)} tokens"
            raise TokenError(f"label {i} is {what}", where=utt.id)
    return labels


def by_length(
    utterances: Sequence[Utterance],
    batch_seconds: float,
    failed: Callable[[Utterance, LogitStoreError], None],
) -> Iterator[list[Utterance]]:
    """Batches of similar length, longest first; none pads beyond ``batch_seconds`` unless it is of one."""
    sized: list[tuple[float, int, Utterance]] = []
    for number, utt in enumerate(utterances):
        try:
            sized.append((-seconds_of(utt), number, utt))
        except AudioError as e:
            failed(utt, e)
    batch: list[Utterance] = []
    longest = 0.0
    for minus, _, utt in sorted(sized, key=lambda s: s[:2]):
        if batch and longest * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        longest = longest if batch else -minus
        batch.append(utt)
    if batch:
        yield batch


def ahead(
    batches: Iterator[list[Utterance]],
    work: Callable[[Utterance], LoadedUtterance],
    threads: int,
    depth: int = 2,
) -> Iterator[tuple[list[LoadedUtterance], list[FailedUtterance]]]:
    """Load ``depth`` batches ahead in threads; gives each batch with those of it that failed."""
    waiting: deque[list[tuple[Utterance, Future[LoadedUtterance]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
        try:
            while True:
                while len(waiting) <= depth and (batch := next(batches, None)) is not None:
                    waiting.append([(utt, pool.submit(work, utt)) for utt in batch])
                if not waiting:
                    return
                good: list[LoadedUtterance] = []
                bad: list[FailedUtterance] = []
                for utt, future in waiting.popleft():
                    try:
                        good.append(future.result())
                    except LogitStoreError as e:
                        bad.append((utt, e))
                yield good, bad
        finally:
            pool.shutdown(cancel_futures=True)
