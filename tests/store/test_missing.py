"""Batches in which some utterances have no target: refused, masked or left out, as the caller says."""

import pytest
import torch

from logitstore import Clip, collate_targets, open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import MissingUtterance, UsageError
from logitstore.losses import ctc_kd, rnnt_kd
from tests.support import demo

STREAMS = [
    {"ctc": "dense", "rnnt": "dense"},
    {"ctc": "topk:4", "rnnt": "topk:8"},
    {"ctc": "factored", "rnnt": "factored"},
    {"ctc": "nucleus:1e-3", "rnnt": "topk:8/path"},
    {"ctc": "factored:int8", "rnnt": "dense/banded:4"},
]


@pytest.fixture(scope="module", params=STREAMS, ids=lambda streams: "+".join(streams.values()))
def store(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("missing") / "s"
    dump_logits(demo.teacher(), demo.manifest(4), place, DumpOptions(streams=request.param, batch_seconds=20))
    return open_store(place)


def mixed(store):
    first, second, *_ = store
    return [first, "absent", second]


def lengths(store, ids):
    """Half the teacher's frames, and more than any of them for utterances without a target."""
    return [store[i].T // 2 if i in store else 400 for i in ids]


def logits_like(stream):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*stream.mask.shape, stream.classes, generator=generator).requires_grad_()


def losses(stream):
    return rnnt_kd if stream.mask.dim() == 3 or getattr(stream, "frames", None) is not None else ctc_kd


def frames_of(store, ids, halved):
    follows = store.spec.streams[-1].form.partition("+")[0] != "path"  # a path keeps the teacher's frames
    return lengths(store, ids) if halved and follows else None


@pytest.mark.parametrize("halved", [False, True])
def test_masked_rows_leave_the_other_rows_and_their_losses_as_they_are(store, halved):
    ids = mixed(store)
    frames = frames_of(store, ids, halved)
    held = [0, 2]
    plain = store.batch([ids[i] for i in held], frames=frames and [frames[i] for i in held])
    batch = store.batch(ids, frames=frames, missing="mask")
    assert batch.utt_ids == tuple(ids)
    assert batch.lengths.tolist()[1] == 0
    assert not batch.mask[1].any()
    assert not batch.label_mask[1].any()
    if frames:
        assert batch.mask.shape[1] == max(frames)
    for name in ("ctc", "rnnt"):
        stream, alone = batch[name], plain[name]
        assert not stream.mask[1].any()
        inside = (held, *(slice(size) for size in alone.mask.shape[1:]))
        assert torch.equal(stream.mask[inside], alone.mask)
        assert torch.equal(stream.dense()[inside][alone.mask], alone.dense()[alone.mask])
        logits = logits_like(stream)
        loss = losses(stream)(logits, stream)
        expected = losses(stream)(logits[inside], alone)
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert not logits.grad[1].any()


def test_a_batch_without_any_target_has_a_loss_of_zero(store):
    batch = store.batch(["absent", "too"], frames=[7, 5], missing="mask")
    assert batch.mask.shape == (2, 7)
    assert not batch.mask.any()
    assert batch.labels.shape == (2, 0)
    for name in ("ctc", "rnnt"):
        logits = logits_like(batch[name])
        loss = losses(batch[name])(logits, batch[name])
        loss.backward()
        assert float(loss.detach()) == 0
        assert not logits.grad.any()


def test_skipped_utterances_are_left_out_with_their_frames(store):
    ids = mixed(store)
    frames = frames_of(store, ids, halved=True)
    batch = store.batch(ids, frames=frames, missing="skip")
    assert batch.utt_ids == (ids[0], ids[2])
    if frames:
        assert batch.lengths.tolist() == [frames[0], frames[2]]
    with pytest.raises(MissingUtterance, match=r"(?s)none of the 2 utterances, the first 'absent'.*mask"):
        store.batch(["absent", "too"], missing="skip")


def test_absent_utterances_are_refused_by_default(store):
    with pytest.raises(MissingUtterance, match="'absent'"):
        store.batch(mixed(store))
    with pytest.raises(UsageError, match=r"(?s)missing='ignore' is unknown.*error, mask, skip"):
        store.batch(mixed(store), missing="ignore")


def test_a_clip_with_an_absent_utterance_is_masked_as_a_whole(store):
    first, *_ = store
    clip = Clip(first) + Clip("absent")
    if store.spec.streams[-1].form.startswith(("path", "banded")):
        pytest.skip("lattices that keep some nodes do not follow clips")
    batch = store.batch([first, clip], missing="mask")
    assert batch.utt_ids == (first, f"{first}+absent")
    assert batch.mask.any(1).tolist() == [True, False]


def test_a_whole_batch_is_the_same_whatever_is_said_of_missing_ones(store):
    ids = list(store)[:2]
    plain = collate_targets([store[i] for i in ids])
    for missing in ("mask", "skip"):
        batch = store.batch(ids, missing=missing)
        assert torch.equal(batch["ctc"].dense(), plain["ctc"].dense())
