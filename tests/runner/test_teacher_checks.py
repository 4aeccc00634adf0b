"""A teacher with wrong modules, lengths or tokens is refused before anything is stored."""

from dataclasses import replace

import pytest
import torch

from logitstore import open_store
from logitstore.errors import (
    LengthError,
    NonFinite,
    NotLogits,
    TapFiredTwice,
    TapNeverFired,
    TapPathError,
    TeacherError,
    UsageError,
    VocabError,
)
from logitstore.tokens.table import TokenTable
from tests.support import demo
from tests.support.dumping import run


def tapping(stream, module):
    """Return a describe() that names another module for a stream."""

    def describe(teacher):
        spec = teacher.describe()
        heads = [replace(h, module=module) if h.stream == stream else h for h in spec.heads]
        return replace(spec, heads=tuple(heads))

    return describe


def refused(tmp_path, error, match, limit=6, **methods):
    with pytest.raises(error, match=match):
        run(tmp_path / "s", limit=limit, teacher=demo.Spoiled(**methods))
    assert not (tmp_path / "s" / "sealed").exists()


def test_log_probabilities_where_logits_were_promised(tmp_path):
    refused(tmp_path, NotLogits, "log-probabilities, not logits", describe=tapping("ctc", "ctc_output"))


def test_a_wrong_path_lists_its_siblings(tmp_path):
    refused(tmp_path, TapPathError, "ctc_output", describe=tapping("ctc", "ctc_outptu.1"))


def test_a_module_of_another_width(tmp_path):
    refused(
        tmp_path, VocabError, "128 classes, the token table has 150", describe=tapping("ctc", "ctc_output.0")
    )


def test_a_joiner_module_of_another_width(tmp_path):
    refused(tmp_path, TapNeverFired, "did not run", describe=tapping("rnnt", "joiner.encoder_proj"))


def test_a_module_that_never_runs(tmp_path):
    refused(tmp_path, TapNeverFired, "did not run", describe=tapping("ctc", "joiner.output_linear"))


def test_a_module_that_runs_twice(tmp_path):
    def forward(teacher, *args):
        teacher.forward(*args)
        return teacher.forward(*args)

    refused(tmp_path, TapFiredTwice, "ran 2 times", forward=forward)


def test_the_models_own_word_differs(tmp_path):
    def log_probs(teacher, output):
        return {"ctc": teacher.log_probs(output)["ctc"].roll(1, -1)}

    refused(tmp_path, TeacherError, "differs from the model's own output", log_probs=log_probs)


def test_lengths_in_feature_frames(tmp_path):
    refused(tmp_path, LengthError, "beyond the", lengths=lambda t, output: output.lens * 4)


def test_a_length_too_few(tmp_path):
    refused(tmp_path, LengthError, "lengths for a batch", lengths=lambda t, output: output.lens[1:])


def test_padding_that_leaks(tmp_path):
    def forward(teacher, features, lengths):
        return teacher.forward(features - 3.0 * (features.shape[1] - lengths)[:, None, None], lengths)

    refused(tmp_path, TeacherError, "alone and in a padded batch", forward=forward)


@pytest.mark.parametrize("limit", [1, 2])
def test_padding_that_leaks_at_one_remainder_of_the_stride(tmp_path, limit):
    """Batches are sorted by length: their own padding may be none, and lengths of one remainder may be rare."""

    def forward(teacher, features, lengths):
        features = features.clone()
        for b, n in enumerate(lengths.tolist()):
            if n % 4 == 3 and n < features.shape[1]:
                features[b, n - 4 : n] -= 3.0
        return teacher.forward(features, lengths)

    refused(tmp_path, TeacherError, "alone and in a padded batch", limit=limit, forward=forward)
    one_at_a_time = run(tmp_path / "s", limit=limit, teacher=demo.Spoiled(forward=forward), batch_seconds=0)
    assert one_at_a_time.done == limit  # the remedy that the error names


def test_padding_that_leaks_in_a_later_batch_only(tmp_path):
    """The first batch shows nothing; the comparison is repeated for batches 2, 4, 8, ..."""
    batches = []

    def forward(teacher, features, lengths):
        if len(lengths) > 1:
            batches.append(lengths.tolist())
        leaks = len(lengths) > 1 and len(batches) > 2 and len(set(lengths.tolist())) > 1
        return teacher.forward(features - 3.0 if leaks else features, lengths)

    with pytest.raises(TeacherError, match="alone and in a padded batch its probabilities differ") as caught:
        run(tmp_path / "s", teacher=demo.Spoiled(forward=forward), shard_size="20")
    assert "Records that were sealed before may depend on their batches" in caught.value.__notes__[0]
    assert not (tmp_path / "s" / "sealed").exists() or not len(open_store(tmp_path / "s"))


def test_a_model_of_one_input_length_is_compared_without_shortening(tmp_path):
    """Whisper refuses any other number of feature frames."""
    known = []

    def forward(teacher, features, lengths):
        if not known:
            known.extend(lengths.tolist())
        if not set(lengths.tolist()) <= set(known):
            raise ValueError("expects other features")
        return teacher.forward(features, lengths)

    done = run(tmp_path / "s", limit=3, teacher=demo.Spoiled(forward=forward))
    assert any(f.startswith("an utterance alone and in a padded batch agree") for f in done.findings)


def test_a_model_that_says_the_same_of_every_class(tmp_path):
    def forward(teacher, features, lengths):
        linear = teacher.model.ctc_output[1]
        weight, bias = linear.weight.data, linear.bias.data
        linear.weight.data, linear.bias.data = torch.zeros_like(weight), torch.ones_like(bias)
        try:
            return teacher.forward(features, lengths)
        finally:
            linear.weight.data, linear.bias.data = weight, bias

    refused(tmp_path, NotLogits, "same logit for every class", forward=forward)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("path", ["ctc_output.1", "joiner.output_linear"])
def test_logits_that_are_not_finite(tmp_path, value, path):
    with demo.poisoned(path, value), pytest.raises(NonFinite, match=str(value)):
        run(tmp_path / "s", limit=6)
    assert not (tmp_path / "s" / "sealed").exists()
    with demo.poisoned("ctc_output.1", value):  # the first row of every batch: its longest utterance
        done = run(tmp_path / "skip", limit=6, on_error="skip", batch_seconds=1000.0)
    assert (done.done, done.skipped) == (5, 1)


def test_a_table_that_is_not_the_teachers(tmp_path):
    tokens = list(demo.teacher().tokens().tokens)
    tokens[4], tokens[5] = tokens[5], tokens[4]
    with pytest.raises(VocabError, match=f"first at id 4: {tokens[4]!r}"):
        run(tmp_path / "s", tokens=TokenTable(tuple(tokens), 0))


def test_a_table_of_another_size(tmp_path):
    short = TokenTable(demo.teacher().tokens().tokens[:-1], 0)
    refused(tmp_path, VocabError, "150 classes, the token table has 149", tokens=lambda t: short)


def test_k_beyond_v(tmp_path):
    with pytest.raises(UsageError, match="topk:151 of 150 classes"):
        run(tmp_path / "s", streams={"ctc": "topk:151"})


def test_a_stream_the_teacher_does_not_have(tmp_path):
    def describe(teacher):
        return replace(teacher.describe(), heads=teacher.describe().heads[:1])

    refused(tmp_path, TeacherError, "no rnnt head", describe=describe)


def test_a_blank_elsewhere(tmp_path):
    def describe(teacher):
        spec = teacher.describe()
        return replace(spec, heads=tuple(replace(h, blank=149) for h in spec.heads))

    refused(tmp_path, VocabError, "ctc head is 149", describe=describe)


def test_training_mode_is_ended_and_said(tmp_path):
    demo.teacher().model.train()
    done = run(tmp_path / "s", limit=6)
    assert any("training mode" in f for f in done.findings)
    assert not demo.teacher().model.training
