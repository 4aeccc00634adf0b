"""Layouts of teacher logits of other public tools, re-made from their descriptions, for `benchmarks/size.py`.

* DistillKit (github.com/arcee-ai/DistillKit, README "Logit compression"): the k best classes, ids of as many bits as
  the table needs, some values as bfloat16, a polynomial of the rank for the others.
* Megatron-LM (github.com/NVIDIA/Megatron-LM/pull/5019): the k best log-probabilities in 16 bits, ids as uint16 and a
  bool for the 17th bit, compressed with zstd.
* MaxText (github.com/AI-Hypercomputer/maxtext/pull/3193): the k best logits as float32, ids as int32.

Bytes are those of the numbers alone: no index, no ids of utterances, no checksums. Classes left out get equal shares of
what the kept probabilities lack to one; MaxText's logits have no normaliser, so that theirs get nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

Float = NDArray[np.float64]
# Gives the bytes of (N, V) logits, and the (N, V) log-probabilities at temperature 1 that a reader gets back.
Layout = Callable[[Float], tuple[int, Float]]


def _best(logits: Float, k: int) -> tuple[NDArray[np.int64], Float]:
    """(N, k) ids and log-probabilities of the best classes."""
    shifted = logits - logits.max(1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    ids = np.argsort(-logp, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(logp, ids, 1)


def _bfloat16(x: Float) -> Float:
    """Numbers rounded to 8 bits of mantissa."""
    bits = x.astype(np.float32).view(np.uint32)
    return (
        ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000)
        .astype(np.uint32)
        .view(np.float32)
        .astype(np.float64)
    )


def _spread(ids: NDArray[np.int64], kept: Float, classes: int) -> Float:
    """(N, V) log-probabilities: what the kept ones lack to one is spread equally."""
    left = classes - ids.shape[1]
    total = np.exp(kept).sum(1, keepdims=True)
    kept = kept - np.log(np.maximum(total, 1.0 if left else total))
    lacking = np.maximum(1 - np.exp(kept).sum(1, keepdims=True), 1e-12)
    out = np.repeat(np.log(lacking / max(left, 1)), classes, 1)
    np.put_along_axis(out, ids, kept, 1)
    return out - np.log(np.exp(out).sum(1, keepdims=True))


def distillkit(k: int, exact: int, powers: int) -> Layout:
    """DistillKit's layout: k classes, the first `exact` as bfloat16, the others by powers of the rank and its root."""

    def layout(logits: Float) -> tuple[int, Float]:
        classes = logits.shape[1]
        ids, logp = _best(logits, min(k, classes))
        kept, first = logp.copy(), min(exact, logp.shape[1])
        kept[:, :first] = _bfloat16(logp[:, :first])
        tail = logp.shape[1] - first
        bits = ids.shape[1] * ceil(log2(classes)) + 16 * first
        if tail:
            rank = np.arange(1, tail + 1) / tail
            terms = np.stack([*(rank**n for n in range(powers)), np.sqrt(rank)], 1)
            fitted = np.linalg.lstsq(terms, logp[:, first:].T, rcond=None)[0].astype(np.float32)
            kept[:, first:] = (terms @ fitted).T
            bits += 32 * terms.shape[1]
        return len(logits) * ceil(bits / 8), _spread(ids, kept, classes)

    return layout


def megatron(k: int) -> Layout:
    """Megatron-LM's layout: k log-probabilities as bfloat16, uint16 and bool ids, zstd."""

    def layout(logits: Float) -> tuple[int, Float]:
        ids, logp = _best(logits, min(k, logits.shape[1]))
        kept = _bfloat16(logp)
        halves = (kept.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        parts = (halves, (ids & 0xFFFF).astype(np.uint16), ids > 0xFFFF)
        size = sum(len(Zstd(3).encode(np.ascontiguousarray(part))) for part in parts)
        return size, _spread(ids, kept, logits.shape[1])

    return layout


def maxtext(k: int) -> Layout:
    """MaxText's layout: k logits as float32 and ids as int32."""

    def layout(logits: Float) -> tuple[int, Float]:
        ids, logp = _best(logits, min(k, logits.shape[1]))
        out = np.full(logits.shape, -np.inf)
        np.put_along_axis(out, ids, logp - np.log(np.exp(logp).sum(1, keepdims=True)), 1)
        return 8 * ids.size, out

    return layout


LAYOUTS = {
    "DistillKit, recommended (128)": distillkit(128, 16, 5),
    "DistillKit, budget (50)": distillkit(50, 1, 2),
    "Megatron-LM (128)": megatron(128),
    "Megatron-LM (32)": megatron(32),
    "MaxText (128)": maxtext(128),
    "MaxText (32)": maxtext(32),
}
