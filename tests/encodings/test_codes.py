"""The entropy coder of factored:KL: whatever is packed comes back, near its entropy, and broken bytes are refused."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore.encodings import parse_encoding
from logitstore.encodings._codes import CodeModel
from logitstore.encodings._rans import LaneDecoder, LaneEncoder, Tables
from logitstore.encodings._transform import _frequencies
from logitstore.errors import FormatError
from logitstore.testing import head as head_suite


def model(width=5, seed=0):
    """A model with arbitrary tables: three steps, four sizes, eight symbols."""
    rng = np.random.default_rng(seed)
    return CodeModel(
        predict=rng.integers(-60, 90, (width, width)).astype(np.int16),
        begin=rng.integers(-9, 9, width).astype(np.int32),
        steps=np.array([1, 3, 7], np.int32),
        sizes=np.array([0, 1, 3, width], np.int16),
        step_tables=_frequencies(rng.random((4, 3))),
        size_tables=_frequencies(rng.random((15, 4))),
        contexts=rng.integers(0, 6, (3, 4, width)).astype(np.uint8),
        tables=_frequencies(rng.random((6, 8)) ** 4),
    )


def drawn(made, frames, largest, seed):
    """Steps, sizes and residuals of some frames."""
    rng = np.random.default_rng(seed)
    step, size = rng.integers(0, 3, frames), rng.integers(0, 4, frames)
    residual = rng.integers(-largest, largest + 1, (frames, made.width))
    return step, size, residual * (np.arange(made.width) < made.sizes[size][:, None])


def codes_of(made, step, size, residual):
    """The codes, frame by frame, in plain integers."""
    out, before = [], None
    for q, e in zip(step, residual, strict=True):
        predicted = made.begin if before is None else (before @ made.predict.astype(np.int64) + 128) // 256
        before = predicted + e * int(made.steps[q])
        out.append(before)
    return np.array(out)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([1, 3, 9, 4000])), min_size=1, max_size=6),
    st.integers(0, 2**20),
)
def test_packed_codes_come_back(pieces, seed):
    made = model(seed=seed % 7)
    drawings = [drawn(made, n, largest, seed + i) for i, (n, largest) in enumerate(pieces)]
    packed = [made.pack(*d) for d in drawings]
    wanted = [codes_of(made, *d) for d in drawings]
    for codes, found in zip(wanted, made.unpack(packed), strict=True):
        np.testing.assert_array_equal(codes, found)
    (joined,) = made.unpack([np.concatenate(packed)])
    np.testing.assert_array_equal(joined, np.concatenate(wanted))


def test_many_lanes_are_read_in_turn(monkeypatch):
    monkeypatch.setattr("logitstore.encodings._codes.LANE_SYMBOLS", 3)
    made = model()
    drawings = [drawn(made, n, 4, n) for n in (1, 2, 40, 13)]
    packed = [made.pack(*d) for d in drawings]
    assert packed[2][2] > 8
    for d, found in zip(drawings, made.unpack(packed), strict=True):
        np.testing.assert_array_equal(codes_of(made, *d), found)


def test_packed_symbols_are_near_their_entropy():
    rng = np.random.default_rng(1)
    tables = Tables(_frequencies(2.0 ** -np.arange(8)[None] * np.ones((3, 1)) + 0.01))
    p = tables.frequencies[0] / 4096
    symbols, rows = rng.choice(8, 20_000, p=p), rng.integers(0, 3, 20_000)
    encoder = LaneEncoder(4)
    encoder.put_all(tables, rows, symbols)
    words = encoder.words()
    bits = tables.costs[rows, symbols].sum()
    assert 2 * len(words) < 1.002 * bits / 8 + 4 * 4
    decoder = LaneDecoder(words, np.array([0]), np.array([len(words)]), np.array([4]))
    found = decoder.all(tables, rows, np.array([0]), np.array([len(rows)]))
    np.testing.assert_array_equal(found, symbols)
    decoder.finish(np.array([0]))


def test_broken_codes_are_refused():
    made = model()
    packed = made.pack(*drawn(made, 40, 3, 1))
    for cut in (3, 7, 9, 20, len(packed) - 2):
        with pytest.raises(FormatError, match="E16"):
            made.unpack([packed[:cut]])
    refused = 0
    for byte in range(len(packed)):  # whatever the bytes say, decoding ends, and in nothing but FormatError
        wrong = packed.copy()
        wrong[byte] ^= 0x55
        with suppress(FormatError):
            made.unpack([wrong])
            continue
        refused += 1
    assert refused > 0.95 * len(packed)


def test_tables_that_do_not_sum_up_are_refused():
    encoding = parse_encoding("factored:1e-2")
    made = dict(encoding.prepare(head_suite.a_head(), head_suite.rows(2)))
    made["tables"] = made["tables"].copy()
    made["tables"][0, 0] += 1
    with pytest.raises(FormatError, match="tables"):
        CodeModel.of(made)


def test_a_row_loses_little_however_unsure_the_teacher_is():
    """Steps are chosen row by row: the worst row is within a few budgets, and the best class stays."""
    head, x = head_suite.a_head(), head_suite.rows()
    ready = head_suite.bound(parse_encoding("factored:1e-3"))
    own = x @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
    arrays = {n: a.numpy() for n, a in ready.encode(x, own).items()}
    assert float(arrays["kl"][:, :3].max()) < 4.5e-3
    served = ready.decode(arrays, len(head.bias)).logits()
    assert (served.argmax(1) != own.numpy().argmax(1)).mean() < 0.01
