"""Factored batches over another token table: losses equal those of dense rows."""

from functools import cache

import pytest
import torch

from logitstore import TokenTable, VocabMap, collate_targets, open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.losses import blank_weights, ctc_kd, rnnt_kd
from logitstore.targets.batch import FactoredBatch, StreamBatch, _pad
from logitstore.targets.frames import Method
from logitstore.targets.resample import resample_stream
from tests.support import demo

LOSSES = {"ctc": ctc_kd, "rnnt": rnnt_kd}
TABLE = demo.teacher().tokens()
BLANK = TABLE.tokens[TABLE.blank]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    @cache
    def made(ctc="factored:int8", utterances=3):
        place = tmp_path_factory.mktemp("heads") / "s"
        streams = {"ctc": ctc, "rnnt": "factored"}
        dump_logits(demo.teacher(), demo.manifest(utterances), place, DumpOptions(streams=streams))
        return open_store(place)

    return made


def needed(store):
    """Tokens that the labels of its utterances are."""
    return {TABLE[int(i)] for target in store.values() for i in target.labels}


def the_map(store, kind):
    """To the same tokens in another order; or some are dropped, become a filler or others, or are new."""
    if kind == "resorted":
        table = TokenTable(tuple(reversed(TABLE.tokens)), len(TABLE) - 1 - TABLE.blank)
        return VocabMap.by_token(TABLE, table)
    labels = needed(store)
    kept = [t for i, t in enumerate(TABLE.tokens) if t in labels or t == BLANK or i % 3]
    if kind == "dropped":
        return VocabMap.by_token(TABLE, TokenTable(tuple(kept), kept.index(BLANK)))
    if kind == "unfed":
        more = ("<new>", *kept, "<newer>")
        return VocabMap.by_token(TABLE, TokenTable(more, more.index(BLANK)))
    if kind == "filler":
        more = (*kept, "<filler>")
        return VocabMap.by_token(TABLE, TokenTable(more, more.index(BLANK)), missing="filler")
    gone = [t for t in TABLE.tokens if t not in kept]  # merged: two tokens become one class of the student's
    pairs = tuple((t, 1 + n % 5) for n, t in enumerate(gone))
    return VocabMap.by_token(TABLE, TokenTable(tuple(kept), kept.index(BLANK), pairs))


def dense(store, ids, stream, temperature, frames=None, method="linear"):
    """The batch that rows mapped one by one on the CPU make."""
    targets = [store[i] for i in ids]
    counts = frames or [t.T for t in targets]
    how = Method.parse(method)
    return _pad(
        [resample_stream(t, stream, n, how, temperature) for t, n in zip(targets, counts, strict=True)]
    )


def random_logits(stream):
    shape = (*stream.mask.shape, stream.classes)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 2


@pytest.mark.parametrize("kind", ["resorted", "dropped", "unfed", "filler", "merged"])
@pytest.mark.parametrize("stream", LOSSES)
def test_the_batch_stays_factored_and_the_loss_is_that_of_dense_rows(make, stream, kind):
    there = the_map(make(), kind)
    store, ids = open_store(make().place, vocab=there), list(make())
    for temperature in (1.0, 2.0):
        one = dense(store, ids, stream, temperature)
        two = store.batch(ids, temperature=temperature)[stream]
        assert isinstance(two, FactoredBatch)
        assert (two.to is None) == (kind == "resorted")  # only the weight is sorted anew then
        assert two.classes == one.classes
        assert torch.equal(two.mask, one.mask)
        torch.testing.assert_close(two.logp.exp(), one.logp.exp(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(two.tail.exp(), one.tail.exp(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(two.dense()[two.mask], one.dense()[one.mask], atol=2e-4, rtol=1e-5)
        logits = random_logits(two)
        for direction in ("forward", "reverse"):
            losses = [
                LOSSES[stream](logits, x, direction=direction, reduction="none", scale=False)
                for x in (one, two)
            ]
            torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
        assert torch.equal(*[blank_weights(x, there.student.blank, 0.1)[x.mask] for x in (one, two)])


@pytest.mark.parametrize("kind", ["resorted", "dropped", "unfed", "merged"])
def test_the_best_classes_hold_the_mass_of_all_others(make, kind):
    store = open_store(make().place, vocab=the_map(make(), kind))
    two = store.batch(list(store), temperature=2.0)["ctc"]
    for k in (4, two.classes):
        top = two.top(k)
        assert top.classes == two.classes
        mass = top.logp.exp().sum(-1) + top.tail.exp()
        torch.testing.assert_close(mass[two.mask], torch.ones_like(mass[two.mask]), atol=1e-5, rtol=0)
        torch.testing.assert_close(top.logp[two.mask], two.logp.topk(k)[0][two.mask])


def test_mapping_at_opening_and_in_the_batch_agree(make):
    store, there = make(), the_map(make(), "dropped")
    ids = list(store)
    early = open_store(store.place, vocab=there).batch(ids)
    late = collate_targets([store[i] for i in ids], vocab=there)
    for stream in LOSSES:
        moved = late[stream].map(lambda t: t.clone())
        assert isinstance(moved, FactoredBatch)
        assert torch.equal(moved.dense(), early[stream].dense())


def test_autocast_does_not_change_targets(make):
    batch = make().batch(list(make()))
    for stream in LOSSES:
        exact = batch[stream].dense()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(batch[stream].dense(), exact)


def test_rows_of_two_heads_never_share_one(make):
    one, two = make("factored:1e-3", 3), make("factored:1e-3", 4)
    last = list(two)[-1]
    assert (
        one["demo-00"]["ctc"].weight.shape != two[last]["ctc"].weight.shape
        or not (one["demo-00"]["ctc"].weight == two[last]["ctc"].weight).all()
    )
    both = collate_targets([one["demo-00"], two[last]], temperature=2.0)
    assert isinstance(both["ctc"], StreamBatch)
    assert isinstance(both["rnnt"], FactoredBatch)  # its head is the same in both
    for b, target in enumerate((one["demo-00"], two[last])):
        own = torch.from_numpy(target.log_probs("ctc", 2.0))
        torch.testing.assert_close(both["ctc"].dense()[b, : target.T], own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["", "resorted", "filler"])
@pytest.mark.parametrize("method", ["linear", "linear-logit", "nearest"])
@pytest.mark.parametrize(("times", "over"), [(1, 2), (2, 3), (2, 1), (3, 4)])
def test_resampled_frames_stay_factored(make, kind, method, times, over):
    store = open_store(make().place, vocab=the_map(make(), kind) if kind else None)
    ids = list(store)
    frames = [-(-store[i].T * times // over) for i in ids]
    frames[0] = store[ids[0]].T  # taken as they are, beside others that are mixed
    for stream, loss in LOSSES.items():
        one = dense(store, ids, stream, 2.0, frames, method)
        two = store.batch(ids, frames=frames, method=method, temperature=2.0, stretch=True)[stream]
        mixed = method == "linear-logit" and stream == "rnnt"
        assert isinstance(two, StreamBatch if mixed else FactoredBatch)
        assert torch.equal(two.mask, one.mask)
        torch.testing.assert_close(two.logp.exp(), one.logp.exp(), atol=2e-6, rtol=1e-4)
        logits = random_logits(two)
        losses = [loss(logits, x.map(lambda t: t.clone()), reduction="none") for x in (one, two)]
        torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["linear+shift=2", "stack:2"])
def test_shift_and_stack_give_dense_rows(make, method):
    store, ids = make(), list(make())
    size = max(Method.parse(method).size, 2)
    frames = [-(-store[i].T // size) for i in ids]
    batch = store.batch(ids, frames=frames, method=method, streams=["ctc"])["ctc"]
    one = dense(store, ids, "ctc", 1.0, frames, method)
    assert isinstance(batch, StreamBatch)
    assert torch.equal(batch.mask, one.mask)
    assert torch.equal(batch.logp, one.logp)


@pytest.mark.parametrize("method", ["max-nonblank", "keep-tokens"])
def test_chosen_frames_stay_before_their_head(make, method):
    store, ids = make(), list(make())
    frames = [-(-store[i].T // 2) for i in ids]
    batch = store.batch(ids, frames=frames, method=method, streams=["ctc"])["ctc"]
    one = dense(store, ids, "ctc", 1.0, frames, method)
    assert isinstance(batch, FactoredBatch)
    assert torch.equal(batch.mask, one.mask)
    torch.testing.assert_close(batch.logp.exp(), one.logp.exp(), atol=2e-6, rtol=1e-4)
