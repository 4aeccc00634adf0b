"""Positions of student frames among the teacher's, and mixtures of two rows."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitstore.encodings.dense import Dense
from logitstore.encodings.rows import NOTHING, TEMPERATURES, Tempered, logsumexp, mix
from logitstore.encodings.topk import Sparse
from logitstore.errors import LengthError, UsageError
from logitstore.targets.frames import Method, check_common_ratio, check_ratio, linear, nearest
from logitstore.targets.resample import resample

lengths = st.integers(1, 300)


def centre(i, teacher, student):
    """Where student frame i's centre falls, in teacher frames, exactly."""
    return Fraction((2 * i + 1) * teacher, 2 * student) - Fraction(1, 2)


@given(lengths)
def test_equal_lengths_take_the_same_frames(t):
    assert nearest(t, t).tolist() == list(range(t))
    low, _, weight = linear(t, t)
    assert low.tolist() == list(range(t))
    assert not weight.any()


@given(lengths, lengths)
def test_nearest_takes_the_nearest_centre_and_the_earlier_of_two(t, s):
    found = nearest(t, s).tolist()
    for i, frame in enumerate(found):
        at = centre(i, t, s)
        best = min(range(max(0, int(at) - 1), min(t, int(at) + 3)), key=lambda f: (abs(f - at), f))
        assert frame == best
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < t


@given(lengths, lengths)
def test_linear_mixes_at_the_centre(t, s):
    low, high, weight = linear(t, s)
    for i in range(s):
        at = min(max(centre(i, t, s), Fraction(0)), Fraction(t - 1))
        assert abs(low[i] + weight[i] - float(at)) < 1e-4 * t
    assert ((low >= 0) & (low <= high) & (high < t) & (high - low <= 1)).all()
    assert ((weight >= 0) & (weight < 1)).all()
    assert (np.diff(low + weight.astype(np.float64)) >= -1e-5).all()


@given(lengths, lengths)
def test_positions_are_symmetric(t, s):
    low, _, weight = linear(t, s)
    position = low + weight.astype(np.float64)
    np.testing.assert_allclose(position, (t - 1) - position[::-1], atol=1e-4)


@given(lengths)
def test_one_teacher_frame_serves_all_student_frames(s):
    assert not nearest(1, s).any()
    assert not linear(1, s)[2].any()


def test_empty_alone_or_negative_is_refused():
    for f in (nearest, linear):
        assert len(f(0, 0)[0] if f is linear else f(0, 0)) == 0
        for t, s in ((0, 1), (1, 0), (-1, 2), (3, -1)):
            with pytest.raises(LengthError):
                f(t, s)


def test_ratios():
    check_ratio(100, 200, (2, 1), 0, "u")
    check_ratio(101, 51, (1, 2), 0, "u")
    check_ratio(100, 203, (2, 1), 3, "u")
    with pytest.raises(LengthError, match="200 student frames, but 204"):
        check_ratio(100, 204, (2, 1), 3, "u")
    with pytest.raises(UsageError, match="linear"):
        Method.parse("cubic")


def pruned(n, classes, k, seed):
    """Sparse rows of random distributions."""
    r = np.random.default_rng(seed)
    logits = r.normal(0, 3, (n, classes)).round(1)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    logp = logits - logsumexp(logits)[:, None]
    kept = np.take_along_axis(logp, ids, 1)
    odds = []
    for t in TEMPERATURES:
        rest = logp / t
        np.put_along_axis(rest, ids, -np.inf, 1)
        odds.append(logsumexp(rest) - logsumexp(kept / t))
    odds = np.maximum(np.stack(odds, 1), -52).astype(np.float32)
    return Sparse(classes, ids, kept.astype(np.float32), odds, np.zeros(n, np.float32)), logp


sizes = st.tuples(st.integers(2, 30), st.integers(1, 30), st.integers(0, 999)).filter(lambda s: s[1] <= s[0])


def total(a):
    return np.exp(logsumexp(np.concatenate([a.logp, a.tail[:, None]], 1).astype(np.float64)))


@given(sizes, st.sampled_from([1.0, 2.0, 3.0]), st.floats(0, 0.999))
def test_a_mixture_sums_to_one(size, temperature, w):
    classes, k, seed = size
    a, b = (pruned(4, classes, k, seed + i)[0].at(temperature) for i in (0, 1))
    mixed = mix(a, b, np.full(4, w, np.float32))
    np.testing.assert_allclose(total(mixed), 1, atol=1e-5)
    np.testing.assert_allclose(np.exp(mixed.dense().astype(np.float64)).sum(1), 1, atol=1e-5)
    assert mixed.ids.shape[1] <= 2 * k
    for ids, logp in zip(mixed.ids, mixed.logp, strict=True):
        kept = ids[logp > NOTHING].tolist()
        assert len(set(kept)) == len(kept)
        assert (np.diff(logp) <= 0).all()


@given(sizes, st.floats(0, 0.999))
def test_a_mixture_of_pruned_rows_is_the_mixture_of_their_dense_rows(size, w):
    classes, k, seed = size
    a, b = (pruned(4, classes, k, seed + i)[0].at(1.0) for i in (0, 1))
    weight = np.full(4, w, np.float32)
    mixed = np.exp(mix(a, b, weight).dense())
    plain = (1 - w) * np.exp(a.dense()) + w * np.exp(b.dense())
    np.testing.assert_allclose(mixed, plain, atol=2e-6)


@given(st.integers(2, 20), st.integers(0, 999), st.floats(0, 0.999))
def test_mixing_pruned_rows_of_every_class_is_dense_mixing(classes, seed, w):
    rows = [pruned(4, classes, classes, seed + i) for i in (0, 1)]
    weight = np.full(4, w, np.float32)
    mixed = mix(*(r.at(2.0) for r, _ in rows), weight)
    dense = mix(*(Dense(p, np.zeros(4, np.float32)).at(2.0) for _, p in rows), weight)
    assert dense.ids is None
    np.testing.assert_allclose(np.exp(mixed.dense()), np.exp(dense.dense()), atol=2e-6)
    np.testing.assert_allclose(np.exp(mixed.tail), 0, atol=1e-12)


@given(sizes, st.floats(0.01, 0.99))
def test_mixing_is_symmetric(size, w):
    classes, k, seed = size
    a, b = (pruned(4, classes, k, seed + i)[0].at(1.0) for i in (0, 1))
    one = mix(a, b, np.full(4, w, np.float32)).dense()
    two = mix(b, a, np.full(4, 1 - w, np.float32)).dense()
    np.testing.assert_allclose(np.exp(one), np.exp(two), atol=2e-6)


@given(sizes)
def test_a_weight_of_zero_gives_the_first_row(size):
    classes, k, seed = size
    a, b = (pruned(4, classes, k, seed + i)[0].at(1.0) for i in (0, 1))
    np.testing.assert_allclose(mix(a, b, np.zeros(4, np.float32)).dense(), a.dense(), atol=1e-5)


def test_lattices_are_resampled_along_frames_only():
    t, u1, v = 3, 2, 4
    logp = np.log(np.full((t * u1, v), 0.25))
    logp[:, 0] = np.log([0.1, 0.9, 0.2, 0.8, 0.3, 0.7])
    logp -= logsumexp(logp)[:, None]
    rows = Dense(logp, np.zeros(6, np.float32))
    out = resample(rows, (t, u1, v), 6, method="nearest", temperature=1.0).dense().reshape(6, u1, v)
    np.testing.assert_allclose(out, logp.reshape(t, u1, v)[[0, 0, 1, 1, 2, 2]], atol=1e-6)
    out = resample(rows, (t, u1, v), 6, method="linear", temperature=1.0).dense().reshape(6, u1, v)
    p = np.exp(logp.reshape(t, u1, v))
    np.testing.assert_allclose(np.exp(out[1]), 0.75 * p[0] + 0.25 * p[1], atol=1e-6)
    np.testing.assert_allclose(np.exp(out[0]), p[0], atol=1e-6)


def test_a_row_with_fewer_entries_spreads_its_tail_over_the_rest():
    row = Tempered(
        5,
        1.0,
        np.log(np.array([[0.5, 0.25, 1.0]], np.float32)),
        np.array([[3, 1, 3]], np.int32),
        np.log(np.array([0.25], np.float32)),
    )
    row.logp[0, 2] = NOTHING
    np.testing.assert_allclose(np.exp(row.dense()), [[0.25 / 3, 0.25, 0.25 / 3, 0.5, 0.25 / 3]], atol=1e-6)


LENGTHS = [40, 61, 87, 120]


@pytest.mark.parametrize(
    ("frames", "wrong"),
    [
        ([120] * 4, "padded lengths"),  # the longest of the batch for all: the classic mistake
        ([20, 31, 44, 110], "padded lengths"),
        ([10 * t for t in LENGTHS], "lengths in samples or feature frames"),
        ([max(1, t // 16) for t in LENGTHS], "lengths in samples or feature frames"),
    ],
)
def test_frames_without_one_ratio_to_the_teachers_are_refused(frames, wrong):
    with pytest.raises(LengthError, match=wrong):
        check_common_ratio([f"u{t}" for t in LENGTHS], LENGTHS, frames, 2)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=8),
    st.sampled_from([(1, 1), (1, 2), (3, 4), (2, 1), (1, 4)]),
)
def test_frames_of_any_usual_student_are_taken(teacher, rate):
    for rounded in (lambda t: t * rate[0] // rate[1], lambda t: -(-t * rate[0] // rate[1])):
        student = [max(1, rounded(t)) for t in teacher]
        check_common_ratio(list(map(str, teacher)), teacher, student, 2)
        check_common_ratio(list(map(str, teacher)), teacher, [s + 1 for s in student], 2)
