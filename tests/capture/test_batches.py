"""Whose logits: loaders that fetch ahead, indices instead of ids, and logits that come in pieces."""

import itertools
import queue
import threading

import pytest
import torch
from torch.utils.data import DataLoader

from logitstore.capture.batch_ids import find_by_index
from logitstore.capture.inject.batches import YieldedBatches
from logitstore.errors import LengthError, LogitStoreError, UsageError
from recipes.demo.decode import collate
from tests.support.captured import Program, check, decode, loader


def scrambled(x):
    """Features in which nothing of the batch is found again but its padding."""
    factors = torch.randn(x.shape[1], 1, generator=torch.Generator().manual_seed(1))
    return x * factors


def one_ahead(batches):
    """As accelerate's DataLoaderShard: the next batch is fetched before this one is yielded."""
    batches = iter(batches)
    now = next(batches)
    for following in batches:
        yield now
        now = following
    yield now


def by_a_thread(batches):
    """All that there is, fetched by a thread."""
    fetched = queue.Queue(8)

    def fetch():
        for batch in batches:
            fetched.put(batch)
        fetched.put(None)

    thread = threading.Thread(target=fetch)
    thread.start()
    thread.join()  # far ahead
    while (batch := fetched.get()) is not None:
        yield batch


def moved(batches):
    """One ahead, its tensors copied as to another device and in half precision and back."""
    for batch in one_ahead(batches):
        yield {"feats": batch["feats"].clone(), "feats_lengths": batch["feats_lengths"].clone()}


@pytest.mark.parametrize("ahead", [one_ahead, by_a_thread, moved])
@pytest.mark.parametrize("size", [1, 2])
def test_a_loader_that_fetches_ahead(session, model, utterances, ahead, size):
    run = session()
    program = Program(model, "plain").eval()
    decode(program, ahead(loader(utterances, size=size)))
    assert run.inside._locator.batches.ahead
    check(run.store(), model, utterances)


def test_batches_left_out(session, model, utterances):
    run = session()
    program = Program(model, "plain").eval()
    decode(program, itertools.islice(loader(utterances, size=2), 1, None))
    check(run.store(), model, utterances[2:])


def test_two_loops_of_which_the_second_fetches_ahead(session, model, utterances):
    run = session()
    program = Program(model, "plain").eval()
    decode(program, loader(utterances[:2], size=1))
    decode(program, one_ahead(loader(utterances[2:], size=1)))
    check(run.store(), model, utterances)


def test_a_batch_that_no_function_holds_alone_is_refused(session, model, utterances):
    session()
    changed = [
        {"feats": scrambled(b["feats"]), "feats_lengths": b["feats_lengths"] + 0} for b in loader(utterances)
    ]
    with pytest.raises(UsageError, match="yielded 2 batches before the module ran"):
        decode(Program(model, "plain").eval(), changed)


def test_a_function_that_holds_two_batches_is_refused(session, model, utterances):
    session()
    first, second = loader(utterances)
    x, lens = scrambled(first["feats"]), first["feats_lengths"] + 0
    assert second is not first
    with pytest.raises(UsageError, match="exactly one of them"), torch.no_grad():
        Program(model, "plain").eval()(x, lens)


def test_texts_are_left_out_where_the_batch_is_not_known(session, model, utterances):
    batches = loader(utterances, size=3, text=["a", "b", "c"])
    run = session(ids="mine")
    changed = [(list(b["utt_ids"]), scrambled(b["feats"]), b["feats_lengths"] + 0) for b in batches]
    program = Program(model, "plain").eval()
    with torch.no_grad():
        for mine, feats, lens in changed:
            assert len(mine) == len(program(feats, lens)[1])
    store = run.store()
    assert len(store) == 6
    assert all("text" not in store.record(i).meta for i in store)


def test_the_number_and_size_of_waiting_batches_is_bounded():
    batches, source = YieldedBatches(), object.__new__(type("Iterator", (), {}))
    for _ in range(200):
        batches.note({"x": torch.zeros(4)}, source)
    assert len(batches._waiting) == 64
    big = {"x": torch.zeros(1).expand(1 << 28)}
    for _ in range(5):
        batches.note(big, source)
    assert len(batches._waiting) == 2


class Listed(torch.utils.data.Dataset):
    """A map-style dataset whose items have no ids; it keeps them beside."""

    def __init__(self, utterances):
        self.utterances = utterances
        self.paths = [f"/data/{u.id}.wav" for u in utterances]

    def __len__(self):
        return len(self.utterances)

    def __getitem__(self, i):
        return self.utterances[i]


def plain(part):
    features, lengths = collate(part)
    return features, lengths


@torch.no_grad()
def run_pairs(program, batches):
    for features, lengths in batches:
        program(features, lengths)


@pytest.mark.parametrize("workers", [0, 2])
def test_ids_by_what_the_sampler_asked_for(session, model, utterances, workers):
    dataset = Listed(utterances)
    (found,) = find_by_index([3, 1], dataset, 2, guess=True)[:1]
    assert found.values == (utterances[3].id, utterances[1].id)
    assert not find_by_index([3, 1], dataset, 2)  # whether item i is the i-th path, nobody said
    run = session(ids=found.expression)
    batches = DataLoader(
        dataset, batch_size=2, sampler=[3, 1, 5, 0, 2, 4], collate_fn=plain, num_workers=workers
    )
    run_pairs(Program(model, "plain").eval(), batches)
    check(run.store(), model, utterances)


def test_ids_by_samplers_that_yield_cuts(session, model, utterances):
    class Whole(torch.utils.data.Dataset):
        def __getitem__(self, cuts):
            return plain(cuts)

    run = session()
    batches = [utterances[i : i + 2] for i in range(0, 6, 2)]
    run_pairs(Program(model, "plain").eval(), DataLoader(Whole(), sampler=batches, batch_size=None))
    assert run.inside.report.fields["notes"]["ids"] == "[x.id for x in index]"
    check(run.store(), model, utterances)


@torch.no_grad()
def in_chunks(program, batches, step, overlap=0):
    """The head on some frames at a time, as streaming programs do."""
    for batch in batches:
        hidden, lens = program.model.encoder(batch["feats"], batch["feats_lengths"])
        assert len(lens) == len(hidden)
        for begin in range(0, hidden.shape[1], step):
            program.headed["lo"](hidden[:, max(0, begin - overlap) : begin + step])


@torch.no_grad()
def in_parts(program, batches, size):
    """The head on some utterances at a time."""
    for batch in batches:
        hidden, lens = program.model.encoder(batch["feats"], batch["feats_lengths"])
        for begin in range(0, len(hidden), size):
            mine = lens[begin : begin + size]
            program.headed["lo"](hidden[begin : begin + size, : mine.max()])


@pytest.mark.parametrize(("size", "lengths"), [(1, ""), (3, ""), (3, "lens")])
@pytest.mark.parametrize("step", [16, 7])
def test_chunks_of_frames(session, model, utterances, size, lengths, step):
    run = session(accumulate="t", lengths=lengths)
    in_chunks(Program(model, "plain").eval(), loader(utterances, size=size), step)
    check(run.store(), model, utterances)


def test_chunks_keep_their_own_texts(session, model, utterances):
    run = session(accumulate="t")
    batches = []
    for batch in loader(utterances, size=1):
        batches.append({**batch, "text": [f"text of {batch['utt_ids'][0]}"]})
    run.inside._locator.batches._waiting.clear()
    program = Program(model, "plain").eval()
    for batch in batches:
        run.inside._loader_yielded(batch, run, None, None)
        in_chunks(program, [batch], 16)
    store = run.store()
    assert {i: store.record(i).meta["text"] for i in store} == {u.id: f"text of {u.id}" for u in utterances}


@pytest.mark.parametrize("size", [1, 2])
def test_parts_of_a_batch(session, model, utterances, size):
    run = session(accumulate="b", lengths="mine")
    in_parts(Program(model, "plain").eval(), loader(utterances), size)
    check(run.store(), model, utterances)


def test_parts_of_a_batch_with_the_lengths_of_the_whole_batch(session, model, utterances):
    run = session(accumulate="b", lengths="lens")
    in_parts(Program(model, "plain").eval(), loader(utterances), 2)
    check(run.store(), model, utterances)


PIECES_REFUSED = {
    "chunks that overlap": ({"accumulate": "t", "lengths": "lens"}, 3, lambda p, b: in_chunks(p, b, 16, 8)),
    "other utterances": (
        {"accumulate": "t", "lengths": "mine", "ids": "batch['utt_ids']"},
        3,
        lambda p, b: in_parts(p, b, 2),
    ),
    "too many": (
        {"accumulate": "b", "lengths": "mine"},
        3,
        lambda p, b: [in_parts(p, [x, x], 2) for x in b],
    ),
}
SAID = {
    "chunks that overlap": "Pieces that overlap",
    "other utterances": "3 ids for a piece of",
    "too many": "utterances in the pieces of a batch of 3",
}


@pytest.mark.parametrize("name", list(PIECES_REFUSED))
def test_pieces_that_overlap_or_are_too_many_are_refused(session, model, utterances, name):
    options, size, way = PIECES_REFUSED[name]
    run = session(**options)
    with pytest.raises(LogitStoreError, match=SAID[name]):
        way(Program(model, "plain").eval(), loader(utterances, size=size))
    run.close()
    assert not (run.place / "sealed").exists()


def test_a_batch_that_lacks_a_part_is_refused(session, model, utterances):
    session(accumulate="b", lengths="mine")
    program = Program(model, "plain").eval()
    with pytest.raises(LogitStoreError, match="2 of 3 utterances of a batch arrived"):
        for batch in loader(utterances):
            with torch.no_grad():
                hidden, lens = model.encoder(batch["feats"], batch["feats_lengths"])
                mine = lens[:2]
                program.headed["lo"](hidden[:2, : mine.max()])


def test_the_last_batch_is_checked_too(session, model, utterances):
    run = session(accumulate="t", lengths="lens")
    in_chunks(Program(model, "plain").eval(), loader(utterances[:3]), 16, overlap=8)
    run.close()
    assert "Pieces that overlap" in run.inside.report.fields["error"]
    assert isinstance(LengthError("x"), LogitStoreError)
