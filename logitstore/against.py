"""Runs some utterances through the teacher again and compares what it says with what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .batches import load
from .drive import Driver
from .encoder import RowEncoder
from .errors import UsageError
from .manifest import Manifest, Utterance
from .reader import Store
from .target import Target
from .teachers.base import Teacher
from .vocab import require_same

Float = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Compared:
    """One stream of one utterance.

    Attributes:
        id: of the utterance.
        stream: ``ctc`` or ``rnnt``.
        kl: mean KL(what the teacher says now, encoded as the store is ‖ stored) a row, in nats; infinite
            where even the shapes differ. Another batch rounds differently: 1e-6, not 0.
        lost: mean KL(teacher ‖ stored) a row, in nats: what the encoding leaves out as well.
        rows: compared.
    """

    id: str
    stream: str
    kl: float
    lost: float
    rows: int


def against_teacher(store: Store, teacher: Teacher, manifest: Manifest, count: int) -> list[Compared]:
    """Run ``count`` utterances, spread evenly over those that manifest and store share, on the CPU.

    Raises:
        UsageError: manifest and store share nothing.
        VocabError, AudioError, TeacherError: the utterance cannot be run at all.
    """
    require_same(store.tokens, teacher.tokens(), where="the teacher", which=("the store", "the teacher"))
    shared = [u for u in manifest if u.id in store]
    if not shared:
        raise UsageError("the manifest names no utterance of the store", where=str(store.place))
    chosen = [shared[i * len(shared) // count] for i in range(min(count, len(shared)))]
    driver = Driver(teacher, store.tokens, [s.name for s in store.spec.streams], "cpu")
    return [c for utt in chosen for c in _compare(store, driver, utt)]


def _compare(store: Store, driver: Driver, utt: Utterance) -> Iterable[Compared]:
    stored = store[utt.id]
    names = driver.streams
    loaded = load(utt, driver.teacher, store.tokens, "rnnt" in names)
    (said,) = driver.run([loaded])
    encoder, logits = RowEncoder(store.spec), dict[str, torch.Tensor]()
    for name in names:
        pieces = [said.ctc] if name == "ctc" else list(driver.lattice(said))
        flat = [p.reshape(-1, p.shape[-1]).float().cpu() for p in pieces if p is not None]
        logits[name] = torch.cat(flat)
        for piece in flat:
            encoder.take(name, piece, utt.id)
    meta = {"T": said.T, "U": len(loaded.labels or ())}
    now = store.decode(encoder.finish(utt.id, loaded.labels, meta))
    for name in names:
        if stored.shapes[name] != now.shapes[name]:
            yield Compared(utt.id, name, float("inf"), float("inf"), 0)
            continue
        there, here = _dense(stored, name), _dense(now, name)
        exact = logits[name].double().log_softmax(-1).numpy()
        yield Compared(utt.id, name, divergence(here, there), divergence(exact, there), len(there))


def _dense(target: Target, stream: str) -> Float:
    logp = target.log_probs(stream)
    return logp.reshape(-1, logp.shape[-1]).astype(np.float64)


def divergence(p: Float, q: Float) -> float:
    """Mean KL(p ‖ q) over (N, V) rows of log-probabilities, in nats."""
    e = np.exp(p)
    return float(np.where(e > 0, e * (p - q), 0.0).sum(1).mean()) if len(p) else 0.0
