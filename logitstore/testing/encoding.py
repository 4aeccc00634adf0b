"""Conformance suite of encodings of logits (:class:`logitstore.encodings.Encoding`).

Run every check on one's own encoding, with the numbers of classes and the exactness that it promises::

    import pytest
    from logitstore.testing import encoding as suite

    @pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
    def test_my_encoding(check):
        check(MyEncoding(), 40, suite.Bounds(logp=0.004, tail=0.005, between=0.02))

The checks cover what writers ask of an encoding (columns, ``encode``) and what readers ask of its rows: any
temperature, any choice of rows, mixtures of two frames, another token table, and batches for a student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..encodings import LOSS, Encoding, Rows
from ..encodings.rows import NOTHING, Tempered, has_classes, logsumexp, mix
from ..encodings.rows import TEMPERATURES as STORED
from ..errors import UsageError
from ..losses import ctc_kd
from ..storage.base import DTYPES
from ..targets.batch import collate_targets
from ..targets.target import Target
from ..targets.vocab_map import VocabMap
from ..tokens.table import TokenTable
from . import expect

TEMPERATURES = (1.0, 2.0, 3.0, 4.0, 8.0)
SUM = 2e-5  # error of a row's total mass in float32
ROUNDING = 2e-5  # nats per row that float16 entries and tails in steps of 0.001 cost
COUNT = 24  # rows of samples()


@dataclass(frozen=True)
class Bounds:
    """The exactness that an encoding promises.

    Attributes:
        logp: largest error in nats of a stored log-probability above -8, at temperatures 1, 2, 4 and 8.
        tail: largest error in nats of the log of the left-out mass above -8, at these temperatures.
        between: largest error of the left-out mass, from 0 to 1, at other temperatures.
    """

    logp: float
    tail: float
    between: float = 0.0


def samples(classes: int, seed: int = 0) -> torch.Tensor:
    """Return (24, V) float32 logits: peaked, flat, certain, tied, shifted, tiny and huge."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(COUNT, classes, generator=generator)
    x[0:8] *= torch.tensor([0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 0.01, 100.0])[:, None]
    x[8:12] = (x[8:12] * 2).round()  # many ties
    x[12:16] += torch.tensor([-1e4, 1e3, 50.0, -50.0])[:, None]
    x[16:20] *= 5
    x[16:20].scatter_(1, x[16:20].argmax(1, keepdim=True), torch.tensor([[20.0], [40.0], [80.0], [500.0]]))
    x[20] = -x[16]
    return x


def stored(encoding: Encoding, logits: torch.Tensor) -> dict[str, NDArray[Any]]:
    """Return the arrays of (N, V) logits as a storage backend gives them back."""
    dtypes = {c.name: c.dtype for c in encoding.columns(logits.shape[1])}
    return {n: a.numpy().astype(dtypes[n]) for n, a in encoding.encode(logits).items() if n != LOSS}


def decoded(encoding: Encoding, logits: torch.Tensor) -> Rows:
    """Return (N, V) logits encoded and decoded."""
    rows = encoding.decode(stored(encoding, logits), logits.shape[1])
    expect(has_classes(rows), f"decode gives a {type(rows).__name__}, which has no classes")
    assert has_classes(rows)
    return rows


def probabilities(at: Tempered) -> NDArray[np.float64]:
    """Return the (N, V) probabilities of rows."""
    return np.exp(at.dense().astype(np.float64))


def check_encoding(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that the encoding and its rows derive from the base classes."""
    expect(isinstance(encoding, Encoding), f"{type(encoding).__name__} is no logitstore.encodings.Encoding")
    expect(not encoding.numbers, "numbers is True: rows would be taken for the numbers of a layer")
    rows = encoding.decode(stored(encoding, samples(classes)), classes)
    expect(isinstance(rows, Rows), f"{type(rows).__name__} is no logitstore.encodings.Rows")


def check_columns(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check names, trailing axes and dtypes of the arrays against the columns."""
    for n in (1, COUNT):
        arrays = encoding.encode(samples(classes)[:n])
        columns = encoding.columns(classes)
        names = set(arrays) - {LOSS}
        expect(names == {c.name for c in columns}, f"arrays {names} for columns {columns}")
        for c in columns:
            array = arrays[c.name].numpy()
            items = len(array) if c.name in encoding.ragged else n
            expect(array.shape == (items, *c.shape), f"{c.name} is {array.shape}, not {(items, *c.shape)}")
            expect(c.dtype in DTYPES, f"{c.name} is {c.dtype}, which no storage backend knows")
            with np.errstate(over="ignore"):
                expect(bool((array.astype(c.dtype) == array).all()), f"{c.name} does not fit {c.dtype}")


def check_input_is_left_alone(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that encoding does not write to the caller's logits, and takes a view of them."""
    logits = samples(classes)
    before = logits.clone()
    encoding.encode(logits[3:9])
    expect(torch.equal(logits, before), "encoding changed the logits it was given")


def check_masses(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that kept classes and tail sum to one at every temperature, and so does the dense row."""
    rows = decoded(encoding, samples(classes))
    for temperature in TEMPERATURES:
        _expect_masses(rows.at(temperature), len(rows), classes, f"at temperature {temperature}")


def _expect_masses(at: Tempered, count: int, classes: int, when: str) -> None:
    """Raise ``AssertionError`` unless ``count`` rows over V classes each have a mass of one."""
    mass = np.exp(logsumexp(np.concatenate([at.logp, at.tail[:, None]], 1).astype(np.float64)))
    expect(bool((np.abs(mass - 1) < SUM).all()), f"masses {mass} {when}")
    total = probabilities(at).sum(1)
    expect(bool((np.abs(total - 1) < 2 * SUM).all()), f"masses {total} of dense rows {when}")
    expect(at.dense().shape == (count, classes), f"dense() has shape {at.dense().shape} {when}")


def check_bounds(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check log-probabilities and tails against the bounds, at every temperature."""
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
    """Check that kept classes are the best ones, best first, ties by lower id, none twice.

    A row that keeps every class is in the order of its stored values, which rounding may change.
    """
    logits = samples(classes)
    at = decoded(encoding, logits).at(1.0)
    if at.ids is None:
        return
    order = np.argsort(-(logits.numpy() + 0.0), axis=1, kind="stable")
    for row, (ids, logp, best) in enumerate(zip(at.ids, at.logp, order, strict=True)):
        kept = ids[logp > NOTHING]
        if len(kept) == classes:
            expect(bool((np.diff(logp) <= 0).all()) and len(set(kept)) == classes, f"row {row} has no order")
            continue
        expect(kept.tolist() == best[: len(kept)].tolist(), f"row {row} keeps {kept}, best are {best}")


def check_zeros(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that logits of -0.0 and 0.0 give the same arrays."""
    zeros = torch.zeros(3, classes)
    mixed = zeros.clone()
    mixed[:, ::2] = -0.0
    one, two = stored(encoding, zeros), stored(encoding, mixed)
    for name in one:
        expect(bool((one[name] == two[name]).all()), f"{name} tells -0.0 from 0.0")


def check_rows_alone(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that a row depends neither on its neighbours nor on how an utterance was sliced."""
    logits = samples(classes)
    together = decoded(encoding, logits).at(1.0).dense()
    for n in (0, 5, 9, COUNT - 1):
        alone = decoded(encoding, logits[n : n + 1]).at(1.0).dense()
        expect(bool((np.abs(alone - together[n]) <= 2e-2 + 2e-3 * np.abs(alone)).all()), f"row {n} differs")


def check_take(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that ``take`` gives the rows asked for, in that order, repeated where asked."""
    rows = decoded(encoding, samples(classes))
    index = np.array([3, 3, 0, COUNT - 1], np.int64)
    expect(len(rows) == COUNT, f"{len(rows)} rows of {COUNT}")
    expect(rows.classes == rows.width == classes, f"{rows.classes} classes, width {rows.width}, of {classes}")
    for temperature in (1.0, 3.0):
        taken, whole = rows.take(index).at(temperature).dense(), rows.at(temperature).dense()
        expect(bool((taken == whole[index]).all()), "take gives other rows")
    again = rows.take(index).take(np.array([2, 0], np.int64)).at(1.0).dense()
    expect(bool((again == rows.at(1.0).dense()[[0, 3]]).all()), "take of taken rows gives other rows")


def check_temperature(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that temperatures below one, NaN and infinity are refused."""
    rows = decoded(encoding, samples(classes))
    for temperature in (0.5, 0.0, -1.0, float("nan"), float("inf")):
        try:
            rows.at(temperature)
        except UsageError:
            continue
        raise AssertionError(f"a temperature of {temperature} was served")


def check_loss(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check the loss that ``encode`` reports for each row against its dense row and the budget."""
    logits = samples(classes)
    reported = encoding.encode(logits).get(LOSS)
    if reported is None:
        return
    temperature = getattr(encoding, "temperature", 1.0)
    exact = torch.log_softmax(logits.double() / temperature, -1).numpy()
    served = decoded(encoding, logits).at(temperature).dense().astype(np.float64)
    lost = (np.exp(exact) * (exact - served)).sum(1)
    wrong = np.abs(lost - reported.numpy()).max()
    expect(wrong < ROUNDING, f"a row loses {wrong} nats more or less than its encoding reports")
    budget = getattr(encoding, "budget", None)
    if budget is not None and encoding.ragged:
        most = float(reported.max())
        expect(most <= budget * (1 + 1e-6), f"{most} nats lost on a budget of {budget}")


def check_mix(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check mixtures of two rows each, as resampling takes them, and that ``check`` finds no fault."""
    rows = decoded(encoding, samples(classes))
    rows.check("ctc")
    low, high = np.array([0, 3, 5, 8, 20], np.int64), np.array([1, 3, 6, 9, 23], np.int64)
    weight = np.array([0.25, 0.5, 0.0, 0.75, 0.125], np.float32)
    for temperature in (1.0, 3.0):
        mixed = rows.mix(low, high, weight, temperature)
        _expect_masses(mixed, len(low), classes, "of a mixture")
        expect(mixed.temperature == temperature, f"a mixture at {mixed.temperature}, not {temperature}")
        whole = probabilities(rows.at(temperature))
        wanted = (1 - weight[:, None]) * whole[low] + weight[:, None] * whole[high]
        found = probabilities(mixed)
        if mixed.ids is not None:  # classes that neither row kept share a tail, which dense() spreads equally
            reference = mix(rows.take(low).at(temperature), rows.take(high).at(temperature), weight)
            wanted = probabilities(reference)
        expect(bool(np.allclose(found, wanted, atol=1e-5)), "a mixture is not that of its two rows")
    unmixed = rows.mix(low, high, np.zeros(len(low), np.float32), 2.0)
    expect(bool((unmixed.dense() == rows.at(2.0).dense()[low]).all()), "rows mixed with none are others")
    try:
        logits = rows.mix(low, high, weight, 1.0, logits=True)
    except UsageError:
        expect(rows.at(1.0).ids is not None, "logits of rows that hold every class are not mixed")
    else:
        _expect_masses(logits, len(low), classes, "of mixed logits")


def tables(classes: int) -> tuple[TokenTable, TokenTable]:
    """Return a teacher's table of V tokens, and a student's: re-sorted, one token dropped, two merged."""
    teacher = TokenTable(("<blk>", *(f"t{i}" for i in range(1, classes))), 0)
    names = [t for t in reversed(teacher.tokens) if t not in ("t2", "t3")]
    also = (("t3", names.index("t1")),) if classes > 3 else ()
    return teacher, TokenTable(tuple(names), names.index("<blk>"), also)


def check_mapped(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check rows over a student's table: mixtures are mapped last, a second map is refused."""
    vocab = VocabMap.by_token(*tables(classes))
    rows = decoded(encoding, samples(classes))
    mapped = rows.mapped(vocab)
    expect(len(mapped) == COUNT, f"{len(mapped)} mapped rows of {COUNT}")
    expect(mapped.classes == len(vocab.student), f"{mapped.classes} classes of {len(vocab.student)}")
    expect(mapped.unmapped(vocab.student.blank)[1] == vocab.teacher.blank, "unmapped() gives another blank")
    for temperature in (1.0, 3.0):
        _expect_masses(mapped.at(temperature), COUNT, vocab.classes, "of mapped rows")
        wanted = vocab.apply(rows.at(temperature)).dense()
        expect(bool(np.allclose(mapped.at(temperature).dense(), wanted)), "mapped rows are others")
    low, high = np.array([0, 3, 8], np.int64), np.array([1, 4, 9], np.int64)
    weight = np.array([0.25, 0.5, 0.75], np.float32)
    wanted = vocab.apply(rows.mix(low, high, weight, 2.0)).dense()
    expect(
        bool(np.allclose(mapped.mix(low, high, weight, 2.0).dense(), wanted)), "mixtures are not mapped last"
    )
    taken = mapped.take(high).at(2.0).dense()
    expect(bool((taken == mapped.at(2.0).dense()[high]).all()), "take of mapped rows gives other rows")
    try:
        mapped.mapped(vocab)
    except UsageError:
        return
    raise AssertionError("rows were mapped twice")


def check_head(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check that ``head`` gives None, or a head and its inputs that make the rows."""
    rows = decoded(encoding, samples(classes))
    head = rows.head()
    if head is None:
        return
    expect(head.dec is None and len(head.h) == len(rows), "a head of other rows")
    logits = head.h.astype(np.float32) @ head.weight.T + head.bias
    made = logits - logsumexp(logits)[:, None]
    expect(bool(np.allclose(made, rows.at(1.0).dense(), atol=1e-3)), "the head makes other rows")


def check_batches(encoding: Encoding, classes: int, bounds: Bounds) -> None:
    """Check batches at other frames and over another token table, and that losses are finite."""
    rows = decoded(encoding, samples(classes))
    teacher, student = tables(classes)
    target = Target("u", COUNT, np.zeros(0, np.int32), {"ctc": rows}, {"ctc": (COUNT, classes)}, blank=0)
    for frames, method in ((COUNT, "linear"), (17, "linear"), (9, "max-nonblank"), (12, "stack:2")):
        for vocab in (None, VocabMap.by_token(teacher, student)):
            batch = collate_targets([target], frames=[frames], method=method, temperature=2.0, vocab=vocab)
            stream = batch["ctc"]
            width = classes if vocab is None else len(student)
            total = stream.dense().exp().sum(-1)
            when = f"of a batch of {frames} frames by {method}"
            expect(bool((total[stream.mask] - 1).abs().max() < 1e-4), f"masses {total} {when}")
            expect(stream.dense().shape[-1] == width, f"{stream.dense().shape[-1]} classes {when}")
            logits = torch.zeros(*stream.mask.shape, width, requires_grad=True)
            loss = ctc_kd(logits, stream)
            loss.backward()  # type: ignore[no-untyped-call]
            good = bool(loss.isfinite()) and logits.grad is not None and bool(logits.grad.isfinite().all())
            expect(good, f"a loss of {float(loss.detach())} {when}")


CHECKS: tuple[Callable[[Encoding, int, Bounds], None], ...] = (
    check_encoding,
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
    check_mix,
    check_mapped,
    check_head,
    check_batches,
)


def check_all(cases: Mapping[Encoding, int], bounds: Bounds) -> None:
    """Run every check on every encoding; ``cases`` gives the number of classes of each."""
    for encoding, classes in cases.items():
        for check in CHECKS:
            check(encoding, classes, bounds)
