"""Every registered encoding passes the suite that is shipped for authors; dense and topk in particular."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import registry
from logitstore.encodings import parse_encoding
from logitstore.encodings.topk import _best_on_cpu, _best_on_device, best
from logitstore.errors import UnknownName, UsageError
from logitstore.target import TEMPERATURES, logsumexp
from logitstore.testing import encoding as suite
from logitstore.testing.encoding import Bounds, decoded, stored

CASES = {
    "dense": [("dense", 2), ("dense", 40), ("dense", 700)],
    "topk": [("topk:1", 2), ("topk:8", 8), ("topk:8", 40), ("topk:1", 40), ("topk:16", 700)],
}
BOUNDS = {"dense": Bounds(logp=0.004, tail=0.0), "topk": Bounds(logp=0.005, tail=0.005, between=0.03)}


def test_every_encoding_is_tried():
    nodes_only = {"collapsed"}  # needs the labels of a lattice: tests/test_lattice.py
    found = set(registry.names("logitstore.encodings")) - nodes_only
    assert found <= set(CASES), "give it CASES and BOUNDS above"


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("text", "classes"), [c for cases in CASES.values() for c in cases])
def test_encoding(text, classes, check):
    check(parse_encoding(text), classes, BOUNDS[text.partition(":")[0]])


@pytest.mark.parametrize("text", ["dense", "topk:16"])
def test_its_name_opens_it_again(text):
    assert str(parse_encoding(text)) == text
    assert parse_encoding(text) == parse_encoding(str(parse_encoding(text)))


@pytest.mark.parametrize(
    "text", ["topk", "topk:", "topk:0", "topk:-1", "topk:٣", "topk:1.5", "dense:1", "dense:"]
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
def test_topk_is_brute_force_with_an_exact_tail(shape, scale, seed):
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


def test_hopeless_classes_are_clipped_and_stay_finite():
    logits = torch.tensor([[0.0, -1e30, -3.4e38, 5.0], [3e38, -3e38, 0.0, 0.0]])
    for text in ("dense", "topk:3"):
        rows = decoded(parse_encoding(text), logits)
        for temperature in (1.0, 2.5, 8.0):
            dense = rows.at(temperature).dense()
            assert np.isfinite(dense).all()
            np.testing.assert_allclose(np.exp(logsumexp(dense)), 1, atol=1e-5)
