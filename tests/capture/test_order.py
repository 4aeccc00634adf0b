"""Rows belong to their ids: batches that a loop reorders, batches fetched ahead, and what cannot be proven."""

import pytest
import torch
from torch.utils.data import DataLoader

from logitstore.capture.inject.batches import YieldedBatches
from logitstore.capture.inject.inputs import ModelInputs, row_order
from logitstore.errors import LengthError, UsageError
from recipes.demo.decode import collate
from tests.support.captured import Program, check, decode, loader


def unchanged(x):
    return x


def louder(x):
    """Features that the program computes itself: no value is one of the batch's, but they rise and fall with it."""
    return x * 1.5


def scrambled(x):
    """Features in which nothing of the batch is found again but its padding."""
    factors = torch.randn(x.shape[1], 1, generator=torch.Generator().manual_seed(1))
    return x * factors


@torch.no_grad()
def shortest_first(program, batches, change=unchanged, own_order=True):
    """A loop that sorts each batch by length before the model runs."""
    for batch in batches:
        order = batch["feats_lengths"].argsort()
        x, n = change(batch["feats"][order]), batch["feats_lengths"][order]
        utt_ids = [batch["utt_ids"][i] for i in order] if own_order else list(batch["utt_ids"])
        assert len(utt_ids) == len(x)  # in sight while the model runs
        program(x, n)


def test_ids_of_the_batch_follow_its_rows(session, model, utterances):
    run = session()
    shortest_first(Program(model, "plain").eval(), loader(utterances))
    assert "the ids follow it" in run.inside.report.fields["notes"]["order"]
    check(run.store(), model, utterances)


def with_texts(part):
    features, lengths = collate(part)
    texts = [f"text of {u.id}" for u in part]
    return {"utt_ids": [u.id for u in part], "feats": features, "feats_lengths": lengths, "text": texts}


def test_texts_of_the_batch_follow_its_rows(session, model, utterances):
    run = session()
    batches = DataLoader(utterances, batch_size=3, collate_fn=with_texts)
    shortest_first(Program(model, "plain").eval(), batches)
    store = run.store()
    assert {i: store.record(i).meta["text"] for i in store} == {u.id: f"text of {u.id}" for u in utterances}


def test_ids_of_a_variable_in_the_order_of_the_rows(session, model, utterances):
    run = session(ids="utt_ids")
    shortest_first(Program(model, "plain").eval(), loader(utterances))
    check(run.store(), model, utterances)


def test_ids_of_a_variable_in_the_order_of_the_loader_are_refused(session, model, utterances):
    session(ids="utt_ids")
    with pytest.raises(UsageError, match="the ids are in the loader's order"):
        shortest_first(Program(model, "plain").eval(), loader(utterances), own_order=False)


def test_lengths_in_the_order_of_the_loader_are_refused(session, model, utterances):
    session(lengths='batch["feats_lengths"] // 4')
    with pytest.raises(UsageError, match="in the loader's order, but the model's input is in another"):
        shortest_first(Program(model, "plain").eval(), loader(utterances))


def test_rows_that_cannot_be_recognised_are_refused_by_their_lengths(session, model, utterances):
    run = session()
    with pytest.raises(LengthError, match="are those of the loader's batch in another order"):
        shortest_first(Program(model, "plain").eval(), loader(utterances), change=scrambled)
    run.close()
    assert not (run.place / "sealed").exists()


@torch.no_grad()
def one_behind(program, batches, change):
    """A loop that fetches the next batch before the model runs on the features of this one."""
    x = n = None
    for batch in batches:
        if x is not None:
            program(x, n)
        x, n = change(batch["feats"]), batch["feats_lengths"].clone()
    program(x, n)


def test_a_batch_fetched_before_the_model_runs_is_known_by_its_rows(session, model, utterances):
    run = session()
    one_behind(Program(model, "plain").eval(), loader(utterances, size=2), torch.clone)
    check(run.store(), model, utterances)


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_fetched_before_the_model_runs_is_refused_without_proof(session, model, utterances, size):
    run = session()
    with pytest.raises(UsageError, match="which of its batches the model ran on is not certain"):
        one_behind(Program(model, "plain").eval(), loader(utterances, size=size), scrambled)
    run.close()
    assert not (run.place / "sealed").exists()


def test_a_batch_in_its_own_order_needs_no_note_and_one_hook(session, model, utterances):
    run, program = session(), Program(model, "plain").eval()
    decode(program, loader(utterances))
    assert "order" not in run.inside.report.fields["notes"]
    assert len(run.inside._inputs._handles) == 1
    check(run.store(), model, utterances)


def batch_of(value):
    batches = YieldedBatches()
    batches.note(value, type("Iterator", (), {})())
    return batches._waiting[0]


def test_orders_of_rows():
    torch.manual_seed(0)
    waves = torch.randn(4, 400)
    batch = batch_of({"wav": waves, "n": torch.arange(4)})
    assert row_order(waves, batch) == (0, 1, 2, 3)
    assert row_order(waves[[2, 0, 3, 1]], batch) == (2, 0, 3, 1)
    assert row_order(waves[[2, 0, 3, 1]].half(), batch) == (2, 0, 3, 1)
    assert row_order(waves[:, None], batch) == (0, 1, 2, 3)  # with an axis of channels
    assert row_order(waves[[1, 0, 2, 3], :300], batch) == (1, 0, 2, 3)
    assert row_order(waves * 2, batch) is None
    assert row_order(waves[[0, 0, 2, 3]], batch) is None
    assert row_order(waves[[3, 1]], batch) == (3, 1)  # a part of the batch
    listed = batch_of({"wavs": [w[: 100 + i] for i, w in enumerate(waves)]})
    padded = torch.nn.utils.rnn.pad_sequence(
        [waves[1, :101], waves[0, :100], waves[3, :103], waves[2, :102]], batch_first=True
    )
    assert row_order(padded, listed) == (1, 0, 3, 2)
    features = torch.randn(3, 50, 80)
    turned = features.transpose(1, 2)[[2, 1, 0]]
    assert row_order(turned, batch_of([features])) == (2, 1, 0)
    assert row_order(torch.zeros(2, 100), batch_of([torch.zeros(2, 100)])) is None  # silence proves nothing


def test_modules_are_hooked_no_longer_where_no_row_is_recognised():
    inputs, module = ModelInputs(), torch.nn.Linear(4, 4)
    inputs.attach(module)
    module(torch.randn(3, 4))
    assert inputs.order_of(batch_of({"x": torch.randn(3, 90)})) is None
    for _ in range(4):
        inputs.not_recognised()
    assert not inputs._handles
    assert not module._forward_pre_hooks
