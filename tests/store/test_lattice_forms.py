"""Lattice forms: compared with brute force, stored, read again, resampled, and their losses."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import StoreWriter, TokenTable, VocabMap, collate_targets, open_store
from logitstore.dump.against import against_teacher
from logitstore.dump.blocks import JobPart
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.encodings.rows import NOTHING
from logitstore.errors import FormatError, LengthError, NonFinite, UsageError
from logitstore.losses import ctc_kd, mean_u, rnnt_kd
from logitstore.schema.lattice import Form, band_size, path, ranges, restored, sample, stored
from logitstore.store.inspect import inspect_store, inspect_utterance
from logitstore.store.lattice_nodes import band, best_path, occupancy
from logitstore.store.rewrite import convert_store
from logitstore.store.verify import verify_store
from logitstore.targets.frames import nearest
from tests.support import demo
from tests.support.dumping import same_tree
from tests.support.lattices import brute, means

V = 7
TABLE = TokenTable(("<blk>", *(f"t{i}" for i in range(1, V))), 0)
FORMS = [
    "full+occupancy",
    "banded:2+occupancy",
    "banded:3",
    "path+occupancy",
    "sample:2",
    "sample:9+occupancy",
]


def scores(t, u, seed):
    r = np.random.default_rng(seed)
    return np.log(r.uniform(0.02, 0.6, (2, t, u + 1)))


def alignments(blank, label):
    """Return every alignment: its log-probability, its nodes, and the position at which it enters each frame."""
    t, positions = blank.shape
    for frames in itertools.combinations_with_replacement(range(t), positions - 1):
        total, u, nodes, enters = 0.0, 0, [], []
        for frame in range(t):
            enters.append(u)
            nodes.append((frame, u))
            for _ in range(frames.count(frame)):
                total += label[frame, u]
                u += 1
                nodes.append((frame, u))
            total += blank[frame, u]
        yield total, nodes, enters


sizes = st.tuples(st.integers(1, 6), st.integers(0, 5))


@settings(max_examples=60)
@given(sizes, st.integers(0, 2**16))
def test_alignment_is_brute_force(size, seed):
    blank, label = scores(*size, seed)
    every = list(alignments(blank, label))
    wanted = np.zeros(blank.shape)
    for total, nodes, _ in every:
        for node in nodes:
            wanted[node] += np.exp(total)
    wanted /= sum(np.exp(total) for total, _, _ in every)
    np.testing.assert_allclose(occupancy(blank, label), wanted, atol=1e-12)
    assert best_path(blank, label).tolist() == max(every)[2]


def test_a_long_lattice_does_not_underflow():
    blank, label = scores(2000, 60, 0) * 20
    found = occupancy(blank, label)
    assert found.sum() == pytest.approx(2060, rel=1e-9)
    np.testing.assert_allclose([found[0, 0], found[-1, -1]], 1, atol=1e-9)


@settings(max_examples=60)
@given(sizes, st.integers(1, 5), st.integers(0, 2**16))
def test_a_band_holds_most_of_the_occupancy(size, wanted, seed):
    t, u = size
    width = band_size(wanted, t, u)
    occupied = occupancy(*scores(t, u, seed))
    begin = band(occupied, width)

    def held(starts):
        return sum(occupied[i, s : s + width].sum() for i, s in enumerate(starts))

    allowed = [
        starts
        for starts in itertools.product(range(u + 2 - width), repeat=t)
        if starts[0] == 0
        and starts[-1] == u + 1 - width
        and all(0 <= b - a < width for a, b in itertools.pairwise(starts))
    ]
    assert tuple(begin.tolist()) in allowed
    assert held(begin) == pytest.approx(max(map(held, allowed)))
    assert min(wanted, u + 1) <= width <= u + 1
    if width > min(wanted, u + 1):  # no wider than T frames need to get through
        assert t * (width - 2) + 1 < u + 1 <= t * (width - 1) + 1


@pytest.mark.parametrize(
    "text", ["full", "banded:5", "path", "sample:3", "banded:5+occupancy", "full+occupancy", "path+occupancy"]
)
def test_forms_are_written_as_read(text):
    assert str(Form.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "banded", "banded:0", "full:2", "path:1", "band:3", "banded:٣", "full+x"]
)
def test_wrong_forms_are_refused(text):
    with pytest.raises(UsageError, match="banded:S"):
        Form.parse(text)


@settings(max_examples=40)
@given(sizes, st.sampled_from(FORMS), st.integers(0, 99))
def test_nodes_come_back_from_their_columns(size, text, seed):
    t, u = size
    form = Form.parse(text)
    made = nodes_of(form, t, u, seed)
    if form.occupancy:
        made = replace(made, occupancy=np.linspace(0, 1, len(made)).astype(np.float16).astype(np.float32))
    again = restored(form, t, u, len(made), stored(made))
    for name in ("frame", "position", "occupancy"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    assert len(set(zip(made.frame.tolist(), made.position.tolist(), strict=True))) == len(made)
    grid = made.grid()
    assert (grid >= 0).sum() == len(made)
    assert grid[made.frame, made.position].tolist() == list(range(len(made)))
    if form.name == "path":
        assert len(made) == t + u


def nodes_of(form, t, u, seed):
    blank, label = scores(t, u, seed)
    if form.name == "banded":
        width = band_size(form.size, t, u)
        return ranges(form, t, u, band(occupancy(blank, label), width), width)
    if form.name == "path":
        return path(form, t, u, best_path(blank, label))
    if form.name == "sample":
        return sample(form, t, u, f"utt-{seed}")
    from logitstore.schema.lattice import full

    return full(t, u, form)


def test_samples_follow_the_id():
    form = Form.parse("sample:3")
    one, again, other = (sample(form, 4, 30, i).position[:3].tolist() for i in ("a", "a", "b"))
    assert one == again != other
    assert one == sorted(set(one))


@pytest.mark.parametrize(
    ("text", "rows", "arrays"),
    [
        ("full+occupancy", 7, {}),
        ("full+occupancy", 8, {"occupancy": np.zeros(7)}),
        ("banded:2", 8, {"begin": np.array([0, 1, 0, 0])}),
        ("banded:2", 8, {"begin": np.array([0, 0, 0])}),
        ("banded:2", 7, {"begin": np.array([0, 0, 0, 0])}),
        ("path", 5, {"begin": np.array([0, 1, 0, 1])}),
        ("path", 5, {"begin": np.array([1, 1, 1, 1])}),
        ("path", 5, {"begin": np.array([0, 0, 0, 2])}),
        ("sample:1", 4, {"positions": np.array([2])}),
        ("sample:1", 4, {"positions": np.array([0, 1])}),
        ("sample:2", 8, {"positions": np.array([1, 0])}),
    ],
)
def test_columns_that_break_the_rules_are_refused(text, rows, arrays):
    with pytest.raises(FormatError, match="SPEC S"):
        restored(Form.parse(text), 4, 1, rows, arrays)


@pytest.mark.parametrize("begin", [[0, 1, 2, 2], [0, 0, 2, 3], [0, 2, 2, 3], [1, 1, 2, 3], [0, 1, 3, 2]])
def test_ranges_that_leave_out_a_label_are_refused(begin):
    """Of U = 4 labels in T = 4 frames, ranges of 2 go from 0 to 3 by steps of at most 1."""
    good = np.array([0, 1, 2, 3])
    assert len(restored(Form.parse("banded:2"), 4, 4, 8, {"begin": good})) == 8
    with pytest.raises(FormatError, match="SPEC S11"):
        restored(Form.parse("banded:2"), 4, 4, 8, {"begin": np.array(begin)})


def lattice(t, u, seed):
    return torch.randn(t, u + 1, V, generator=torch.Generator().manual_seed(seed)) * 3


SIZES = ((6, 3), (4, 2), (5, 0), (2, 4))


def make(folder, how):
    """Write random lattices; return the store and their logits."""
    said = {}
    with StoreWriter.open(folder, tokens=TABLE, streams={"rnnt": how}) as w:
        for i, (t, u) in enumerate(SIZES):
            logits, labels = lattice(t, u, i), [1 + (i + j) % (V - 1) for j in range(u)]
            said[f"u{i}"] = logits, labels
            pieces = [logits[:3], logits[3:]] if t > 3 else logits
            w.add(f"u{i}", rnnt=pieces if i != 1 else (lambda pieces=pieces: iter(pieces)), labels=labels)
    return open_store(folder), said


@pytest.mark.parametrize("encoding", ["dense", "topk:3", "nucleus:0.01", "collapsed"])
@pytest.mark.parametrize("form", ["full", *FORMS])
def test_rows_are_the_chosen_nodes(tmp_path, encoding, form):
    store, said = make(tmp_path / "s", f"{encoding}/{form}")
    for utt, (logits, labels) in said.items():
        target = store[utt]
        grid = target.grid("rnnt")
        assert grid.shape == logits.shape[:2]
        dense = torch.log_softmax(logits.double(), -1)
        at = target["rnnt"].at(1.0)
        for t, u in np.argwhere(grid >= 0).tolist():
            row, ids = int(grid[t, u]), range(V) if at.ids is None else at.ids[grid[t, u]].tolist()
            kept = [(i, p) for i, p in zip(ids, at.logp[row], strict=True) if p > NOTHING]
            atol = 0.03 if encoding.startswith("nucleus") else 6e-3  # whole rows have a byte a class
            np.testing.assert_allclose(
                [dense[t, u, i] for i, _ in kept], [p for _, p in kept], atol=atol, rtol=2e-3
            )
            if encoding == "collapsed":
                assert [i for i, _ in kept] == ([0, labels[u]] if u < len(labels) else [0])
        if form.endswith("occupancy"):
            follow = [*labels, 0]
            label = torch.stack([dense[:, u, follow[u]] for u in range(len(follow))], 1).numpy()
            occupied = occupancy(dense[..., 0].numpy(), label)
            np.testing.assert_allclose(target.nodes["rnnt"].occupancy, occupied[grid >= 0], atol=2e-3)
    assert not verify_store(tmp_path / "s").findings
    line = inspect_store(store).streams["rnnt"]
    assert line.form == form
    assert inspect_utterance(store, "u0").streams["rnnt"].frames


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0, 3.0])
def test_collapsed_is_exact_at_every_stored_temperature(tmp_path, temperature):
    store, said = make(tmp_path / "s", "collapsed")
    for utt, (logits, labels) in said.items():
        p = torch.softmax(logits.double() / temperature, -1).reshape(-1, V)
        at = store[utt]["rnnt"].at(temperature)
        for row, (ids, logp, tail) in enumerate(zip(at.ids, at.logp, at.tail, strict=True)):
            kept = [0, ids[1]] if row % (len(labels) + 1) < len(labels) else [0]
            wanted = [*p[row, kept].tolist(), 1 - float(p[row, kept].sum())]
            assert (logp[len(kept) :] == NOTHING).all()
            got = np.exp([*logp[: len(kept)], tail])
            np.testing.assert_allclose(got, wanted, atol=2e-3 if temperature != 3 else 2e-2)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("encoding", ["dense", "topk:3", "nucleus:0.01", "collapsed"])
@pytest.mark.parametrize("form", ["full", *FORMS])
def test_losses_of_every_form(tmp_path, encoding, form, direction):
    store, said = make(tmp_path / "s", f"{encoding}/{form}")
    batch = collate_targets([store[i] for i in said], temperature=2.0)
    stream = batch["rnnt"]
    shape = (4, 6, 5, V)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    grids = [store[i].grid("rnnt") for i in said]
    nodes = [np.argwhere(g >= 0) for g in grids]
    assert [int(m.sum()) for m in stream.mask] == [len(n) for n in nodes]
    picked = torch.zeros(*stream.mask.shape, V, dtype=torch.float64)
    picked[stream.mask] = torch.cat([logits[b][tuple(n.T)] for b, n in enumerate(nodes)])
    wanted = brute(stream, picked, direction)
    got = rnnt_kd(logits, stream, direction=direction, reduction="none")
    torch.testing.assert_close(got, wanted, atol=3e-6, rtol=3e-6)
    assert torch.equal(rnnt_kd(picked, stream, direction=direction, reduction="none"), got)
    if form.endswith("occupancy"):
        weighted = rnnt_kd(logits, stream, direction=direction, weights=stream.occupancy)
        share = stream.occupancy.double() * stream.mask
        torch.testing.assert_close(weighted, (wanted * share).sum() / share.sum(), atol=1e-5, rtol=1e-5)
        assert float(share.sum()) == pytest.approx(sum(map(sum, SIZES)), rel=0.01) or "full" not in form
    slices = [logits[:, :2], logits[:, 2:]]
    if form.startswith("path"):
        with pytest.raises(UsageError, match="path"):
            rnnt_kd(slices, stream)
    else:
        torch.testing.assert_close(rnnt_kd(slices, stream), rnnt_kd(logits, stream))
    if form not in ("full", "sample:2"):
        with pytest.raises(LengthError):
            rnnt_kd(logits[:, :, :4], stream)
    with pytest.raises(LengthError):
        rnnt_kd(logits[:, :4], stream)


def test_gradients_reach_the_whole_lattice(tmp_path):
    store, said = make(tmp_path / "s", "collapsed/banded:2+occupancy")
    stream = collate_targets([store[i] for i in said], temperature=2.0)["rnnt"]
    logits = torch.randn(4, 6, 5, V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rnnt_kd(x, stream, weights=stream.occupancy), (logits,))


@pytest.mark.parametrize("method", ["linear", "nearest", "linear-logit", "nearest+shift=2"])
@pytest.mark.parametrize("student", [3, 6, 9])
@pytest.mark.parametrize("form", ["banded:2+occupancy", "sample:2", "full+occupancy"])
def test_resampling_follows_the_ranges(tmp_path, form, student, method):
    """Compare every node with the resampled whole lattice where both frames hold it."""
    store, _ = make(tmp_path / "s", f"dense/{form}")
    whole, _ = make(tmp_path / "w", "dense")
    some = collate_targets([store["u0"]], frames=[student], method=method)["rnnt"]
    every = collate_targets([whole["u0"]], frames=[student], method=method)["rnnt"]
    assert every.logp.shape[:3] == (1, student, 4)
    shift = 2 if "shift" in method else 0
    assert bool(some.mask[:, shift:].all())
    assert not bool(some.mask[:, :shift].any())
    grid = store["u0"].grid("rnnt")
    if form.startswith("banded"):
        table = store["u0"].nodes["rnnt"].position.reshape(6, -1)
        assert some.positions[0, shift:].tolist() == table[nearest(6, student)][: student - shift].tolist()
    same = 0
    for t in range(shift, student):
        for s in range(some.mask.shape[2]):
            u = int(some.positions[0, t, s])
            a, b = some.logp[0, t, s], every.logp[0, t, u]
            centre = (2 * (t - shift) + 1) * 6 / (2 * student) - 0.5
            near = {int(np.floor(np.clip(centre, 0, 5))), int(np.ceil(np.clip(centre, 0, 5)))}
            if all(grid[i, u] >= 0 for i in near):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
                same += 1
            else:  # one frame's own
                own = [
                    torch.tensor(store["u0"]["rnnt"].at(1.0).logp[grid[i, u]])
                    for i in near
                    if grid[i, u] >= 0
                ]
                assert any(torch.allclose(a, o, atol=1e-5) for o in own)
            torch.testing.assert_close(a.exp().sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert same >= student - shift
    if some.occupancy is not None:
        assert 0 <= float(some.occupancy.min()) <= float(some.occupancy.max()) <= 1.001


def test_collapsed_rows_mix_exactly(tmp_path):
    store, _ = make(tmp_path / "s", "collapsed")
    dense, _ = make(tmp_path / "d", "dense")
    a, b = (collate_targets([s["u0"]], frames=[4], temperature=2.0)["rnnt"] for s in (store, dense))
    assert a.logp.shape[-1] == 2
    kept = a.logp > NOTHING
    got = torch.where(kept, b.logp.gather(-1, a.ids), a.logp)
    torch.testing.assert_close(a.logp.exp(), got.exp(), atol=2e-3, rtol=0)


def test_paths_keep_the_teachers_frames(tmp_path):
    store, _ = make(tmp_path / "s", "dense/path")
    with pytest.raises(UsageError, match="banded"):
        collate_targets([store["u0"]], frames=[3])
    with pytest.raises(UsageError, match="label position"):
        collate_targets([store["u0"]], frames=[3], method="max-nonblank")


def test_forms_and_vocab_maps(tmp_path):
    student = TokenTable(("t2", "<blk>", *(f"t{i}" for i in (1, 3, 4, 5, 6))), 1)
    store, said = make(tmp_path / "s", "collapsed/banded:2")
    mapped = open_store(tmp_path / "s", vocab=VocabMap.by_token(TABLE, student))
    a, b = (collate_targets([s[i] for i in said])["rnnt"] for s in (store, mapped))
    logits = torch.randn(4, 6, 5, V)
    back = torch.tensor([student.id(t) for t in TABLE.tokens])
    there = torch.empty_like(logits)
    there[..., back] = logits
    torch.testing.assert_close(rnnt_kd(logits, a), rnnt_kd(there, b), atol=1e-5, rtol=1e-5)
    assert mapped["u0"].blank == 1


def test_streams_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(UsageError, match="lattice"):
        StoreWriter.open(tmp_path / "a", tokens=TABLE, streams={"ctc": "dense/banded:2"})
    with pytest.raises(UsageError, match="lattice"):
        StoreWriter.open(tmp_path / "a", tokens=TABLE, streams={"ctc": "collapsed"})
    with pytest.raises(UsageError, match="banded:S"):
        StoreWriter.open(tmp_path / "a", tokens=TABLE, streams={"rnnt": "dense/bandit:2"})
    with StoreWriter.open(tmp_path / "b", tokens=TABLE, streams={"rnnt": "dense/path"}) as w:
        with pytest.raises(UsageError, match="function"):
            w.add("a", rnnt=iter([lattice(3, 1, 0)]), labels=[1])
        bad = lattice(3, 1, 0)
        bad[1, 1, 3] = torch.nan
        with pytest.raises(NonFinite, match="nan"):
            w.add("a", rnnt=bad, labels=[1])
        w.add("a", rnnt=lattice(3, 1, 0), labels=[1])
    assert list(open_store(tmp_path / "b")) == ["a"]
    with StoreWriter.open(tmp_path / "c", tokens=TABLE, streams={"rnnt": "dense/banded:2"}) as w:
        bad = lattice(6, 4, 0)
        bad[0, 4, 3] = torch.inf  # a corner that no range reaches
        with pytest.raises(NonFinite, match="inf"):
            w.add("a", rnnt=bad, labels=[1, 2, 3, 4])


MEANS = ["mean-u", "mean-u+occupancy"]


@pytest.mark.parametrize("encoding", ["dense", "dense:int8", "topk:3", "nucleus:0.01"])
@pytest.mark.parametrize("form", MEANS)
def test_means_over_label_positions(tmp_path, form, encoding):
    store, said = make(tmp_path / "s", f"{encoding}/{form}")
    for utt, (logits, labels) in said.items():
        target = store[utt]
        assert target.shapes["rnnt"] == (len(logits), V)
        assert target.labels.tolist() == labels
        assert target.grid("rnnt") is None
        wanted, at = means(logits, labels, form).numpy(), target["rnnt"].at(1.0)
        every = np.broadcast_to(np.arange(V), wanted.shape) if at.ids is None else at.ids
        kept = np.take_along_axis(wanted, every.astype(np.int64), 1)
        atol = 2e-2 if encoding in ("dense:int8", "nucleus:0.01") else 2e-3  # one byte a class
        np.testing.assert_allclose(np.where(at.logp > NOTHING, np.exp(at.logp) - kept, 0), 0, atol=atol)
        if encoding.startswith("dense"):
            np.testing.assert_allclose(target["rnnt"].logz, 0, atol=1e-6)
        if encoding.startswith("nucleus"):
            assert (at.ids == 0).any(1).all()  # the blank
    batch = collate_targets([store[i] for i in said], temperature=2.0)
    assert torch.equal(batch["rnnt"].mask, batch.mask)
    assert not verify_store(tmp_path / "s").findings
    assert inspect_store(store).streams["rnnt"].shape == "(T, V)"
    assert inspect_store(store).streams["rnnt"].error_rate is None
    shown = inspect_utterance(store, "u0").streams["rnnt"]
    assert [frame.t for frame in shown.frames] == list(range(6))
    assert shown.decoded == []


@pytest.mark.parametrize("form", MEANS)
def test_losses_of_means(tmp_path, form):
    """Check that a student equal to the teacher has no loss, and another one that of its frames."""
    store, said = make(tmp_path / "s", f"dense/{form}")
    batch = collate_targets([store[i] for i in said], temperature=2.0)
    logits, share = torch.full((4, 6, 5, V), torch.nan), torch.zeros(4, 6, 5)
    for b, (own, labels) in enumerate(said.values()):
        t, u = own.shape[:2]
        logits[b, :t, :u] = own
        dense = own.double().log_softmax(-1)
        label = torch.stack([dense[:, i, [*labels, 0][i]] for i in range(u)], 1)
        occupied = occupancy(dense[..., 0].numpy(), label.numpy())
        share[b, :t, :u] = torch.from_numpy(occupied) if "occupancy" in form else 1.0
    mine = mean_u(logits, batch.label_mask, share)
    assert float(rnnt_kd(mine, batch["rnnt"])) < 1e-5
    assert torch.equal(rnnt_kd(mine, batch["rnnt"]), ctc_kd(mine, batch["rnnt"]))
    if form == "mean-u":
        valid = batch.mask
        torch.testing.assert_close(mean_u(logits, batch.label_mask)[valid], mine[valid])
    other = torch.randn(4, 6, V, dtype=torch.float64)
    wanted = brute(batch["rnnt"], other, "forward")
    torch.testing.assert_close(rnnt_kd(other, batch["rnnt"], reduction="none"), wanted, atol=3e-6, rtol=3e-6)
    with pytest.raises(LengthError, match="mean_u"):
        rnnt_kd(logits, batch["rnnt"])
    with pytest.raises(LengthError, match="labels"):
        mean_u(logits[:, :, :3], batch.label_mask)
    slower = collate_targets([store["u0"]], frames=[3], method="nearest")["rnnt"]
    assert slower.logp.shape == (1, 3, V)


def test_means_that_cannot_be_written_are_refused(tmp_path):
    for how in ("collapsed/mean-u", "factored/mean-u", "dense/mean-u:3"):
        with pytest.raises(UsageError, match="mean-u"):
            StoreWriter.open(tmp_path / "a", tokens=TABLE, streams={"rnnt": how})
    for form in MEANS:
        with StoreWriter.open(tmp_path / form, tokens=TABLE, streams={"rnnt": f"dense/{form}"}) as w:
            bad = lattice(6, 4, 0)
            bad[0, 4, 3] = torch.inf
            with pytest.raises(NonFinite, match="inf"):
                w.add("a", rnnt=bad, labels=[1, 2, 3, 4])
            w.add("a", rnnt=lattice(2, 1, 0), labels=[1])
    store = open_store(tmp_path / "mean-u")
    row = store.record("a")
    row.arrays["rnnt.logp"], row.arrays["rnnt.logz"] = (row.arrays[f"rnnt.{n}"][:1] for n in ("logp", "logz"))
    with pytest.raises(FormatError, match="T = 2"):
        store.decode(row)


@pytest.mark.parametrize("form", MEANS)
def test_the_trained_teachers_means(tmp_path, form):
    """Check means against brute force, for any number of jobs, at half the bytes of a lattice at most."""
    dump_logits(demo.teacher(), demo.manifest(3), tmp_path / "one", options(f"dense/{form}"))
    for i in range(2):
        dump_logits(
            demo.teacher(), demo.manifest(3), tmp_path / "two", options(f"dense/{form}", part=JobPart(i, 2))
        )
    same_tree(tmp_path / "one", tmp_path / "two")
    dump_logits(demo.teacher(), demo.manifest(3), tmp_path / "all", options("dense"))
    store, every = open_store(tmp_path / "one"), open_store(tmp_path / "all")
    for utt, target in store.items():
        whole = torch.from_numpy(every[utt]["rnnt"].logits()).reshape(target.T, target.U + 1, -1)
        wanted = means(whole, target.labels.tolist(), form)
        got = torch.from_numpy(target["rnnt"].at(1.0).logp).double()
        assert float((wanted * (wanted.log() - got)).sum(1).abs().max()) < 1e-4
    (one, *_) = against_teacher(store, demo.teacher(), demo.manifest(3), 1)[1:]
    assert (one.stream, one.rows) == ("rnnt", store[one.id].T)
    assert one.kl < 1e-5
    assert one.lost < 1e-4


def options(how, **other):
    return DumpOptions(streams={"ctc": "topk:4", "rnnt": how}, shard_size="2", **other)


@pytest.mark.parametrize("how", ["topk:4/banded:4+occupancy", "collapsed/path", "topk:4/sample:3"])
def test_the_trained_teachers_own_alignment(tmp_path, how):
    """Check forms that need two passes: equal bytes for any number of jobs, and nearly all of the occupancy."""
    dump_logits(demo.teacher(), demo.manifest(4), tmp_path / "one", options(how))
    for i in range(2):
        dump_logits(demo.teacher(), demo.manifest(4), tmp_path / "two", options(how, part=JobPart(i, 2)))
    same_tree(tmp_path / "one", tmp_path / "two")
    store = open_store(tmp_path / "one")
    for target in store.values():
        nodes = target.nodes["rnnt"]
        if nodes.occupancy is not None:
            assert nodes.occupancy.sum() > 0.95 * (target.T + target.U)
            assert len(nodes) < 0.5 * target.T * (target.U + 1)
        elif nodes.form.name == "sample":
            drawn = sample(nodes.form, target.T, target.U, target.id)
            assert nodes.position.tolist() == drawn.position.tolist()
            assert len(nodes) == 3 * target.T
        else:
            assert len(nodes) == target.T + target.U
    assert "sample" in how or inspect_store(store).streams["rnnt"].error_rate < 0.2
    convert_store(tmp_path / "one", tmp_path / "tar", "webdataset")
    assert not verify_store(tmp_path / "tar").findings
    other = open_store(tmp_path / "tar")
    for utt in store:
        np.testing.assert_array_equal(other[utt].grid("rnnt"), store[utt].grid("rnnt"))
        np.testing.assert_array_equal(
            other.record(utt).arrays["rnnt.logp"], store.record(utt).arrays["rnnt.logp"]
        )


def test_more_labels_than_positions_can_count_are_refused():
    nodes = path(Form("path"), 1, 70_000, np.zeros(1, np.int64))
    with pytest.raises(LengthError, match="70000 labels"):
        stored(nodes)
