"""Lattices at another rate by ``compose``: teacher frames joined with their transition probabilities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import DumpOptions, TokenTable, VocabMap, collate_targets, dump_logits, open_store
from logitstore.encodings import parse_encoding
from logitstore.encodings.rows import Tempered, compose
from logitstore.schema import lattice
from logitstore.schema.lattice import Form
from logitstore.targets.frames import METHODS, Ramp, frame_groups
from logitstore.targets.target import Target
from logitstore.testing.encoding import decoded
from tests.support import demo

V, BLANK = 7, 2


def lattice_target(t, u, encoding="dense", seed=0):
    logits = torch.randn(t * (u + 1), V, generator=torch.Generator().manual_seed(seed)) * 3
    rows = decoded(parse_encoding(encoding), logits)
    labels = np.arange(u, dtype=np.int32) % 2
    shapes = {"rnnt": (t, u + 1, V)}
    return Target(f"u{seed}", t, labels, {"rnnt": rows}, shapes, blank=BLANK)


def groups_of(t, s):
    """Teacher frames whose centres are within each student frame; the nearest where there is none."""
    near = Ramp.whole(t, s).nearest(t)
    inside = [[j for j in range(t) if (2 * j + 1) * s // (2 * t) == i] for i in range(s)]
    return [found or [int(near[i])] for i, found in enumerate(inside)]


def brute_force(p, group):
    """(U+1, V) probabilities of the first label that a frame of the group emits, frame by frame; else the blank."""
    out = np.zeros(p.shape[1:])
    for u in range(p.shape[1]):
        waiting = 1.0
        for t in group:
            for y in range(p.shape[2]):
                if y != BLANK:
                    out[u, y] += waiting * p[t, u, y]
            waiting *= p[t, u, BLANK]
        out[u, BLANK] = waiting
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 14),
    st.integers(1, 18),
    st.integers(0, 4),
    st.sampled_from(["dense", "topk:3", "topk:7", "nucleus:0.05"]),
    st.sampled_from([1.0, 2.0]),
    st.integers(0, 99),
)
def test_composed_frames_emit_what_the_teachers_frames_emit(t, s, u, encoding, temperature, seed):
    made = lattice_target(t, u, encoding, seed)
    stream = collate_targets([made], frames=[s], temperature=temperature, stretch=True)["rnnt"]
    composed = stream.dense()[0].double().exp()
    torch.testing.assert_close(composed.sum(-1), torch.ones(s, u + 1).double(), atol=2e-5, rtol=0)
    p = np.exp(made.log_probs("rnnt", temperature).astype(np.float64))
    wanted = np.stack([brute_force(p, group) for group in groups_of(t, s)])
    if encoding in ("dense", "topk:7"):
        torch.testing.assert_close(composed, torch.from_numpy(wanted), atol=1e-5, rtol=1e-4)
        return
    # Classes that every frame left out share the tail: their total is exact, and every kept class is.
    kept = torch.zeros(s, u + 1, V, dtype=torch.bool)
    if stream.ids is not None:
        kept.scatter_(-1, stream.ids[0], torch.ones_like(stream.ids[0], dtype=torch.bool))
    torch.testing.assert_close(composed, torch.from_numpy(wanted), atol=2e-5, rtol=1e-3)
    tail = stream.tail[0].double().exp()
    torch.testing.assert_close(tail, (composed * ~kept).sum(-1), atol=2e-5, rtol=1e-3)


def test_at_the_teachers_own_rate_compose_changes_nothing():
    for encoding in ("dense", "topk:3"):
        made = lattice_target(9, 3, encoding)
        own = collate_targets([made], frames=[9], method="compose", temperature=2.0)["rnnt"]
        plain = collate_targets([made], temperature=2.0)["rnnt"]
        assert torch.equal(own.logp, plain.logp)
        assert torch.equal(own.tail, plain.tail)
        assert (own.ids is None) == (plain.ids is None)


@given(st.integers(1, 40), st.integers(1, 60))
def test_every_teacher_frame_is_in_one_group(t, s):
    ramp = Ramp.whole(t, s)
    groups = frame_groups(ramp, t, ramp.nearest(t))
    assert [[int(j) for j in row if j >= 0] for row in groups] == groups_of(t, s)
    if s <= t:
        assert groups[groups >= 0].tolist() == list(range(t))


def random_rows(rng, pruned):
    p = rng.dirichlet(np.full(V, 0.3), size=50).astype(np.float64) + 1e-9
    logp = np.log(p / p.sum(1, keepdims=True)).astype(np.float32)
    if not pruned:
        return Tempered(V, 1.0, logp, None, np.full(50, -1e4, np.float32))
    ids = np.argsort(-logp, axis=1)[:, :3].astype(np.int32)
    kept = np.take_along_axis(logp, ids, axis=1)
    return Tempered(V, 1.0, kept, ids, np.log1p(-np.exp(kept).sum(1)).astype(np.float32))


@pytest.mark.parametrize("pruned", [False, True])
def test_composing_is_associative_and_a_certain_blank_is_its_identity(pruned):
    rng = np.random.default_rng(0)
    a, b, c = (random_rows(rng, pruned) for _ in range(3))
    left, right = compose(compose(a, b, BLANK), c, BLANK), compose(a, compose(b, c, BLANK), BLANK)
    if not pruned:  # pruned sides share other tails
        np.testing.assert_allclose(left.dense(), right.dense(), atol=1e-4)
    np.testing.assert_allclose(np.exp(left.dense()).sum(1), 1, atol=1e-5)
    certain = np.full((50, V), -1e4, np.float32)
    certain[:, BLANK] = 0
    wait = Tempered(V, 1.0, certain, None, np.full(50, -1e4, np.float32))
    if pruned:
        ids = np.full((50, 1), BLANK, np.int32)
        wait = Tempered(V, 1.0, np.zeros((50, 1), np.float32), ids, np.full(50, -1e4, np.float32))
    np.testing.assert_allclose(compose(a, wait, BLANK).dense(), a.dense(), atol=1e-5)
    np.testing.assert_allclose(compose(wait, a, BLANK).dense(), a.dense(), atol=1e-5)


def test_a_banded_lattice_composes_the_frames_that_hold_a_node():
    t, u, width = 6, 5, 3
    form = Form.parse("banded:3+occupancy")
    begin = np.array([0, 0, 1, 2, 3, 3])
    nodes = lattice.ranges(form, t, u, begin, width)
    occupancy = np.linspace(0, 1, t * width).astype(np.float32)
    nodes = lattice.Nodes(form, t, u, nodes.frame, nodes.position, occupancy)
    logits = torch.randn(t * width, V, generator=torch.Generator().manual_seed(1))
    rows = decoded(parse_encoding("dense"), logits)
    labels = np.zeros(u, np.int32)
    made = Target("u", t, labels, {"rnnt": rows}, {"rnnt": (t, width, V)}, nodes={"rnnt": nodes}, blank=BLANK)
    stream = collate_targets([made], frames=[3], method="compose")["rnnt"]
    p = np.exp(made.log_probs("rnnt").astype(np.float64))
    for s, group in enumerate([(0, 1), (2, 3), (4, 5)]):
        for w in range(width):
            position = int(stream.positions[0, s, w])
            held = [(j, position - begin[j]) for j in group if 0 <= position - begin[j] < width]
            assert held
            wanted = brute_force(np.stack([p[j, column] for j, column in held])[:, None], range(len(held)))
            np.testing.assert_allclose(stream.logp[0, s, w].exp(), wanted[0], atol=1e-5)
            most = max(occupancy[j * width + column] for j, column in held)
            assert float(stream.occupancy[0, s, w]) == pytest.approx(most)


def test_composed_targets_are_mapped_last_and_follow_a_lag():
    names = ["a", "b", "<blk>", "c", "d", "e", "f"]
    vocab = VocabMap.by_token(TokenTable(tuple(names), BLANK), TokenTable(tuple(sorted(names)), 0))
    made = lattice_target(9, 2, "topk:3")
    one = collate_targets([made], frames=[4])["rnnt"].dense()
    two = collate_targets([made], frames=[4], vocab=vocab)["rnnt"].dense()
    torch.testing.assert_close(two[..., [sorted(names).index(n) for n in names]], one)
    late = collate_targets([made], frames=[4], method="+shift=1")["rnnt"]
    assert not bool(late.mask[0, 0].any())
    torch.testing.assert_close(late.dense()[0, 1:], one[0, :3])


def test_a_factored_lattice_is_served_composed_as_dense_rows(tmp_path):
    streams = {"rnnt": "factored"}
    dump_logits(demo.teacher(), demo.manifest(2), tmp_path, DumpOptions(streams=streams))
    store = open_store(tmp_path)
    utt_id = next(iter(store))
    half = [(store[utt_id].T + 1) // 2]
    stream = store.batch([utt_id], frames=half)["rnnt"]
    p = np.exp(store[utt_id].log_probs("rnnt").astype(np.float64))
    blank = store.tokens.blank
    first = p[0, :, blank] * p[1, :, blank]
    np.testing.assert_allclose(stream.dense()[0, 0, :, blank].exp(), first, rtol=1e-3)


def test_frames_compose_too_and_numbers_of_a_layer_do_not():
    assert not METHODS["compose"].numbers
    rows = decoded(parse_encoding("dense"), torch.randn(8, V))
    ctc = Target("u", 8, np.zeros(0, np.int32), {"ctc": rows}, {"ctc": (8, V)}, blank=BLANK)
    stream = collate_targets([ctc], frames=[4], method="compose")["ctc"]
    p = np.exp(ctc.log_probs("ctc").astype(np.float64))
    np.testing.assert_allclose(stream.logp[0, 0, BLANK].exp(), p[0, BLANK] * p[1, BLANK], rtol=1e-4)


def test_a_batch_warns_when_tokens_do_not_fit():
    best = torch.tensor([0, 1, 3, 4, 5, 6, 0, 1])
    rows = decoded(parse_encoding("dense"), torch.nn.functional.one_hot(best, V).float() * 9)
    dense = Target("u", 8, np.zeros(0, np.int32), {"ctc": rows}, {"ctc": (8, V)}, blank=BLANK)
    with pytest.warns(UserWarning, match="do not fit"):
        collate_targets([dense], frames=[4])
