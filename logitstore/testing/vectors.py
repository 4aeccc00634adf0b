"""Conformance suite of encodings of a layer's numbers (:class:`logitstore.encodings.Encoding`, ``numbers`` True).

Run every check on one's own encoding, with the share of a row's largest number that another may be off by::

    import pytest
    from logitstore.testing import vectors as suite

    @pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
    def test_my_encoding(check):
        check(MyEncoding(), 1 / 254)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encodings import Encoding
from ..encodings.rows import NumberRows
from ..errors import NonFinite
from ..storage.base import DTYPES
from ..targets.vocab_map import VocabMap
from . import expect
from .encoding import tables

WIDTH, ROWS = 24, 40


def samples(seed: int = 0) -> torch.Tensor:
    """Return (N, D) rows: tiny and large ones, one with an outlier, one of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDTH, generator=generator) * torch.logspace(-3, 3, ROWS)[:, None]
    x[5, 3] = 1e4
    x[7] = 0.0
    x[8] = 0.0
    x[8, 1] = -2.5
    return x


def stored(encoding: Encoding, rows: torch.Tensor) -> dict[str, NDArray[Any]]:
    """Return the arrays as a storage backend gives them back."""
    dtypes = {c.name: c.dtype for c in encoding.columns(rows.shape[1])}
    return {n: a.numpy().astype(dtypes[n]) for n, a in encoding.encode(rows).items()}


def decoded(encoding: Encoding, rows: torch.Tensor) -> NumberRows:
    """Return (N, D) numbers encoded and decoded."""
    found: Any = encoding.decode(stored(encoding, rows), rows.shape[1])
    expect(isinstance(found, NumberRows), f"decode gives {type(found).__name__}, which is no NumberRows")
    vectors: NumberRows = found
    return vectors


def check_columns(encoding: Encoding, most: float) -> None:
    """Check names and trailing axes of the arrays against the columns, and their dtypes."""
    expect(encoding.numbers, "numbers is not True: rows would be taken for classes")
    for n in (1, ROWS):
        arrays = encoding.encode(samples()[:n])
        columns = encoding.columns(WIDTH)
        expect(set(arrays) == {c.name for c in columns}, f"arrays {set(arrays)} for columns {columns}")
        for c in columns:
            shape = arrays[c.name].shape
            expect(shape == (n, *c.shape), f"{c.name} is {shape}, not {(n, *c.shape)}")
            expect(c.dtype in DTYPES, f"{c.name} is {c.dtype}, which no storage backend knows")


def check_bound(encoding: Encoding, most: float) -> None:
    """Check that no number is off by more than ``most`` of its row's largest."""
    x = samples()
    far = np.abs(decoded(encoding, x).values() - x.numpy()).max(1)
    bound = most * x.abs().amax(1).numpy() * 1.001
    expect(bool((far <= bound).all()), f"row {int((far - bound).argmax())} misses by {far.max()}")


def check_input_is_left_alone(encoding: Encoding, most: float) -> None:
    """Check that encoding does not write to the caller's rows, and takes a view of them."""
    rows = samples()
    before = rows.clone()
    encoding.encode(rows[3:9])
    expect(torch.equal(rows, before), "encoding changed the rows it was given")


def check_rows_alone(encoding: Encoding, most: float) -> None:
    """Check that a row does not depend on its neighbours, ``take``, and a map of tokens, which changes nothing."""
    together = decoded(encoding, samples())
    for n in (0, 5, 7, 39):
        alone = decoded(encoding, samples()[n : n + 1]).values()[0]
        expect(bool((alone == together.values()[n]).all()), f"row {n} differs")
    index = np.array([3, 3, 0, ROWS - 1], np.int64)
    expect(bool((together.take(index).values() == together.values()[index]).all()), "take gives other rows")
    expect((len(together), together.width) == (ROWS, WIDTH), f"{len(together)} rows of {together.width}")
    vocab = VocabMap.by_token(*tables(WIDTH))
    expect(
        bool((together.mapped(vocab).values() == together.values()).all()), "a map of tokens changed numbers"
    )
    together.check("hidden")


def check_beyond(encoding: Encoding, most: float) -> None:
    """Check that numbers beyond the dtype are refused or come back: never as infinity."""
    rows = samples() * 1e6
    try:
        back = decoded(encoding, rows).values()
    except NonFinite:
        return
    expect(bool(np.isfinite(back).all()), "numbers became infinite")
    far = np.abs(back - rows.numpy()).max(1)
    expect(bool((far <= most * rows.abs().amax(1).numpy() * 1.001).all()), f"numbers miss by {far.max()}")


CHECKS: tuple[Callable[[Encoding, float], None], ...] = (
    check_columns,
    check_bound,
    check_input_is_left_alone,
    check_rows_alone,
    check_beyond,
)
