"""Losses against the brute-force formula in float64, their gradients, padding, pruning and float types."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import TokenTable, VocabMap, collate_targets
from logitstore.encodings import parse_encoding
from logitstore.encodings.rows import NOTHING
from logitstore.errors import LengthError, UsageError, VocabError
from logitstore.losses import blank_weights, ctc_kd, hidden_kd, joint_kd, rnnt_kd, seq2seq_kd
from logitstore.targets.target import Target
from logitstore.testing.encoding import decoded
from tests.support.lattices import brute

V = 12


def logits_of(*shape, seed=0, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def target(t, u=None, *, encoding="dense", classes=V, seed=0):
    """An utterance of random logits: a ctc stream, or an rnnt stream with u labels."""
    shape = (t, classes) if u is None else (t, u + 1, classes)
    rows = decoded(parse_encoding(encoding), logits_of(*shape, seed=seed, scale=3.0).reshape(-1, classes))
    labels = np.zeros(0, np.int32) if u is None else np.arange(1, u + 1, dtype=np.int32)
    name = "ctc" if u is None else "rnnt"
    return Target(f"utt-{seed}", t, labels, {name: rows}, {name: shape})


def batch(kind="ctc", *, encoding="dense", classes=V, sizes=((5, 2), (3, 1), (4, 3)), **options):
    targets = [
        target(t, u if kind == "rnnt" else None, encoding=encoding, classes=classes, seed=i)
        for i, (t, u) in enumerate(sizes)
    ]
    return collate_targets(targets, **options)


def student(stream, seed=7, dtype=torch.float64, scale=2.0):
    return logits_of(*stream.mask.shape, stream.classes, seed=seed, scale=scale).to(dtype).requires_grad_()


KINDS = {"ctc": ctc_kd, "rnnt": rnnt_kd}
PRUNED = [("topk:4", "class"), ("topk:4", "spread"), ("topk:4", "ignore"), ("topk:12", "class")]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("encoding", "tail"), [("dense", "class"), *PRUNED])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_the_formula(kind, encoding, tail, temperature, direction):
    stream = batch(kind, encoding=encoding, temperature=temperature)[kind]
    logits = student(stream)
    wanted = brute(stream, logits, direction, tail)
    options = {"direction": direction, "tail": tail}
    got = KINDS[kind](logits, stream, reduction="none", **options)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=2e-6)
    assert bool((got[~stream.mask] == 0).all())
    mean = KINDS[kind](logits, stream, **options)
    torch.testing.assert_close(mean, wanted.sum() / stream.mask.sum(), atol=2e-6, rtol=2e-6)
    bare = KINDS[kind](logits, stream, reduction="sum", scale=False, **options)
    torch.testing.assert_close(bare * temperature**2, wanted.sum(), atol=2e-5, rtol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_topk_of_all_classes_is_dense(temperature):
    dense, full = (batch(encoding=e, temperature=temperature)["ctc"] for e in ("dense", "topk:12"))
    logits = student(dense)
    torch.testing.assert_close(ctc_kd(logits, full), ctc_kd(logits, dense), atol=1e-3, rtol=1e-3)
    assert float(dense.tail.max()) == NOTHING == float(full.tail.max())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("encoding", "tail"), [("dense", "class"), *PRUNED])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, encoding, tail, direction):
    made = batch(kind, encoding=encoding, classes=7 if encoding == "topk:4" else V, temperature=2.0)
    stream = made[kind]
    weights = torch.rand(stream.mask.shape, generator=torch.Generator().manual_seed(1))

    def loss(x):
        options = {"direction": direction, "tail": tail, "weights": weights}
        return KINDS[kind](x, stream, **options)

    assert torch.autograd.gradcheck(loss, (student(stream),))


shapes = st.tuples(st.integers(2, 30), st.integers(1, 30)).map(lambda x: (x[0], min(x)))


@settings(max_examples=80)
@given(
    shapes,
    st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    st.sampled_from(["class", "spread", "ignore"]),
    st.sampled_from(["forward", "reverse"]),
    st.floats(1.0, 8.0),
    st.integers(0, 2**16),
)
def test_a_truncated_loss_is_never_negative(shape, scale, tail, direction, temperature, seed):
    classes, k = shape
    teacher = logits_of(6, classes, seed=seed, scale=scale)
    teacher[0, seed % classes] += 60
    made = Target(
        "a",
        6,
        np.zeros(0, np.int32),
        {"ctc": decoded(parse_encoding(f"topk:{k}"), teacher)},
        {"ctc": (6, classes)},
    )
    stream = collate_targets([made], temperature=temperature)["ctc"]
    near = teacher + logits_of(6, classes, seed=seed + 1, scale=[0.0, 1e-3, 1.0, 20.0][seed % 4])
    near = near[None].requires_grad_()
    loss = ctc_kd(near, stream, tail=tail, direction=direction, reduction="none")
    assert bool(loss.isfinite().all())
    assert float(loss.detach().min()) >= 0
    loss.sum().backward()
    assert bool(near.grad.isfinite().all())
    if seed % 4 == 0 and scale <= 3 and tail == "class":
        assert float(loss[0, 1:].detach().max()) < 0.02 * temperature**2  # the teacher itself


@pytest.mark.parametrize("encoding", ["dense", "topk:4"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_enter_the_loss(kind, encoding):
    stream = batch(kind, encoding=encoding)[kind]
    clean, dirty = student(stream), student(stream)
    with torch.no_grad():
        dirty[~stream.mask] = torch.tensor([math.nan, math.inf, -math.inf] * 4, dtype=dirty.dtype)
    for tail in ("class", "spread", "ignore"):
        for direction in ("forward", "reverse"):
            losses = [KINDS[kind](x, stream, tail=tail, direction=direction) for x in (clean, dirty)]
            assert torch.equal(*losses)
            grads = [torch.autograd.grad(a, x)[0] for a, x in zip(losses, (clean, dirty), strict=True)]
            assert torch.equal(*grads)
            assert bool((grads[1][~stream.mask] == 0).all())


@pytest.mark.parametrize("encoding", ["dense", "topk:4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_students(dtype, encoding):
    stream = batch(encoding=encoding, temperature=2.0)["ctc"]
    logits = student(stream, dtype=dtype)
    loss = ctc_kd(logits, stream)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ctc_kd(logits.float(), stream))
    loss.backward()
    assert logits.grad.dtype == dtype
    assert bool(logits.grad.isfinite().all())


def test_autocast_does_not_change_the_loss():
    stream = batch(encoding="topk:4")["ctc"]
    layer = torch.nn.Linear(5, V)
    x = logits_of(*stream.mask.shape, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(x)
        loss = ctc_kd(logits, stream)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(loss, ctc_kd(logits.float(), stream))


def test_slices_of_a_lattice_are_the_whole():
    made = batch("rnnt", encoding="topk:4", temperature=2.0)
    stream = made["rnnt"]
    logits = student(stream)
    weights = torch.rand(stream.mask.shape)
    whole = rnnt_kd(logits, stream, weights=weights)
    sliced = rnnt_kd(iter([logits[:, :2], logits[:, 2:3], logits[:, 3:]]), stream, weights=weights)
    torch.testing.assert_close(whole, sliced)
    grads = [torch.autograd.grad(x, logits)[0] for x in (whole, sliced)]
    torch.testing.assert_close(*grads)
    with pytest.raises(LengthError, match="slices of 4 frames"):
        rnnt_kd([logits[:, :4]], stream)


def test_no_dense_teacher_is_made(monkeypatch):
    """Of what autograd keeps, only the student's logits and one float copy of them are V wide."""
    classes = 4096
    stream = batch(encoding="topk:4", classes=classes, sizes=((9, 0), (9, 0)))["ctc"]
    logits = student(stream, dtype=torch.float32)
    monkeypatch.setattr("logitstore.targets.batch.StreamBatch.dense", None)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ctc_kd(logits, stream).backward()
    wide = {t.data_ptr() for t in kept if t.shape[-1:] == (classes,) and t.is_floating_point()}
    assert len(wide - {logits.data_ptr()}) <= 1


def test_weights_and_blanks():
    stream = batch(encoding="topk:4")["ctc"]
    blank = int(stream.ids[0, 1, 0])
    logits = student(stream)
    rows = ctc_kd(logits, stream, reduction="none")
    weights = blank_weights(stream, blank, 0.25)
    best = stream.dense().argmax(-1)
    assert torch.equal(weights, torch.where((best == blank) & stream.mask, 0.25, 1.0))
    wanted = (rows * weights).sum() / weights[stream.mask].sum()
    torch.testing.assert_close(ctc_kd(logits, stream, weights=weights), wanted)
    assert float(ctc_kd(logits.detach(), stream, weights=torch.zeros_like(weights))) == 0
    dense = batch()["ctc"]
    assert torch.equal(blank_weights(dense, blank, 0.25), weights)
    with pytest.raises(LengthError, match="weights"):
        ctc_kd(logits, stream, weights=weights[:1])


class Ragged:
    """A batched form with sparse()."""

    def __init__(self, rows):
        self._rows = rows
        self.classes, self.temperature, self.mask = rows.classes, rows.temperature, rows.mask

    def sparse(self):
        return self._rows


class Factored(Ragged):
    """A batched form with dense()."""

    sparse = property()

    def dense(self):
        return self._rows.dense()


def test_other_batched_forms_are_taken():
    stream = batch(encoding="topk:4", temperature=2.0)["ctc"]
    logits = student(stream)
    assert torch.equal(ctc_kd(logits, Ragged(stream)), ctc_kd(logits, stream))
    torch.testing.assert_close(
        ctc_kd(logits, Factored(stream)), ctc_kd(logits, stream, tail="spread"), atol=1e-6, rtol=1e-5
    )
    assert torch.equal(blank_weights(Factored(stream), 3, 0.0), blank_weights(stream, 3, 0.0))


def tables():
    names = ("<blk>", *(f"t{i}" for i in range(1, V)))
    return TokenTable(names, 0), TokenTable(("t3", "<blk>", "t1", "t7", "new"), 1)


@pytest.mark.parametrize("encoding", ["dense", "topk:4", "topk:12"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_mapped_table(encoding, direction):
    """Classes that the student lacks weigh in the tail, or are normalised away where no class is left."""
    vocab = VocabMap.by_token(*tables())
    stream = batch(encoding=encoding, vocab=vocab, temperature=2.0)["ctc"]
    assert float(stream.tail.max()) > -5
    logits = student(stream)
    loss = ctc_kd(logits, stream, reduction="none", direction=direction)
    assert bool(loss.isfinite().all())
    assert float(loss.detach().min()) >= 0  # 0 where all that a row kept is the student's to miss
    assert float(loss.detach().mean()) > 0.1
    if stream.ids is None and direction == "forward":
        teacher = stream.dense().double()
        s = torch.log_softmax(logits / 2, -1)
        wanted = (teacher.exp() * (teacher - s)).sum(-1) * 4
        torch.testing.assert_close(loss[stream.mask], wanted[stream.mask], atol=1e-5, rtol=1e-5)
        perfect = (stream.dense() * 2).double()  # the teacher restricted to the student's classes
        assert float(ctc_kd(perfect, stream)) < 1e-6
    assert torch.autograd.gradcheck(lambda x: ctc_kd(x, stream, direction=direction), (logits,))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("tail", ["class", "spread", "ignore"])
def test_rows_of_unequal_numbers_of_entries(tail, direction):
    """Mixtures of frames keep the union of their classes; shorter rows are filled up."""
    stream = batch(encoding="topk:4", frames=[7, 4, 6], temperature=2.0, method="linear")["ctc"]
    assert len({int(n) for n in (stream.logp > NOTHING).sum(-1)[stream.mask]}) > 1
    logits = student(stream)
    got = ctc_kd(logits, stream, tail=tail, direction=direction, reduction="none")
    torch.testing.assert_close(got, brute(stream, logits, direction, tail), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("tail", ["class", "spread", "ignore"])
def test_a_tail_without_a_class_left(tail, direction):
    """Pruned rows may hold every class of the student beside mass of tokens that only the teacher has."""
    student_table = TokenTable(("<blk>", *(f"t{i}" for i in range(1, V - 4))), 0)
    vocab = VocabMap.by_token(tables()[0], student_table)
    stream = batch(encoding="topk:11", vocab=vocab)["ctc"]
    all_kept = ((stream.logp > NOTHING).sum(-1) == stream.classes) & (stream.tail > -20)
    assert bool(all_kept.any())
    logits = student(stream)
    got = ctc_kd(logits, stream, tail=tail, direction=direction, reduction="none")
    dense = replace(stream, logp=stream.dense(), ids=None, tail=torch.full_like(stream.tail, NOTHING))
    torch.testing.assert_close(got[all_kept], brute(dense, logits, direction)[all_kept], atol=2e-6, rtol=2e-6)


def test_other_shapes_and_temperatures_are_refused():
    made = batch(encoding="topk:4", temperature=2.0)
    stream = made["ctc"]
    logits = student(stream)
    ctc_kd(logits, stream, temperature=2.0)
    with pytest.raises(UsageError, match=r"temperature 1 .* at 2"):
        ctc_kd(logits, stream, temperature=1.0)
    with pytest.raises(VocabError, match="11 classes"):
        ctc_kd(logits[..., :11], stream)
    with pytest.raises(LengthError, match="frames=lengths"):
        ctc_kd(logits[:, :4], stream)
    for option in ({"direction": "both"}, {"tail": "drop"}, {"reduction": "max"}):
        with pytest.raises(UsageError):
            ctc_kd(logits, stream, **option)


def test_seq2seq_is_label_by_label():
    stream = batch(encoding="topk:4")["ctc"]
    logits = student(stream)
    assert torch.equal(seq2seq_kd(logits, stream, tail="spread"), ctc_kd(logits, stream, tail="spread"))


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_hidden(kind):
    a, b = student(batch()["ctc"]), logits_of(3, 5, V, seed=3)
    mask = batch()["ctc"].mask
    rows = []
    for x, y in zip(a[mask].tolist(), b[mask].double().tolist(), strict=True):
        if kind == "mse":
            rows.append(sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / V)
        else:
            rows.append(1 - sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y)))
    b[~mask] = math.nan
    loss = hidden_kd(a, b, mask, kind=kind)
    assert loss.item() == pytest.approx(sum(rows) / len(rows), rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: hidden_kd(x, b, mask, kind=kind), (a,))
    assert hidden_kd(a.half(), b.half(), mask, kind=kind).dtype == torch.float32
    with pytest.raises(LengthError):
        hidden_kd(a[..., 1:], b, mask)
    with pytest.raises(UsageError):
        hidden_kd(a, b, mask, kind="l1")


def both():
    made = batch("rnnt", encoding="topk:4", temperature=2.0)
    ctc = batch(temperature=2.0)
    return replace(made, streams={**made.streams, **ctc.streams})


def test_joint():
    made = both()
    logits = {"ctc": student(made["ctc"]), "rnnt": student(made["rnnt"], seed=8)}
    called = []

    def own():
        called.append(1)
        return logits["rnnt"].square().mean()

    hard = {"ctc": logits["ctc"].abs().mean(), "rnnt": own}
    lambdas = {"ctc_kd": 0.5, "ctc": 0.25}
    loss = joint_kd(made, logits=logits, hard=hard, lambdas=lambdas, tail="ignore")
    wanted = (
        0.5 * ctc_kd(logits["ctc"], made["ctc"])
        + rnnt_kd(logits["rnnt"], made["rnnt"], tail="ignore")
        + 0.25 * hard["ctc"]
        + own()
    )
    torch.testing.assert_close(loss.total, wanted)
    assert set(loss.parts) == {"ctc_kd", "rnnt_kd", "ctc", "rnnt"}
    loss.backward()
    assert all(bool((x.grad != 0).any()) for x in logits.values())
    called.clear()
    joint_kd(made, logits=logits, hard=hard, lambdas={"rnnt": 0})
    assert not called
    weights = {"rnnt": torch.zeros(made["rnnt"].mask.shape)}
    only = joint_kd(made, logits={"rnnt": logits["rnnt"]}, weights=weights)
    assert only.total.item() == 0


def test_joint_refuses_unknown_parts():
    made = both()
    logits = {"ctc": student(made["ctc"])}
    for wrong in (
        {"lambdas": {"rnnt_kd": 1.0}},
        {"weights": {"rnnt": None}},
        {"hard": {"ctc_kd": torch.zeros(())}},
        {"lambdas": {"ctc_kd": 0}},
    ):
        with pytest.raises(UsageError):
            joint_kd(made, logits=logits, **wrong)
    with pytest.raises(UsageError, match="attention"):
        joint_kd(made, logits={"attention": logits["ctc"]})
    with pytest.raises(UsageError, match="no parts"):
        joint_kd(made, logits={})
