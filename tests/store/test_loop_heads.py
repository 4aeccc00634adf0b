"""Heads of ``factored`` streams in a loop: the store equals that of a dump, and a wrong head is refused."""

import numpy as np
import pytest
import torch

from logitstore import StoreWriter, Tap, open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import (
    IdentityError,
    LengthError,
    NonFinite,
    TapError,
    TeacherError,
    UsageError,
    VocabError,
)
from logitstore.runner.loader import load
from logitstore.store.verify import verify_store
from tests.support import demo

HEAD = "ctc_output.1"
UTTERANCES = 5
TABLE = demo.teacher().tokens()


def head():
    return demo.teacher().model.get_submodule(HEAD)


@pytest.fixture(scope="module")
def said():
    """Input and logits of the teacher's head, by utterance."""
    teacher, found = demo.teacher(), {}
    for utt in demo.manifest(UTTERANCES):
        features = load(utt, teacher, TABLE, False).features[None]
        with (
            torch.inference_mode(),
            Tap(teacher.model, {"ctc": HEAD}) as out,
            Tap(teacher.model, {"ctc": HEAD}, side="input") as below,
        ):
            output = teacher.forward(features, torch.tensor([features.shape[1]]))
            n = int(teacher.lengths(output)[0])
            found[utt.id] = below.take("ctc")[0, :n], out.take("ctc")[0, :n]
    return found


def written(place, said, how, heads, **options):
    with StoreWriter.open(place, tokens=TABLE, streams={"ctc": how}, heads=heads, **options) as w:
        for utt_id, (h, logits) in said.items():
            w.add(utt_id, ctc=logits, inputs={"ctc": h})
    return open_store(place)


@pytest.mark.parametrize("how", ["factored", "factored:int8"])
def test_the_store_is_that_of_a_dump(tmp_path, said, how):
    options = DumpOptions(streams={"ctc": how}, batch_seconds=1.0)  # an utterance a batch: no padding
    dump_logits(demo.teacher(), demo.manifest(UTTERANCES), tmp_path / "dumped", options)
    one = open_store(tmp_path / "dumped")
    two = written(tmp_path / "own", said, how, {"ctc": head()})
    assert one.spec.streams == two.spec.streams  # the constants' checksums too
    for utt_id in said:
        rows = [s[utt_id]["ctc"] for s in (one, two)]
        assert np.array_equal(*[np.asarray(r.h) for r in rows])
        assert one[utt_id].meta["kl"] == two[utt_id].meta["kl"]
    assert not verify_store(tmp_path / "own").findings


def test_transform_coding_chooses_its_axes_by_sample_inputs(tmp_path, said):
    rows = torch.cat([h for h, _ in said.values()])
    store = written(tmp_path / "s", said, "factored:1e-3", {"ctc": (head(), rows)})
    nats, frames = 0.0, 0
    for utt_id, (_, logits) in said.items():
        own = logits.double().log_softmax(-1).numpy()
        lost = (np.exp(own) * (own - store[utt_id].log_probs("ctc"))).sum(1)
        assert store[utt_id].meta["kl"]["ctc"][0] == pytest.approx(lost.mean(), rel=0.02, abs=1e-5)
        nats, frames = nats + lost.sum(), frames + len(lost)
    assert 1e-5 < nats / frames < 1e-3
    for what, error in (((head(),), UsageError), ((head(), rows[:0]), LengthError)):
        with pytest.raises(error, match="sample inputs"):
            written(tmp_path / "without", said, "factored:1e-3", {"ctc": what})


@pytest.mark.parametrize("how", ["factored:int8", "factored:1e-3"])
def test_a_store_goes_on_with_its_own_head_alone(tmp_path, said, how):
    weight, bias = head().weight, head().bias
    rows = torch.cat([h for h, _ in said.values()])
    one, *others = said
    written(tmp_path / "s", {one: said[one]}, how, {"ctc": (head(), rows)})
    other = weight.detach() @ torch.linalg.qr(torch.randn(weight.shape[1], weight.shape[1]))[0]
    with pytest.raises(IdentityError, match="not the one that this store keeps"):
        written(tmp_path / "s", {}, how, {"ctc": (other, bias, rows)})
    with pytest.raises(IdentityError, match="width"):
        written(tmp_path / "s", {}, how, {"ctc": (weight[:, :-1], bias, rows[:, :-1])})
    store = written(tmp_path / "s", {i: said[i] for i in others}, how, {"ctc": (weight, bias)})
    assert list(store) == list(said)  # those refused left no lock behind


def test_logits_of_another_head_are_refused_and_nothing_is_lost(tmp_path, said):
    first, second = list(said)[:2]
    h, logits = said[first]
    bad = [
        ({"ctc": logits * 2, "inputs": {"ctc": h}}, TeacherError),
        ({"ctc": logits, "inputs": {"ctc": h.roll(1, 0)}}, TeacherError),
        ({"ctc": logits}, UsageError),
        ({"ctc": logits, "inputs": {"rnnt": h}}, UsageError),
        ({"ctc": logits, "inputs": {"ctc": h[:-1]}}, LengthError),
        ({"ctc": logits[:-1], "inputs": {"ctc": h}}, LengthError),
        ({"ctc": logits, "inputs": {"ctc": h[None]}}, LengthError),
        ({"ctc": logits, "inputs": {"ctc": h[:, 1:]}}, LengthError),
        ({"ctc": logits[:, 1:], "inputs": {"ctc": h}}, VocabError),
        ({"ctc": logits, "inputs": {"ctc": h * float("nan")}}, NonFinite),
    ]
    with StoreWriter.open(
        tmp_path / "s", tokens=TABLE, streams={"ctc": "factored"}, heads={"ctc": head()}
    ) as w:
        for given, error in bad:
            with pytest.raises(error):
                w.add(first, **given)
        w.add(first, ctc=logits.split(7), inputs={"ctc": h.numpy()})  # slices of the logits
        for given, error in bad[2:]:  # the proof is of the first row; what does not fit is refused always
            with pytest.raises(error):
                w.add(second, **given)
        w.add(second, ctc=said[second][1], inputs={"ctc": said[second][0]})
    store = open_store(tmp_path / "s")
    assert list(store) == [first, second]
    np.testing.assert_array_equal(store[first]["ctc"].h, h.half().numpy())


@pytest.mark.parametrize(
    ("how", "heads", "error", "match"),
    [
        ("factored", None, UsageError, "no head was given"),
        ("topk:4", {"ctc": (torch.zeros(2, 3), None)}, UsageError, "does not store the head"),
        ("factored", {"ctc": (torch.zeros(len(TABLE) + 1, 3), None)}, VocabError, "token table"),
        ("factored", {"ctc": (torch.zeros(len(TABLE), 3), torch.zeros(2))}, VocabError, "bias"),
        ("factored", {"ctc": torch.nn.GRU(3, 3)}, TapError, "GRU is not one weight"),
        ("factored", {"ctc": torch.zeros(3, 3)}, UsageError, r"\(weight, bias\)"),
        ("factored", {"ctc": (torch.zeros(3, 3), None, torch.zeros(3, 3), 1)}, UsageError, "4 parts"),
    ],
)
def test_heads_that_do_not_fit_are_refused_before_the_store_is_made(tmp_path, how, heads, error, match):
    with pytest.raises(error, match=match):
        StoreWriter.open(tmp_path / "s", tokens=TABLE, streams={"ctc": how}, heads=heads)
    assert not (tmp_path / "s" / "logitstore.json").exists()


@pytest.fixture(scope="module")
def lattices():
    """Labels, both sides of the joiner, and its logits, by utterance."""
    teacher, found = demo.teacher(), {}
    for utt in demo.manifest(UTTERANCES):
        item = load(utt, teacher, TABLE, True)
        with torch.inference_mode():
            output = teacher.forward(item.features[None], torch.tensor([len(item.features)]))
            enc, dec = teacher.transducer(output, 0, item.labels)
            logits = teacher.join(enc, dec)
        found[utt.id] = item.labels, (enc, dec), logits
    return found


def lattice_store(place, lattices, how, given):
    with StoreWriter.open(place, tokens=TABLE, streams={"rnnt": how}, heads={"rnnt": given}) as w:
        for number, (utt_id, (labels, sides, logits)) in enumerate(lattices.items()):
            w.add(utt_id, labels=labels, inputs={"rnnt": sides}, **({} if number else {"rnnt": logits}))
    return open_store(place)


@pytest.mark.parametrize(("how", "most"), [("factored", 1e-8), ("factored:0.01", 1e-2)])
def test_a_lattice_is_written_by_its_two_sides(tmp_path, lattices, how, most):
    """Logits are given for the first utterance only; the others need none."""
    last = demo.teacher().model.joiner.output_linear
    sides = [sides for _, sides, _ in lattices.values()]
    store = lattice_store(tmp_path / "s", lattices, how, (last, "tanh", *([sides] if most > 1e-8 else [])))
    for temperature in (1.0, 2.0, 4.0):
        lost = []
        for utt_id, (labels, _, logits) in lattices.items():
            assert store[utt_id].labels.tolist() == labels
            own = (logits.flatten(0, 1).double() / temperature).log_softmax(-1).numpy()
            served = store[utt_id]["rnnt"].at(temperature).logp
            lost.append((np.exp(own) * (own - served)).sum(1))
        assert np.concatenate(lost).mean() < most
    assert not verify_store(tmp_path / "s").findings


def test_sides_that_are_not_those_of_the_logits_are_refused(tmp_path, lattices):
    last = demo.teacher().model.joiner.output_linear
    (labels, (enc, dec), logits), *_ = lattices.values()

    def refused(error, given, *, rnnt=logits, inputs=(enc, dec)):
        with (
            pytest.raises(error) as e,
            StoreWriter.open(
                tmp_path / "s", tokens=TABLE, streams={"rnnt": "factored"}, heads={"rnnt": given}
            ) as w,
        ):
            w.add("a", labels=labels, inputs={"rnnt": inputs}, rnnt=rnnt)
        return str(e.value)

    refused(TeacherError, (last, "relu"))
    refused(TeacherError, (last, "tanh"), inputs=(enc, 2 * dec))
    refused(LengthError, (last, "tanh"), inputs=(enc, dec[1:]))
    refused(LengthError, (last, "tanh"), inputs=(enc[:, 1:], dec))
    assert "no rnnt logits beside the first sides" in refused(LengthError, (last, "tanh"), rnnt=None)
    assert '"tanh" or "relu"' in refused(UsageError, last)
    with pytest.raises(UsageError, match="its last layer was not given"):
        StoreWriter.open(tmp_path / "t", tokens=TABLE, streams={"rnnt": "factored"})
    with pytest.raises(UsageError, match="needs sample inputs"):
        StoreWriter.open(
            tmp_path / "t", tokens=TABLE, streams={"rnnt": "factored:1e-2"}, heads={"rnnt": (last, "tanh")}
        )
