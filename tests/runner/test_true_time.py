"""A dump refuses a teacher whose frames are not as long as the audio they were made of."""

from dataclasses import replace

import pytest

from logitstore import open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.errors import LengthError
from tests.support import demo


def spoiled(shift):
    return demo.Spoiled(describe=lambda t: replace(t.describe(), frame_shift=shift))


@pytest.mark.parametrize(
    ("shift", "what"),
    [
        (160, "4 times too few: the frame shift may be"),  # 10 ms frames described, 40 ms given
        (2560, "4 times too many: the lengths may count feature frames"),
        (720, "another time"),
    ],
)
def test_frames_of_another_length_than_the_audio(tmp_path, shift, what):
    """The error names both, the likely cause, and the shift that would be right."""
    with pytest.raises(LengthError, match=what) as e:
        dump_logits(spoiled(shift), demo.manifest(2), tmp_path / "s", DumpOptions())
    message = str(e.value)
    assert "demo-00" in message
    assert f"76 teacher frames of {shift / 16:g} ms are {76 * shift / 16000:.3f} s" in message
    assert "the audio lasts 3.042 s" in message
    assert "about 40 ms" in message
    assert not len(open_store(tmp_path / "s"))


def test_it_is_checked_utterance_by_utterance(tmp_path):
    """Of a short recording a few frames too many prove nothing; of a longer one they do."""
    lines = [{**x, "duration": 0.15} for x in demo.lines(3)] + demo.lines(5)[3:4]
    manifest = demo.read_manifest(demo.write_manifest(tmp_path / "m.jsonl", lines))
    options = DumpOptions(on_error="skip", batch_seconds=0, max_wer=1000)
    done = dump_logits(spoiled(320), manifest, tmp_path / "s", options)
    assert (done.done, done.skipped) == (3, 1)
    assert list(open_store(tmp_path / "s")) == ["demo-00", "demo-01", "demo-02"]


def test_a_teacher_that_is_right_all_the_same_may_say_so(tmp_path):
    done = dump_logits(spoiled(160), demo.manifest(2), tmp_path / "s", DumpOptions(skip_checks="it stutters"))
    assert done.done == 2
    store = open_store(tmp_path / "s")
    assert store.spec.gates == ({"gate": "true time", "reason": "it stutters"},)
    assert sum("true time" in x for x in done.findings) == 1
