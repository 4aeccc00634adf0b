"""Loops that reorder, fetch ahead, repeat, warm up, thread and cut their batches: right or refused, never wrong."""

import json
import sys
from pathlib import Path

import pytest
import torch

from logitstore import CaptureOptions, capture_logits, open_store
from logitstore.store.verify import verify_store
from recipes.demo.decode import read_audio
from recipes.demo.features import log_mel
from tests.support import demo

PROGRAM = demo.ROOT / "tests" / "recipes" / "loops" / "decode.py"
COUNT = 10  # utterances
RIGHT = "all right"
ONE_LENGTH = 16000  # samples of the utterances that some loops cut

LOOPS = {  # loop: (options, RIGHT or words of the refusal)
    "plain": ({}, RIGHT),
    "sorted_features": ({}, RIGHT),
    "sorted_waves": ({}, RIGHT),
    "reversed_waves_of_one_length": ({}, RIGHT),
    "whitened_waves_of_one_length": ({}, "nothing proves that the model's 3 rows are in the order"),
    "sorted_paths": ({}, "nothing proves that the model's 3 rows are in the order"),
    "one_path_at_a_time": ({}, RIGHT),
    "fetched_ahead": ({}, RIGHT),
    "fetched_ahead_waves": ({}, RIGHT),
    "fetched_ahead_one_wave": ({}, "which of its batches the model ran on is not certain"),
    "shuffled_in_a_buffer": ({}, RIGHT),
    "sorted_over_all_batches": ({}, "yielded 4 batches before the module ran"),
    "repeated_ids": ({}, "one id names two utterances"),
    "warm_up_before_the_loader": ({}, RIGHT),
    "warm_up_on_a_dummy_in_the_loop": ({}, "the module ran again in one batch"),
    "warm_up_on_the_first_batch": ({}, RIGHT),
    "model_in_another_thread": ({}, RIGHT),
    "model_in_two_threads": ({}, RIGHT),
    "loader_in_another_thread": ({}, RIGHT),
    "one_loader_after_another": ({}, RIGHT),
    "two_loaders_in_turn": ({}, RIGHT),
    "two_passes_in_other_orders": ({}, RIGHT),
    "augmented_twice": ({}, "the module ran again in one batch"),
    "chunks_of_frames": ({"accumulate": "t"}, RIGHT),
    "parts_of_a_batch": ({"accumulate": "b"}, RIGHT),
    "parts_in_the_wrong_order": ({"accumulate": "b"}, "the pieces of a batch do not follow one another"),
    "short_utterances_left_out": ({}, RIGHT),
    "two_batches_joined": ({}, "yielded 4 batches before the module ran"),
    "last_batch_filled_up": ({}, "1 ids for an output of (3, "),
}
LEFT_OUT = 4  # utterances that short_utterances_left_out never runs


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return demo.write_manifest(tmp_path_factory.mktemp("loops") / "m.jsonl", demo.lines(COUNT))


@pytest.fixture(scope="module")
def own(manifest):
    """The teacher's logits of each utterance, run alone."""
    return logits_of(manifest)


def logits_of(manifest, samples=None):
    model, found = demo.teacher().model, {}
    with torch.no_grad():
        for line in map(json.loads, manifest.read_text("utf-8").splitlines()):
            x = torch.from_numpy(log_mel(read_audio(Path(line["audio"]))[:samples]))
            encoder_out, lens = model.forward_encoder(x[None], torch.tensor([len(x)]))
            found[line["id"]] = model.ctc_output[1](encoder_out)[0, : lens[0]]
    return found


def capture(place, manifest, loop, **options):
    asked = CaptureOptions(ctc="ctc_output.1", tokens=str(demo.TOKENS), shard_size="3", **options)
    return capture_logits([sys.executable, PROGRAM, loop, manifest], place, asked)


def require_right(place, own):
    """Check every record of a store against the teacher's own logits of its id; return the number of records."""
    if not (place / "logitstore.json").exists():
        return 0
    assert not verify_store(place).findings
    store = open_store(place)
    for utt_id in store:
        wanted, stored = own[utt_id], torch.from_numpy(store[utt_id]["ctc"].logits())
        assert stored.shape == wanted.shape, utt_id
        torch.testing.assert_close(stored, wanted, atol=5e-2, rtol=1e-2)
    return len(store)


@pytest.mark.parametrize("loop", list(LOOPS))
def test_every_record_is_right_or_the_capture_is_refused(tmp_path, manifest, own, loop):
    options, expected = LOOPS[loop]
    result = capture(tmp_path / "s", manifest, loop, **options)
    found = own
    if loop == "repeated_ids":  # one of the utterances that share an id is right
        found = {f"0_{i % 3}": own[f"demo-{i:02d}"] for i in (2, 1, 0)}
    if "one_length" in loop:
        found = logits_of(manifest, ONE_LENGTH)
    count = require_right(tmp_path / "s", found)
    assert count == result.sealed
    if expected == RIGHT:
        assert (result.status, result.errors) == (0, ())
        assert count == COUNT - LEFT_OUT * (loop == "short_utterances_left_out")
    else:
        assert result.status == 1
        assert expected in result.errors[0]
        if count:
            assert "this run sealed" in result.errors[-1]


def test_order_assumed_stores_what_nothing_proves(tmp_path, manifest, own):
    result = capture(tmp_path / "s", manifest, "paths", order="assumed")
    assert (result.status, result.errors) == (0, ())
    assert require_right(tmp_path / "s", own) == COUNT


def test_ids_of_a_resumed_capture_are_compared_with_the_records(tmp_path, manifest, own):
    first = capture(tmp_path / "s", manifest, "paths", order="assumed")
    assert first.sealed == COUNT
    again = capture(tmp_path / "s", manifest, "sorted_paths", order="assumed")
    assert again.status == 1
    assert "the record that an earlier run stored under this id has" in again.errors[0]
    assert "logitstore verify" in again.errors[0]
    swapped = capture(tmp_path / "s", manifest, "paths", ids="utt_ids")  # neighbours of nearly equal length
    assert swapped.status == 1
    assert require_right(tmp_path / "s", own) == COUNT
