"""Conformance suite of encodings of the input of a linear head (:class:`logitstore.encodings.HeadEncoding`).

Run every check on one's own encoding, with the nats per row that it may lose on average::

    import pytest
    from logitstore.testing import head as suite

    @pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
    def test_my_encoding(check):
        check(MyHeadEncoding(), 1e-4)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encodings import HeadEncoding
from ..encodings.base import LOSS, LinearHead
from ..encodings.rows import logsumexp
from ..errors import UsageError
from ..schema.spec import StreamSpec
from ..storage.base import DTYPES
from . import expect

WIDTH, CLASSES, ROWS = 24, 60, 400


def a_head(seed: int = 0) -> LinearHead:
    """Return a linear head of 60 classes over 24 numbers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(CLASSES, WIDTH, generator=generator)
    return LinearHead(weight.numpy(), torch.randn(CLASSES, generator=generator).numpy())


def rows(seed: int = 1) -> torch.Tensor:
    """Return (N, D) inputs as of a trained encoder: few directions matter, some rows are certain, one is 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDTH, generator=generator) * torch.logspace(0.3, -2, WIDTH)
    x[::5] *= 4
    x[7] = 0
    return x


def bound(encoding: HeadEncoding) -> Any:
    """Return the encoding of rows, with its constants as a store gives them back."""
    made = encoding.prepare(a_head(), rows(2) if encoding.needs_sample else None)
    return encoding.bound(_stream(encoding), {n: np.array(a) for n, a in made.items()})


def _stream(encoding: HeadEncoding) -> StreamSpec:
    return StreamSpec("ctc", "ctc", CLASSES, 0, str(encoding), width=WIDTH)


def _encode(encoding: Any, x: torch.Tensor) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    head = a_head()
    own = x @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
    dtypes = {c.name: c.dtype for c in encoding.columns(CLASSES)}
    given = {n: a.numpy() for n, a in encoding.encode(x, own).items()}
    lost = given.pop(LOSS)
    return {n: a.astype(dtypes[n]) for n, a in given.items()}, lost


def check_columns(encoding: HeadEncoding, most: float) -> None:
    """Check names, dtypes and trailing axes of the arrays against the columns, with and without constants."""
    ready = bound(encoding)
    expect(
        ready.columns(CLASSES) == encoding.bound(_stream(encoding), {}).columns(CLASSES),
        "columns need constants",
    )
    for n in (1, ROWS):
        given = ready.encode(rows()[:n])
        expect(set(given) - {LOSS} == {c.name for c in ready.columns(CLASSES)}, f"arrays {set(given)}")
        for c in ready.columns(CLASSES):
            array = given[c.name].numpy()
            items = len(array) if c.name in ready.ragged else n
            expect(array.shape == (items, *c.shape), f"{c.name} is {array.shape}, not {(items, *c.shape)}")
            expect(array.dtype == c.dtype and c.dtype in DTYPES, f"{c.name} is {array.dtype}, not {c.dtype}")


def check_loss(encoding: HeadEncoding, most: float) -> None:
    """Check the reported loss of each row, and the mean loss against ``most``, at every temperature."""
    x, head, ready = rows(), a_head(), bound(encoding)
    arrays, reported = _encode(ready, x)
    logits = (x.double() @ torch.from_numpy(head.weight).double().T + torch.from_numpy(head.bias)).numpy()
    for temperature in (1.0, 2.0, 4.0):
        own = logits / temperature
        own -= logsumexp(own)[:, None]
        served = ready.decode(arrays, CLASSES).at(temperature).dense()
        lost = (np.exp(own) * (own - served)).sum(1)
        expect(lost.mean() <= most, f"{lost.mean()} nats lost on average at {temperature}, not {most}")
        if temperature == 1:
            wrong = np.abs(lost - reported.reshape(len(lost), -1)[:, 0]).max()
            expect(wrong < 1e-5, f"a row loses {wrong} nats more or less than its encoding reports")


def check_slices(encoding: HeadEncoding, most: float) -> None:
    """Check that slices encoded one by one and joined are the whole, as far as the encoding is exact."""
    ready = bound(encoding)
    whole = ready.decode(_encode(ready, rows())[0], CLASSES).at(1.0).logp
    pieces = [_encode(ready, x)[0] for x in torch.split(rows(), [1, 150, 49, 200])]
    joined = {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}
    parted = ready.decode(joined, CLASSES).at(1.0).logp
    apart = (np.exp(whole) * (whole - parted)).sum(1).mean()
    expect(apart <= 4 * most + 1e-6, f"slices differ from the whole by {apart} nats")


def check_rows(encoding: HeadEncoding, most: float) -> None:
    """Check ``take``, masses of one, and that temperatures below one are refused."""
    ready = bound(encoding)
    got = ready.decode(_encode(ready, rows())[0], CLASSES)
    expect((len(got), got.classes) == (ROWS, CLASSES), f"{len(got)} rows of {got.classes} classes")
    index = np.array([3, 3, 0, 7, ROWS - 1], np.int64)
    for temperature in (1.0, 3.0):
        at = got.at(temperature)
        expect(bool((np.abs(np.exp(logsumexp(at.logp)) - 1) < 1e-5).all()), "masses are not one")
        taken = got.take(index).at(temperature).logp
        expect(bool(np.allclose(taken, at.logp[index], atol=1e-5)), "take gives other rows")
    try:
        got.at(0.5)
    except UsageError:
        return
    raise AssertionError("a temperature of 0.5 was served")


def check_head(encoding: HeadEncoding, most: float) -> None:
    """Check that decoded rows give their head, that it makes their logits, and that it is recognised again."""
    ready, x = bound(encoding), rows()
    got = ready.decode(_encode(ready, x)[0], CLASSES)
    inputs = got.head()
    if inputs is not None:
        logits = inputs.h.astype(np.float32) @ inputs.weight.T + inputs.bias
        made = logits - logsumexp(logits)[:, None]
        expect(bool(np.allclose(made, got.at(1.0).logp, atol=1e-3)), "the head makes other rows")
        expect(inputs.same_head(inputs), "a head is not the same as itself")
    expect(encoding.made_from(a_head(), ready.constants), "made_from() does not know its own head")
    expect(not encoding.made_from(a_head(5), ready.constants), "made_from() takes another head for its own")


def check_mix(encoding: HeadEncoding, most: float) -> None:
    """Check mixtures of two rows each, as resampling takes them."""
    got = bound(encoding).decode(_encode(bound(encoding), rows())[0], CLASSES)
    low, high = np.array([0, 3, 8], np.int64), np.array([1, 4, 9], np.int64)
    weight = np.array([0.25, 0.5, 0.75], np.float32)
    p = np.exp(got.at(2.0).dense())
    wanted = (1 - weight[:, None]) * p[low] + weight[:, None] * p[high]
    expect(
        bool(np.allclose(np.exp(got.mix(low, high, weight, 2.0).dense()), wanted, atol=1e-5)), "mix differs"
    )


def check_many(encoding: HeadEncoding, most: float) -> None:
    """Check that records decoded together are those decoded alone."""
    ready, records = bound(encoding), []
    for n in (1, 150, ROWS):
        records.append(_encode(ready, rows()[:n])[0])
    for arrays, together in zip(records, ready.decode_many(records, CLASSES), strict=True):
        alone = ready.decode(arrays, CLASSES)
        expect(bool((alone.at(1.0).logp == together.at(1.0).logp).all()), "decode_many gives other rows")


CHECKS: tuple[Callable[[HeadEncoding, float], None], ...] = (
    check_columns,
    check_loss,
    check_slices,
    check_many,
    check_rows,
    check_head,
    check_mix,
)
