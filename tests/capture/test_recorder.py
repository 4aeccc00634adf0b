"""Capture from inside: which call, whose ids, which lengths; here with the trained model in this process."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from logitstore.capture.claims import signatures_of
from logitstore.capture.expression import Expression
from logitstore.capture.job import CaptureOptions
from logitstore.errors import LengthError, ManifestError, NotLogits, TapError, TapFiredTwice, UsageError
from recipes.demo.decode import collate
from tests.support.captured import Program, check, decode, loader, own


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("plain", {}),
        ("edited", {}),
        ("BVT", {"layout": "BVT"}),
        ("TBV", {"layout": "TBV"}),
        ("thrice", {"call": 1}),
        ("plain", {"storage": "webdataset", "name": "mine", "frame_shift": 320, "sample_rate": 8000}),
        ("plain", {"tokens": "", "blank": 149}),
        ("plain", {"lengths": "(lens + 0) // 1", "ids": "batch['utt_ids']"}),
    ],
)
def test_stored_logits_and_description(session, model, utterances, way, options):
    program = Program(model, way).eval()
    run = session(**options)
    decode(program, loader(utterances))
    store = run.store()
    check(store, model, utterances)
    about = store.spec.teacher
    assert about.name == options.get("name", "Program")
    assert (about.frame_shift, about.sample_rate) == (
        options.get("frame_shift", 640),
        options.get("sample_rate", 16000),
    )
    assert store.spec.tokens["blank"] == options.get("blank", 0)


REFUSED = {
    "thrice": ("thrice", {}, {}, TapFiredTwice, "Say which call to keep"),
    "axes": ("TBV", {}, {}, UsageError, "or the axes: --layout"),
    "axes, with ids": ("TBV", {"ids": 'batch["utt_ids"]'}, {}, LengthError, "3 ids for an output of"),
    "no ids": ("plain", {}, {"utt_ids": None}, UsageError, "no ids of 3 utterances in the batch"),
    "lengths of features": (
        "plain",
        {"lengths": 'batch["feats_lengths"]'},
        {},
        LengthError,
        "encoder frames",
    ),
    "log-probs": ("plain", {"ctc": "model.ctc_output.2"}, {}, NotLogits, "log-probabilities"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(session, model, utterances, name):
    way, options, extra, error, said = REFUSED[name]
    program = Program(model, way).eval()
    run = session(**options)
    with pytest.raises(error, match=said):
        for batch in loader(utterances, **extra):
            with torch.no_grad():
                program(batch["feats"], batch["feats_lengths"])
                if name == "log-probs":
                    model.ctc_output(model.encoder(batch["feats"], batch["feats_lengths"])[0])
    run.close()
    assert not (run.place / "sealed").exists()


def test_a_model_in_training_mode(session, model, utterances):
    session()
    with pytest.raises(TapError, match="training mode"):
        decode(Program(model, "plain").train(), loader(utterances))


def test_a_pass_that_only_counts_batches_does_not_count_as_fetching_ahead(session, model, utterances):
    run, batches = session(), loader(utterances)
    assert len(list(batches)) == 2
    decode(Program(model, "plain").eval(), batches)
    check(run.store(), model, utterances)


def test_two_passes_store_everything_once(session, model, utterances):
    run, program = session(), Program(model, "plain").eval()
    for size in (3, 2):
        decode(program, loader(utterances, size=size))
    check(run.store(), model, utterances)


@pytest.mark.parametrize("made", ["anew", "copied"])
def test_a_second_model_is_refused(session, model, utterances, made):
    run, program = session(), Program(model, "plain").eval()
    decode(program, loader(utterances[:3]))
    if made == "copied":  # of which nothing tells but to look again, now and then
        run.inside._finder._next_search = 0
        another = copy.deepcopy(program)
    else:
        run.inside._finder._next_search = math.inf
        another = Program(copy.deepcopy(model), "plain").eval()
    with pytest.raises(TapError, match="a second model"):
        decode(another, loader(utterances[3:]))


def test_several_tensors_that_could_be_the_lengths(session, model, utterances):
    session()
    program = Program(model, "plain").eval()
    others = torch.tensor([76, 40, 40])
    assert len(others) == 3  # in sight while the module runs, and as likely as the right ones
    with pytest.raises(LengthError, match=r"(?s)several tensors.*--lengths"), torch.no_grad():
        for batch in loader(utterances):
            program(batch["feats"], batch["feats_lengths"])


def test_relative_lengths(session, model, utterances):
    class Relative(Program):
        def forward(self, x, lens):
            hidden, lens = self.model.encoder(x, lens)
            wav_lens = lens / lens.max()
            return self.headed["lo"](hidden), wav_lens

    run = session(lengths="(wav_lens * T).round()")
    decode(Relative(model, "plain").eval(), loader(utterances))
    check(run.store(), model, utterances)


def test_the_gradient_graph_is_released_and_hooks_are_removed(session, model, utterances):
    run, program = session(), Program(model, "plain").eval()
    for batch in loader(utterances):
        program(batch["feats"], batch["feats_lengths"])  # with gradients
    check(run.store(), model, utterances)
    assert not any(m._forward_hooks for m in program.modules())
    assert not run.inside._finder.outputs
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


@torch.no_grad()
def score(model, utterances, batches):
    """A program that scores references: both branches, the whole lattice, in one call."""
    labels = {u.id: u.labels for u in utterances}
    for batch in batches:
        ys = [torch.tensor(labels[i]) for i in batch["utt_ids"]]
        y_padded = torch.nn.utils.rnn.pad_sequence(ys, batch_first=True)
        model(batch["feats"], batch["feats_lengths"], y_padded)


BOTH = {"ctc": "ctc_output.1", "joiner": "joiner", "labels": "y_padded"}


@pytest.mark.parametrize("options", [BOTH, {**BOTH, "ctc": "", "joiner": "joiner.output_linear"}])
def test_whole_lattices(session, model, utterances, options):
    run = session(**options, streams={"rnnt": "dense"})
    score(model, utterances, loader(utterances))
    store = run.store()
    assert [h.stream for h in store.spec.teacher.heads] == (["ctc", "rnnt"] if options["ctc"] else ["rnnt"])
    if options["ctc"]:
        check(store, model, utterances)
    assert set(store) == {u.id for u in utterances}
    for u in utterances:
        assert store[u.id].labels.tolist() == u.labels
        with torch.no_grad():
            _, joint, _ = model(*collate([u]), torch.tensor([u.labels]))
        stored = torch.from_numpy(store[u.id]["rnnt"].logits()).reshape(joint[0].shape)
        torch.testing.assert_close(stored, joint[0], atol=2e-2, rtol=1e-3)


def test_a_decoding_loop_is_refused_as_a_lattice(session, model, utterances):
    from recipes.demo.decode import token_error

    session(**BOTH, ids="[u.id for u in part]")
    with pytest.raises(
        TapError, match=r"(?s)no lattice .*decoding loop runs the joiner once a step.*--encoder PATH"
    ):
        token_error(model, utterances)


def test_labels_that_do_not_fit_the_lattice(session, model, utterances):
    session(**{**BOTH, "labels": "[row.tolist()[:3] for row in ys][1:]"})
    with pytest.raises(LengthError, match="labels of 2 utterances"):
        score(model, utterances, loader(utterances))


def test_one_stream_without_the_other(session, model, utterances):
    run = session(**BOTH)
    with torch.no_grad():
        for batch in loader(utterances[:3]):
            hidden, encoder_out_lens = model.forward_encoder(batch["feats"], batch["feats_lengths"])
            assert len(encoder_out_lens) == 3
            model.ctc_output(hidden)
    run.close()
    assert run.inside.report.fields["state"] == "refused"
    assert "joiner did not run in a batch in which the other one did" in run.inside.report.fields["error"]
    assert "entry" not in run.inside.report.fields


@pytest.mark.parametrize(
    "options",
    [
        {"ctc": ""},
        {"ctc": "", "labels": "y"},
        {"streams": {"rnnt": "dense"}},
        {"greedy": True},
        {"joiner": "joiner", "ranges": "r"},
        {"joiner": "joiner", "labels": "y", "bpe": "bpe.model"},
        {"joiner": "joiner", "encoder": "encoder", "labels": "y", "greedy": True},
        {"joiner": "joiner", "bpe": "bpe.model", "tokens": ""},
        {"joiner": "joiner", "encoder_layout": "DTB"},
    ],
)
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(UsageError):
        CaptureOptions(**{"ctc": "ctc_output.1", **options})


def test_expressions_name_the_modules_they_look_at():
    assert Expression('modules["encoder"][1] + modules["a.b"][0]', "--lengths").modules == {"encoder", "a.b"}


def under_one_name(batches):
    """Batches whose ids leave out the folder of a speaker: two utterances of each name."""
    for batch in batches:
        yield {**batch, "names": [f"{int(i.removeprefix('demo-')) % 4}" for i in batch["utt_ids"]]}


def test_one_id_of_two_utterances_is_an_error_that_names_both(session, model, utterances):
    run, program = session(ids="names"), Program(model, "plain").eval()
    message = r"one id names two utterances: utterance 1 of batch 1 \(76 f.*utterance 2 of batch 2 \(62 f"
    with pytest.raises(ManifestError, match=message), torch.no_grad():
        for batch in under_one_name(loader(utterances)):
            names = batch["names"]
            assert len(names) == 3
            program(batch["feats"], batch["feats_lengths"])
    run.close()
    assert not (run.place / "sealed").exists()


def test_signatures_tell_utterances_apart_and_padding_does_not_matter(model, utterances):
    together = own(model, utterances)
    logits = [together[u.id] for u in utterances]
    padded = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True, padding_value=7.0)
    lengths = [len(x) for x in logits]
    batched = signatures_of(padded, lengths)
    alone = np.concatenate([signatures_of(x[None].half(), [len(x)]) for x in logits])
    cosines = batched @ alone.T
    assert (np.diag(cosines) > 0.99).all()
    assert (cosines - np.eye(len(logits)) < 0.9).all()
    assert not signatures_of(torch.ones(2, 5, 9), [5, 3]).any()
