"""What every encoding must do. For one's own::

@pytest.mark.parametrize("check", encoding.CHECKS, ids=lambda c: c.__name__)
def test_mine(check):
    check(MyEncoding(), 40, Bounds(logp=0.004, tail=0.005, between=0.02))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encodings import Encoding
from ..encodings.base import LOSS
from ..encodings.rows import NOTHING, Rows, logsumexp
from ..encodings.rows import TEMPERATURES as STORED
from ..errors import UsageError
from ..storage.base import DTYPES
from . import expect

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 8.0)
SUM = 2e-5  # how far from one a row's mass may be: float32
ROUNDING = 2e-5  # nats a row that float16 entries and tails in steps of 0.001 cost


@dataclass(frozen=True)
class Bounds:
    """What an encoding promises.

    Attributes:
        logp: largest error (nats) of a stored log-probability above -8, at temperatures 1, 2, 4, 8.
        tail: largest error (nats) of the logarithm of the left-out mass where that is above -8, at these.
        between: largest error of the left-out mass (0 to 1) at other temperatures.
    """

    logp: float
    tail: float
    between: float = 0.0


def samples(classes: int, seed: int = 0) -> torch.Tensor:
    """(N, V) logits: peaked, flat, certain, hopeless, tied, shifted, tiny and huge."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, classes, generator=generator)
    x[0:8] *= torch.tensor([0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 0.01, 100.0])[:, None]
    x[8:12] = (x[8:12] * 2).round()  # many ties
    x[12:16] += torch.tensor([-1e4, 1e3, 50.0, -50.0])[:, None]
    x[16:20] *= 5
    x[16:20].scatter_(1, x[16:20].argmax(1, keepdim=True), torch.tensor([[20.0], [40.0], [80.0], [500.0]]))
    x[20] = -x[16]
    return x


def stored(encoding: Encoding, logits: torch.Tensor) -> dict[str, NDArray[Any]]:
    """The arrays as a storage gives them back."""
    dtypes = {c.name: c.dtype for c in encoding.columns(logits.shape[1])}
    return {n: a.numpy().astype(dtypes[n]) for n, a in encoding.encode(logits).items() if n != LOSS}


def decoded(encoding: Encoding, logits: torch.Tensor) -> Rows:
    """Encode, store, decode."""
    return encoding.decode(stored(encoding, logits), logits.shape[1])


def check_columns(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Arrays have the names and trailing axes of the columns, and fit their dtypes."""
    for n in (1, 24):
        arrays = encoding.encode(samples(classes)[:n])
        columns = encoding.columns(classes)
        names = set(arrays) - {LOSS}
        expect(names == {c.name for c in columns}, f"arrays {names} for columns {columns}")
        for c in columns:
            array = arrays[c.name].numpy()
            items = len(array) if c.name in getattr(encoding, "ragged", ()) else n
            expect(array.shape == (items, *c.shape), f"{c.name} is {array.shape}, not {(items, *c.shape)}")
            expect(c.dtype in DTYPES, f"{c.name} is {c.dtype}, which no storage knows")
            with np.errstate(over="ignore"):
                expect(bool((array.astype(c.dtype) == array).all()), f"{c.name} does not fit {c.dtype}")


def check_input_is_left_alone(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Logits are the caller's: they are not written to, and a view of them will do."""
    logits = samples(classes)
    before = logits.clone()
    encoding.encode(logits[3:9])
    expect(torch.equal(logits, before), "encoding changed the logits it was given")


def check_masses(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """At every temperature the kept classes and the tail sum to one, and so does the dense row."""
    rows = decoded(encoding, samples(classes))
    for temperature in TEMPERATURES:
        at = rows.at(temperature)
        mass = np.exp(logsumexp(np.concatenate([at.logp, at.tail[:, None]], 1).astype(np.float64)))
        expect(bool((np.abs(mass - 1) < SUM).all()), f"masses {mass} at temperature {temperature}")
        dense = np.exp(at.dense().astype(np.float64)).sum(1)
        expect(bool((np.abs(dense - 1) < 2 * SUM).all()), f"dense masses {dense} at {temperature}")
        expect(at.dense().shape == (len(rows), classes), f"dense is {at.dense().shape}")


def check_bounds(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Stored log-probabilities and tails are as exact as promised, at every temperature."""
    logits = samples(classes)
    rows = decoded(encoding, logits)
    for temperature in TEMPERATURES:
        exact = torch.log_softmax(logits.double() / temperature, -1).numpy()
        at = rows.at(temperature)
        ids = np.broadcast_to(np.arange(classes), exact.shape) if at.ids is None else at.ids.astype(np.int64)
        left = exact.copy()
        np.put_along_axis(left, ids, -np.inf, 1)
        tail = logsumexp(left)
        if temperature not in STORED:
            error = np.abs(np.exp(at.tail) - np.exp(tail)).max(initial=0)
            expect(error <= bounds.between + SUM, f"a tail's mass is wrong by {error} at {temperature}")
            continue
        kept = np.take_along_axis(exact, ids, 1)
        error = np.abs(at.logp - kept)[(kept > -8) & (at.logp > NOTHING)].max(initial=0)
        expect(error <= bounds.logp, f"a log-probability is wrong by {error} at temperature {temperature}")
        error = np.abs(at.tail - tail)[tail > -8].max(initial=0)
        expect(error <= bounds.tail, f"a tail is wrong by {error} at temperature {temperature}")


def check_order(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Kept classes come best first, ties by lower id, none twice; they are the best there are."""
    logits = samples(classes)
    at = decoded(encoding, logits).at(1.0)
    if at.ids is None:
        return
    order = np.argsort(-(logits.numpy() + 0.0), axis=1, kind="stable")
    for row, (ids, logp, best) in enumerate(zip(at.ids, at.logp, order, strict=True)):
        kept = ids[logp > NOTHING]
        expect(kept.tolist() == best[: len(kept)].tolist(), f"row {row} keeps {kept}, best are {best}")


def check_zeros(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """-0.0 is 0.0: the same arrays come out."""
    zeros = torch.zeros(3, classes)
    mixed = zeros.clone()
    mixed[:, ::2] = -0.0
    one, two = stored(encoding, zeros), stored(encoding, mixed)
    for name in one:
        expect(bool((one[name] == two[name]).all()), f"{name} tells -0.0 from 0.0")


def check_rows_alone(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """A row does not depend on its neighbours, nor on how an utterance was sliced."""
    logits = samples(classes)
    together = decoded(encoding, logits).at(1.0).dense()
    for n in (0, 5, 9, 23):
        alone = decoded(encoding, logits[n : n + 1]).at(1.0).dense()
        expect(bool((np.abs(alone - together[n]) <= 2e-2 + 2e-3 * np.abs(alone)).all()), f"row {n} differs")


def check_take(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """``take`` gives the rows asked for, in that order, repeated where asked."""
    rows = decoded(encoding, samples(classes))
    index = np.array([3, 3, 0, 23], np.int64)
    expect(len(rows) == 24 and rows.classes == classes, f"{len(rows)} rows of {rows.classes} classes")
    for temperature in (1.0, 3.0):
        taken, whole = rows.take(index).at(temperature).dense(), rows.at(temperature).dense()
        expect(bool((taken == whole[index]).all()), "take gives other rows")


def check_temperature(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Temperatures below one, NaN and infinity are refused."""
    rows = decoded(encoding, samples(classes))
    for temperature in (0.5, 0.0, -1.0, float("nan"), float("inf")):
        try:
            rows.at(temperature)
        except UsageError:
            continue
        raise AssertionError(f"a temperature of {temperature} was served")


def check_loss(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """What an encoding says that each row loses is what its dense row loses, and within its budget."""
    logits = samples(classes)
    said = encoding.encode(logits).get(LOSS)
    if said is None:
        return
    temperature = getattr(encoding, "temperature", 1.0)
    exact = torch.log_softmax(logits.double() / temperature, -1).numpy()
    served = decoded(encoding, logits).at(temperature).dense().astype(np.float64)
    found = (np.exp(exact) * (exact - served)).sum(1)
    wrong = np.abs(found - said.numpy()).max()
    expect(wrong < ROUNDING, f"a row loses {wrong} nats more or less than its encoding says")
    budget = getattr(encoding, "budget", None)
    if budget is not None and hasattr(encoding, "ragged"):
        expect(bool((said <= budget * (1 + 1e-6)).all()), f"{said.max()} nats lost on a budget of {budget}")


CHECKS: tuple[Callable[[Encoding, int, Bounds], None], ...] = (
    check_columns,
    check_input_is_left_alone,
    check_masses,
    check_bounds,
    check_order,
    check_zeros,
    check_rows_alone,
    check_take,
    check_temperature,
    check_loss,
)


def check_all(cases: Mapping[Encoding, int], bounds: Bounds) -> None:
    """Every check of every encoding, each with a number of classes."""
    for encoding, classes in cases.items():
        for check in CHECKS:
            check(encoding, classes, bounds)
