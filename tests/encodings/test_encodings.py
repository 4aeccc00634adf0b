"""Built-in encodings against the conformance suites, and properties of each."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import registry
from logitstore.encodings import parse_encoding
from logitstore.encodings.rows import TEMPERATURES, logsumexp, mix
from logitstore.encodings.topk import _best_on_cpu, _best_on_device, best
from logitstore.errors import FormatError, NonFinite, UnknownName, UsageError
from logitstore.testing import encoding as suite
from logitstore.testing import head as head_suite
from logitstore.testing.encoding import Bounds, decoded, stored

CASES = {
    "dense": [("dense", 2), ("dense", 40), ("dense", 700)],
    "dense:int8": [("dense:int8", 2), ("dense:int8", 40), ("dense:int8", 700)],
    "nucleus": [
        ("nucleus:1e-3", 2),
        ("nucleus:1e-3", 40),
        ("nucleus:0.1@2", 40),
        ("nucleus:1e-05", 300),
        ("nucleus:0.5@8", 700),
    ],
    "factored": [],  # see HEADS
    "topk": [("topk:1", 2), ("topk:8", 8), ("topk:8", 40), ("topk:1", 40), ("topk:16", 700)],
}
BOUNDS = {
    "dense": Bounds(logp=0.004, tail=0.0),
    "dense:int8": Bounds(logp=0.36, tail=0.0),  # 2 √(256 · 8) / 255: for an error and for the normaliser's
    "nucleus": Bounds(logp=0.36, tail=0.01, between=0.03),  # whole rows: those of dense:int8
    "nucleus:1e-05": Bounds(logp=0.005, tail=0.01, between=0.03),
    "topk": Bounds(logp=0.005, tail=0.005, between=0.03),
}


def test_every_encoding_has_cases():
    nodes_only = {"collapsed"}  # needs the labels of a lattice: tests/store/test_lattice_forms.py
    numbers = {"vectors"}  # no classes: tests/dump/test_hidden.py
    found = set(registry.names("encodings")) - nodes_only - numbers
    assert found <= set(CASES), "give it CASES and BOUNDS above"


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("text", "classes"), [c for cases in CASES.values() for c in cases])
def test_encoding(text, classes, check):
    check(parse_encoding(text), classes, BOUNDS.get(text) or BOUNDS[text.partition(":")[0]])


@pytest.mark.parametrize(
    "text",
    [
        "dense",
        "dense:int8",
        "topk:16",
        "factored",
        "factored:int8",
        "factored:0.001",
        "nucleus:0.001",
        "nucleus:0.001@2",
    ],
)
def test_the_name_of_an_encoding_parses_to_it(text):
    assert str(parse_encoding(text)) == text
    assert parse_encoding(text) == parse_encoding(str(parse_encoding(text)))


@pytest.mark.parametrize(
    "text",
    [
        "topk",
        "topk:",
        "topk:0",
        "topk:-1",
        "topk:٣",
        "topk:1.5",
        "dense:1",
        "dense:",
        "factored:int6",
        "factored:int4",
        "factored:",
        "factored:2",
        "factored:1e-9",
        "factored:nan",
        "dense:int4",
        "nucleus",
        "nucleus:",
        "nucleus:x",
        "nucleus:1e-9",
        "nucleus:nan",
        "nucleus:1e-3@0.5",
        "nucleus:1e-3@",
    ],
)
def test_wrong_settings_are_refused(text):
    with pytest.raises(UsageError):
        parse_encoding(text)


@pytest.mark.parametrize("text", ["topq:3", "", "base", "__init__", "..vocab"])
def test_unknown_encodings_list_the_known(text):
    with pytest.raises(UnknownName, match="topk"):
        parse_encoding(text)


def test_k_above_v_is_refused():
    with pytest.raises(UsageError):
        parse_encoding("topk:6").columns(5)


def exact_tail(logits, ids, temperature):
    """log of the left-out mass, in float64, summed over the left-out classes themselves."""
    logp = torch.log_softmax(logits.double() / temperature, -1)
    return torch.logsumexp(logp.scatter(1, ids, -torch.inf), -1).numpy()


shapes = st.tuples(st.sampled_from([2, 3, 5, 40, 333, 5000]), st.integers(1, 40))


@settings(max_examples=60)
@given(shapes, st.sampled_from([0.0, 0.01, 1.0, 4.0, 12.0, 40.0]), st.integers(0, 2**20))
def test_topk_equals_brute_force_with_an_exact_tail(shape, scale, seed):
    classes, k = shape[0], min(shape)
    logits = torch.randn(6, classes, generator=torch.Generator().manual_seed(seed)) * scale
    logits[2:4] = logits[2:4].round()
    logits[4, seed % classes] += 40  # a tiny tail
    arrays = stored(parse_encoding(f"topk:{k}"), logits)
    logp = torch.log_softmax(logits.double(), -1)
    order = torch.sort(logits + 0.0, dim=-1, descending=True, stable=True)[1][:, :k]
    assert arrays["ids"].tolist() == order.tolist()
    kept = logp.gather(1, order).numpy()
    # to the nearest float16, give or take what float32 rounds before
    ulp = np.spacing(np.maximum(np.abs(kept), 1e-6).astype(np.float16)).astype(np.float64)
    assert (np.abs(arrays["logp"] - kept) <= 0.51 * ulp + 1e-5 + 2e-7 * np.abs(logits.numpy()).max()).all()
    np.testing.assert_allclose(arrays["logz"], torch.logsumexp(logits.double(), -1), rtol=1e-6, atol=1e-5)
    at_one = decoded(parse_encoding(f"topk:{k}"), logits)
    if k == classes:
        assert (at_one.at(2.0).tail == -1e4).all()
        return
    for i, temperature in enumerate(TEMPERATURES):
        tail = exact_tail(logits, order, temperature)
        mass = torch.logsumexp((logits.double() / temperature).log_softmax(-1).gather(1, order), -1).numpy()
        odds = arrays["tail"][:, i] / 1024 - 20
        wanted = np.clip(tail - mass, -52, 32767 / 1024 - 20)
        assert np.abs(odds - wanted).max() < 1e-3


@settings(max_examples=40)
@given(st.sampled_from([40, 500, 5000]), st.floats(1.0, 8.0), st.integers(0, 2**20), st.floats(0.5, 4.0))
def test_any_temperature_between_the_stored_ones(classes, temperature, seed, scale):
    logits = torch.randn(16, classes, generator=torch.Generator().manual_seed(seed)) * scale
    at = decoded(parse_encoding("topk:8"), logits).at(temperature)
    ids = torch.from_numpy(at.ids.astype(np.int64))
    error = np.abs(np.exp(at.tail) - np.exp(exact_tail(logits, ids, temperature)))
    assert error.max() < 0.02
    assert error.mean() < 0.01


@settings(max_examples=60)
@given(shapes, st.sampled_from([0.3, 1.0, 30.0]), st.integers(0, 2**20))
def test_both_implementations_of_best_agree(shape, scale, seed):
    classes, k = shape[0], min(shape)
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(9, classes, generator=generator) * scale).round() / 2
    logits[0] = 0.0
    logits[1, ::2] = -0.0
    logits[2] = -3.4e38
    logits[3] *= 1e-42  # denormal
    assert torch.equal(_best_on_cpu(logits, k), _best_on_device(logits, k))
    values, ids = best(logits, k)
    assert torch.equal(values, logits.gather(1, ids))


@settings(max_examples=30)
@given(st.integers(2, 600), st.sampled_from([0.1, 3.0, 30.0]), st.integers(0, 2**20))
def test_dense_is_rounded_to_fp16_and_nothing_else(classes, scale, seed):
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(seed)) * scale
    arrays = stored(parse_encoding("dense"), logits)
    exact = torch.log_softmax(logits.double(), -1).numpy()
    ulp = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
    assert (np.abs(arrays["logp"] - exact) <= 0.51 * ulp + 1e-5).all()
    back = decoded(parse_encoding("dense"), logits).logits()
    assert (np.abs(back - logits.numpy()) <= 0.51 * ulp + 2e-5).all()


def test_improbable_classes_are_clipped_and_stay_finite():
    logits = torch.tensor([[0.0, -1e30, -3.4e38, 5.0], [3e38, -3e38, 0.0, 0.0]])
    for text in ("dense", "topk:3"):
        rows = decoded(parse_encoding(text), logits)
        for temperature in (1.0, 2.5, 8.0):
            dense = rows.at(temperature).dense()
            assert np.isfinite(dense).all()
            np.testing.assert_allclose(np.exp(logsumexp(dense)), 1, atol=1e-5)


def brute_nucleus(row, budget, temperature, always):
    """The classes that are kept, by trying one more until the loss fits; float64, no sums carried on."""
    logp = torch.log_softmax(torch.as_tensor(row).double() / temperature, -1).numpy()
    order = np.argsort(-(row + 0.0), kind="stable")
    for k in range(1, len(row) + 1):
        kept = np.zeros(len(row), bool)
        kept[order[:k]] = kept[always] = True
        left = ~kept
        served = logp.copy()
        served[left] = logsumexp(logp[left]) - np.log(max(left.sum(), 1))
        if (np.exp(logp) * (logp - served)).sum() <= budget:
            break
    return [int(i) for i in order if kept[i]]


@settings(max_examples=60)
@given(
    st.sampled_from([2, 5, 40, 300]),
    st.sampled_from([1e-4, 1e-3, 0.02, 0.3]),
    st.sampled_from([1.0, 2.0, 8.0]),
    st.sampled_from([0.3, 3.0, 15.0]),
    st.integers(0, 2**20),
)
def test_nucleus_keeps_the_fewest(classes, budget, temperature, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, classes, generator=generator) * scale
    logits[2] = logits[2].round()
    always = torch.randint(0, classes, (7, 2), generator=generator)
    encoding = parse_encoding(f"nucleus:{budget:g}@{temperature:g}")
    arrays = encoding.encode(logits, always)
    start = np.concatenate([[0], np.cumsum(arrays["count"].numpy())])
    size = 1 if classes <= 256 else 2
    whole_row = classes + 4 if budget >= 1e-3 else 2 * classes
    for n in range(7):
        kept = arrays["ids"][start[n] : start[n + 1]].tolist()
        wanted = brute_nucleus(logits[n].numpy(), budget, temperature, always[n].numpy())
        large = size * len(wanted) + 2 * (len(wanted) - 1) + 7 > whole_row
        assert kept == wanted or (not kept and arrays["kl"][n] <= budget)
        if budget < 1e-3 and large:
            assert not kept


def some_sure_rows():
    """(200, 500) logits; every other row is rather sure of class 7."""
    logits = torch.randn(200, 500, generator=torch.Generator().manual_seed(3)) * 2
    logits[::2] /= 2
    logits[::2, 7] += 9
    return logits


def test_a_row_of_which_nucleus_keeps_much_is_stored_whole():
    """Such rows cost no more than dense:int8, but for their count, and lose no more than the budget."""
    logits, encoding = some_sure_rows(), parse_encoding("nucleus:1e-3@4")
    arrays = stored(encoding, logits)
    whole = arrays["count"] == 0
    assert whole[1::2].all()
    assert arrays["root"].shape == (whole.sum(), 500)
    assert sum(a.nbytes for a in arrays.values()) <= 200 * (500 + 4 + 2)
    rows = decoded(encoding, logits)
    exact = torch.log_softmax(logits.double() / 4, -1).numpy()
    lost = (np.exp(exact) * (exact - rows.at(4.0).dense())).sum(1)
    assert lost.max() < 1e-3 + 2e-5
    assert (rows.counts[whole] == 500).all()
    assert (rows.at(1.0).tail[whole] == -1e4).all()


def test_broken_arrays_of_nucleus_are_refused():
    encoding = parse_encoding("nucleus:1e-3")
    arrays = stored(encoding, some_sure_rows())
    for name, array in arrays.items():
        assert len(array), name
        with pytest.raises(FormatError, match="E10"):
            encoding.decode({**arrays, name: array[:-1]}, 500)


def test_ragged_rows_mix_as_their_dense_rows_do():
    logits = suite.samples(40)
    rows = decoded(parse_encoding("nucleus:0.01"), logits)
    assert rows.counts.min() < 3 < 20 < rows.counts.max()
    a, b = (rows.take(np.array(i)) for i in ([0, 3, 16, 9, 4, 5], [1, 18, 16, 2, 20, 5]))
    weight = np.array([0.5, 0.25, 0.9, 0.0, 0.75, 0.3], np.float32)
    for temperature in (1.0, 2.0, 3.0):
        one, two = a.at(temperature), b.at(temperature)
        wanted = (1 - weight[:, None]) * np.exp(one.dense()) + weight[:, None] * np.exp(two.dense())
        mixed = mix(one, two, weight)
        np.testing.assert_allclose(np.exp(mixed.dense()), wanted, atol=2e-6)
        assert (np.abs(np.exp(logsumexp(mixed.dense())) - 1) < 1e-5).all()


@settings(max_examples=40)
@given(st.integers(2, 600), st.sampled_from([0.1, 3.0, 30.0, 300.0]), st.integers(0, 2**20))
def test_dense_int8_keeps_its_documented_bound(classes, scale, seed):
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(seed)) * scale
    encoding = parse_encoding("dense:int8")
    arrays = stored(encoding, logits)
    below = np.minimum(-torch.log_softmax(logits.double(), -1).numpy(), 256)
    depth = arrays["depth"].astype(np.float64)[:, None]
    np.testing.assert_allclose(depth[:, 0], below.max(1), rtol=1e-5, atol=1e-5)
    back = (arrays["root"] / 255.0) ** 2 * depth
    bound = np.sqrt(depth * below) / 255 + depth / 260100
    assert (np.abs(back - below) <= bound + 1e-4).all()
    served = decoded(encoding, logits).at(1.0).logp
    assert (np.abs(served + below) <= bound + bound.max() + 1e-4).all()
    real = below < 255.9
    np.testing.assert_allclose(
        decoded(encoding, logits).logits()[real], (arrays["logz"][:, None] + served)[real], atol=1e-3
    )


def test_dense_int8_loses_little_of_trained_rows():
    """On rows like a trained head's, peaked, the loss stays below 1e-3 nats at every temperature."""
    logits = torch.randn(200, 500, generator=torch.Generator().manual_seed(3)) * 3
    logits[:, 0] += 8
    rows = decoded(parse_encoding("dense:int8"), logits)
    for temperature in (1.0, 2.0, 4.0):
        exact = torch.log_softmax(logits.double() / temperature, -1).numpy()
        lost = (np.exp(exact) * (exact - rows.at(temperature).logp)).sum(1)
        assert lost.mean() < 1e-3


HEADS = {
    "factored": 1e-6,
    "factored:int8": 1e-4,
    "factored:1e-4": 1.2e-4,
    "factored:0.01": 1.2e-2,
}


@pytest.mark.parametrize("check", head_suite.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("text", list(HEADS))
def test_head_encodings(text, check):
    check(parse_encoding(text), HEADS[text])


def test_rows_beyond_float16_are_refused_or_scaled():
    rows = head_suite.rows() * 1e5
    with pytest.raises(NonFinite, match="factored:int8"):
        head_suite.bound(parse_encoding("factored")).encode(rows)
    assert set(head_suite.bound(parse_encoding("factored:int8")).encode(rows)) == {"code", "scale"}
