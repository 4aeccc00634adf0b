"""Runs some utterances through the teacher again and compares what it says with what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..corpus.manifest import Manifest, Utterance
from ..errors import UsageError
from ..runner.chunks import Chunks, driver_of
from ..runner.driver import TeacherDriver, TeacherOutput
from ..runner.loader import load
from ..runner.pipe import Pipe
from ..runner.stored_heads import factored
from ..runner.transcribe import TeacherTranscriber
from ..schema.kinds import kind_of
from ..schema.lattice import Form
from ..schema.spec import StreamSpec
from ..storage.base import EncodedRecord
from ..store.lattice_nodes import Picker
from ..store.reader import Store
from ..store.row_encoder import RowEncoder
from ..targets.target import Target
from ..teachers.layers import layered
from ..teachers.protocol import Teacher, check_protocol
from ..tokens.table import require_same

Float = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Compared:
    """One stream of one utterance.

    Attributes:
        id: of the utterance.
        stream: its name.
        kl: mean KL(what the teacher says now, encoded as the store is ‖ stored) a row, in nats; infinite
            where even the shapes differ. Another batch rounds differently: 1e-6, not 0. Of a ``hidden``
            stream, the mean squared difference over the mean square; of a ``text`` one 0, or infinite.
        lost: mean KL(teacher ‖ stored) a row, in nats: what the encoding leaves out as well.
        rows: compared.
        note: what else is wrong; empty where nothing is.
    """

    id: str
    stream: str
    kl: float
    lost: float
    rows: int
    note: str = ""


CHANGED = "its recording is not the one that was dumped (SPEC S3: audio)"


def against_teacher(store: Store, teacher: Teacher, manifest: Manifest, count: int) -> list[Compared]:
    """Run ``count`` utterances, spread evenly over those that manifest and store share, on the CPU.

    Raises:
        UsageError: manifest and store share nothing.
        VocabError, AudioError, TeacherError: the utterance cannot be run at all.
    """
    teacher = check_protocol(teacher, type(teacher).__name__)
    layers = [h for h in store.spec.teacher.heads if kind_of(h.stream).name == "hidden"]
    teacher = layered(teacher, layers)
    require_same(store.tokens, teacher.tokens(), where="the teacher", which=("the store", "the teacher"))
    shared = [u for u in manifest if u.id in store]
    if not shared:
        raise UsageError("the manifest names no utterance of the store", where=str(store.place))
    chosen = [shared[i * len(shared) // count] for i in range(min(count, len(shared)))]
    names = [s.name for s in store.spec.streams]
    given = teacher, store.tokens, names, "cpu"
    driver = driver_of(Chunks.stored(store.spec.teacher), 0, *given, factored=list(factored(store.spec)))
    return [c for utt in chosen for c in _compare(store, driver, utt)]


class _Kept:
    """What a pipe writes to here: a list."""

    def __init__(self) -> None:
        self.rows: list[EncodedRecord] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: EncodedRecord) -> None:
        self.rows.append(row)

    def discard(self) -> None:
        self.rows.clear()


def _compare(store: Store, driver: TeacherDriver, utt: Utterance) -> Iterable[Compared]:
    stored, names = store[utt.id], driver.streams
    loaded = load(utt, driver.teacher, store.tokens, any(kind.labels for kind in driver.kinds.values()))
    note = "" if stored.meta.get("audio", loaded.audio) == loaded.audio else CHANGED
    (output,) = driver.run([loaded])
    own = {name: ids.tolist() for name, ids in stored.driven.items()}  # where nobody gave any, as stored
    output, _ = TeacherTranscriber(driver, keep="none").transcribe(
        replace(output, labels={**own, **output.labels}), judged=True
    )
    now = store.decode(_encoded(store, driver, output))
    for name in names:
        if not driver.kinds[name].axes:
            far = 0.0 if _text(now, name) == _text(stored, name) else float("inf")
            yield Compared(utt.id, name, far, far, 1, note)
            continue
        exact = _exact(driver, output, store.spec.stream(name), stored)
        there, here = _dense(stored, name), _dense(now, name)
        if not len(there) == len(here) == len(exact):
            yield Compared(utt.id, name, float("inf"), float("inf"), 0, note)
        else:
            error = divergence if driver.kinds[name].classes else relative_error
            yield Compared(utt.id, name, error(here, there), error(exact, there), len(there), note)


def _encoded(store: Store, driver: TeacherDriver, output: TeacherOutput) -> EncodedRecord:
    """The row that a dump would write, made by the dump's own pipe."""
    kept: Any = _Kept()
    with Pipe(kept, RowEncoder(store.spec, store.constants), skip=False) as pipe:
        pipe.put(output, driver)
        pipe.finish()
    row: EncodedRecord = kept.rows[0]
    return row


def _exact(driver: TeacherDriver, output: TeacherOutput, stream: StreamSpec, stored: Target) -> Float:
    """(N, V) log-probabilities of the stored nodes, or of their means, or (T, D) of a layer, in doubles."""
    name, kind = stream.name, stream.stream_kind
    pieces: Iterable[torch.Tensor]
    if kind.tapped:
        pieces = [output.rows[name]]
    elif kind.name == "seq2seq":
        pieces = [driver.decoded(output, name)[0]]
    elif Form.parse(stream.form).framewise:
        picker = Picker(stream, stored.labels.tolist(), stored.id)
        pieces = [rows for rows, _ in picker.rows(partial(driver.lattice, output), output.T)]
    else:
        pieces = driver.lattice(output)
    flat = torch.cat([p.reshape(-1, p.shape[-1]).float().cpu() for p in pieces])
    if not kind.classes:
        return np.asarray(flat.double().numpy())
    nodes = stored.nodes.get(name)
    if nodes is not None:
        flat = flat[torch.from_numpy(nodes.frame * (nodes.U + 1) + nodes.position)]
    return np.asarray(flat.double().log_softmax(-1).numpy())


def _text(target: Target, stream: str) -> str:
    text: str = target.meta["hyp"][stream]["text"]
    return text


def _dense(target: Target, stream: str) -> Float:
    if not kind_of(stream).classes:
        return target.vectors(stream).astype(np.float64)
    logp = target.log_probs(stream)
    return logp.reshape(-1, logp.shape[-1]).astype(np.float64)


def relative_error(p: Float, q: Float) -> float:
    """Mean squared difference of (T, D) numbers over the mean square of the former."""
    return float(np.square(p - q).sum() / max(np.square(p).sum(), 1e-30))


def divergence(p: Float, q: Float) -> float:
    """Mean KL(p ‖ q) over (N, V) rows of log-probabilities, in nats."""
    e = np.exp(p)
    return float(np.where(e > 0, e * (p - q), 0.0).sum(1).mean()) if len(p) else 0.0
