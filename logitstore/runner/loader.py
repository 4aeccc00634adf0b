"""Loading ahead: audio to batches of features in threads, while the teacher works."""

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
    """Utterance ready for the teacher.

    Attributes:
        utt: manifest line of the utterance.
        features: (T0, F) float32.
        seconds: length of the audio as loaded.
        labels: (U,) token ids; None where no stream needs them or the manifest gives none.
        audio: fingerprint of the samples at the teacher's rate.
        samples: (samples,) float32 for a teacher that transcribes; None for any other.
    """

    utt: Utterance
    features: torch.Tensor
    seconds: float
    labels: list[int] | None
    audio: str = ""
    samples: NDArray[np.float32] | None = None


FailedUtterance = tuple[Utterance, LogitStoreError]


def load(utt: Utterance, teacher: Teacher, table: TokenTable, needs_labels: bool) -> LoadedUtterance:
    """Load and resample one utterance and compute its features.

    The recording is not opened for a teacher that looks transcripts up by id (``needs_audio`` false).

    Raises ``AudioError``, ``TokenError``, or ``TeacherError`` where ``features`` fails.
    """
    sample_rate = teacher.describe().sample_rate
    labels = labels_of(utt, teacher, table) if needs_labels else None
    if not getattr(teacher, "needs_audio", True):
        seconds = seconds_of(utt)
        silence = np.zeros(round(seconds * sample_rate), np.float32)
        return LoadedUtterance(utt, teacher.features(silence), seconds, labels)
    audio = load_audio(utt, sample_rate)
    seconds = len(audio) / sample_rate
    try:
        features = teacher.features(audio)
    except ValueError as e:
        raise AudioError(f"no features from {seconds:.3f} s of audio: {e}", where=utt.id) from e
    except Exception as e:  # the teacher is the user's code: any error is reported with its utterance
        raise TeacherError(f"features() failed with {type(e).__name__}: {e}", where=utt.id) from e
    if features.dim() < 1 or not len(features):
        raise AudioError(f"{seconds:.3f} s of audio are too short for one frame", where=utt.id)
    samples = audio if hasattr(teacher, "transcribe") else None
    return LoadedUtterance(utt, features, seconds, labels, fingerprint(audio), samples)


def labels_of(utt: Utterance, teacher: Teacher, table: TokenTable) -> list[int] | None:
    """Return the label ids of the manifest's tokens, or of its text tokenised by the teacher.

    None where the manifest has neither: the teacher's own transcript is taken later. Raises ``TokenError``, or
    ``TeacherError`` where ``labels`` fails with another error than ``ValueError``.
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
        except Exception as e:  # the teacher is the user's code: any error is reported with its utterance
            raise TeacherError(
                f"labels() failed with {type(e).__name__}: {e}",
                where=utt.id,
                why=f"The text is {utt.text!r}.",
                do="Raise ValueError for a text that the teacher cannot tokenise; repair labels() otherwise.",
            ) from e
    else:
        return None
    for i in labels:
        if i == table.blank:
            raise TokenError(f"label {i} is the blank", where=utt.id)
        if not 0 <= i < len(table):
            raise TokenError(f"label {i} is outside a table of {len(table)} tokens", where=utt.id)
    return labels


def by_length(
    utterances: Sequence[Utterance],
    batch_seconds: float,
    failed: Callable[[Utterance, LogitStoreError], None],
) -> Iterator[list[Utterance]]:
    """Yield batches of similar length, longest first.

    Args:
        utterances: utterances of one block.
        batch_seconds: most seconds of audio of a batch, padding included; a longer utterance is a batch of
            its own.
        failed: called with each utterance of unknown length and its error.
    """
    sized: list[tuple[float, Utterance]] = []
    for utt in utterances:
        try:
            sized.append((seconds_of(utt), utt))
        except AudioError as e:
            failed(utt, e)
    batch: list[Utterance] = []
    longest = 0.0
    for seconds, utt in sorted(sized, key=lambda s: -s[0]):  # stable: manifest order among equals
        if batch and longest * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        if not batch:
            longest = seconds
        batch.append(utt)
    if batch:
        yield batch


def ahead(
    batches: Iterator[list[Utterance]],
    work: Callable[[Utterance], LoadedUtterance],
    threads: int,
    depth: int = 2,
) -> Iterator[tuple[list[LoadedUtterance], list[FailedUtterance]]]:
    """Load batches ahead in threads and yield each with its utterances that failed.

    Args:
        batches: utterances of each batch.
        work: loads one utterance.
        threads: number of loader threads.
        depth: number of batches that are loaded before they are needed.
    """
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
