"""Comparison of a store with its teacher, which runs some utterances again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..corpus.manifest import Manifest, Utterance
from ..encodings.rows import logsumexp
from ..errors import UsageError
from ..runner.chunks import Chunks, make_driver
from ..runner.driver import TeacherDriver, TeacherOutput
from ..runner.loader import load
from ..runner.pipe import record_metadata, stream_output
from ..runner.stored_heads import factored
from ..runner.transcribe import TeacherTranscriber
from ..schema.kinds import kind_of
from ..storage.base import EncodedRecord
from ..store.reader import Store
from ..store.record_encoder import RecordEncoder
from ..store.stream_output import StreamOutput, encode, own_rows
from ..targets.target import Target
from ..teachers.layers import with_layers
from ..teachers.protocol import Teacher, check_protocol
from ..tokens.table import require_same

Float = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
CHANGED = "its recording is not the one that was dumped (SPEC S3: audio)"


@dataclass(frozen=True)
class TeacherComparison:
    """One stream of one utterance, stored and as the teacher gives it today.

    Attributes:
        id: id of the utterance.
        stream: name of the stream.
        kl: mean KL(the teacher's output, encoded as in the store ‖ stored) of a row in nats; infinite where
            the shapes differ. Another batch rounds differently: about 1e-6, not 0. Of a ``hidden`` stream, the
            mean squared difference over the mean square; of a ``text`` stream 0 or infinite.
        lost: mean KL(teacher ‖ stored) of a row in nats, with the loss of the encoding.
        rows: number of rows compared.
        note: a further difference, or empty.
    """

    id: str
    stream: str
    kl: float
    lost: float
    rows: int
    note: str = ""


def against_teacher(
    store: Store, teacher: Teacher, manifest: Manifest, count: int
) -> list[TeacherComparison]:
    """Run ``count`` utterances, spread evenly over those that manifest and store share, on the CPU.

    Raises:
        UsageError: manifest and store share no utterance.
        VocabError, AudioError, TeacherError: an utterance cannot be run at all.
    """
    teacher = check_protocol(teacher, type(teacher).__name__)
    layers = [h for h in store.spec.teacher.heads if kind_of(h.stream).name == "hidden"]
    teacher = with_layers(teacher, layers)
    require_same(store.tokens, teacher.tokens(), where="the teacher", which=("the store", "the teacher"))
    shared = [u for u in manifest if u.id in store]
    if not shared:
        raise UsageError("the manifest names no utterance of the store", where=str(store.place))
    chosen = [shared[i * len(shared) // count] for i in range(min(count, len(shared)))]
    names = [s.name for s in store.spec.streams]
    given = teacher, store.tokens, names, "cpu"
    driver = make_driver(Chunks.stored(store.spec.teacher), 0, *given, factored=list(factored(store.spec)))
    return [c for utt in chosen for c in _compare(store, driver, utt)]


def _compare(store: Store, driver: TeacherDriver, utt: Utterance) -> Iterable[TeacherComparison]:
    stored, names = store[utt.id], driver.streams
    loaded = load(utt, driver.teacher, store.tokens, any(kind.labels for kind in driver.kinds.values()))
    note = "" if stored.meta.get("audio", loaded.audio) == loaded.audio else CHANGED
    (output,) = driver.run([loaded])
    given = {name: ids.tolist() for name, ids in stored.driven.items()}  # where the manifest gives none
    output = replace(output, labels={**given, **output.labels})
    output, _ = TeacherTranscriber(driver, keep="none").transcribe(output, judged=True)
    streams = {
        s.name: stream_output(s, output, driver) for s in store.spec.streams if driver.kinds[s.name].axes
    }
    today = store.decode(_record(store, output, streams))
    for name in names:
        if name not in streams:
            same = _hypothesis(today, name) == _hypothesis(stored, name)
            far = 0.0 if same else float("inf")
            yield TeacherComparison(utt.id, name, far, far, 1, note)
            continue
        exact = _exact(store, driver, output, streams[name], name, stored)
        there, here = _served(stored, name), _served(today, name)
        if not len(there) == len(here) == len(exact):
            yield TeacherComparison(utt.id, name, float("inf"), float("inf"), 0, note)
        else:
            error = divergence if driver.kinds[name].classes else relative_error
            yield TeacherComparison(utt.id, name, error(here, there), error(exact, there), len(there), note)


def _record(store: Store, output: TeacherOutput, streams: dict[str, StreamOutput]) -> EncodedRecord:
    """Encode the record that a dump would write."""
    encoder, utt_id = RecordEncoder(store.spec, store.constants), output.loaded.utt.id
    for name, given in streams.items():
        encode(encoder, store.spec.stream(name), given, utt_id)
    return encoder.finish(utt_id, output.labels, record_metadata(output))


def _exact(
    store: Store,
    driver: TeacherDriver,
    output: TeacherOutput,
    given: StreamOutput,
    name: str,
    stored: Target,
) -> Float:
    """Return (N, V) log-probabilities of the stored rows, or (T, D) numbers of a layer."""
    if given.sides is not None:  # the joiner itself, not the two sides that are stored of it
        given = StreamOutput(given.frames, given.labels, slices=lambda: driver.lattice(output))
    rows = own_rows(store.spec.stream(name), given, stored.id, nodes=stored.nodes.get(name))
    return rows - logsumexp(rows)[:, None] if driver.kinds[name].classes else rows


def _hypothesis(target: Target, stream: str) -> str:
    text: str = target.meta["hyp"][stream]["text"]
    return text


def _served(target: Target, stream: str) -> Float:
    if not kind_of(stream).classes:
        return target.vectors(stream).astype(np.float64)
    logp = target.log_probs(stream)
    return logp.reshape(-1, logp.shape[-1]).astype(np.float64)


def relative_error(p: Float, q: Float) -> float:
    """Return the mean squared difference of (T, D) numbers over the mean square of the former."""
    return float(np.square(p - q).sum() / max(np.square(p).sum(), 1e-30))


def divergence(p: Float, q: Float) -> float:
    """Return the mean KL(p ‖ q) of (N, V) rows of log-probabilities in nats."""
    e = np.exp(p)
    return float(np.where(e > 0, e * (p - q), 0.0).sum(1).mean()) if len(p) else 0.0
