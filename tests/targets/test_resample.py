"""Resampling methods: max-nonblank, linear-logit, stacks, and students that lag."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import TokenTable, VocabMap, collate_targets, open_store
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.encodings import parse_encoding
from logitstore.encodings.rows import NOTHING
from logitstore.errors import LengthError, UsageError
from logitstore.losses import ctc_kd
from logitstore.targets.decode import greedy_ctc
from logitstore.targets.frames import MAX_DRIFT, Method, Ramp, keep_tokens, nearest, plan, spikes
from logitstore.targets.resample import nonblank
from logitstore.targets.target import Target
from logitstore.testing.encoding import decoded
from logitstore.tokens.transcript import edit_distance
from tests.support import demo

V, BLANK = 9, 2
TEXTS = [
    "keep-tokens",
    "compose",
    "linear",
    "linear-logit",
    "nearest",
    "max-nonblank",
    "stack:4",
    "nearest+shift=3",
    "stack:2+shift=1",
]


def target(t, encoding="dense", seed=0, scale=3.0):
    logits = torch.randn(t, V, generator=torch.Generator().manual_seed(seed)) * scale
    none = np.zeros(0, np.int32)
    rows = decoded(parse_encoding(encoding), logits)
    return Target(f"u{seed}", t, none, {"ctc": rows}, {"ctc": (t, V)}, blank=BLANK), logits.double()


@pytest.mark.parametrize("text", TEXTS)
def test_methods_print_as_written(text):
    assert str(Method.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "cubic", "stack", "stack:0", "linear:2", "max_nonblank", "nearest+shift", "linear+shift=-1"]
)
def test_unknown_methods_list_the_known(text):
    with pytest.raises(UsageError, match="max-nonblank"):
        Method.parse(text)


lengths = st.integers(1, 60)
RATES = [(1, 1), (3, 4), (2, 3), (1, 2), (1, 3), (1, 4), (2, 1)]
paths = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=25).map(
    lambda runs: np.repeat([token for token, _ in runs], [count for _, count in runs])
)


def fits(best, ramp):
    """Return whether some rising choice of frames within the drift keeps the decode; tries every choice."""
    wanted, reach = greedy_ctc(best, 0), max(1, -(-MAX_DRIFT * ramp.step.numerator // ramp.step.denominator))
    near = ramp.nearest(len(best))
    states = {(-1, ())}  # the last frame chosen, and the decode so far with its last class
    for i in range(ramp.count):
        reachable = range(max(near[i] - reach, 0), min(near[i] + reach, len(best) - 1) + 1)
        following = set()
        for last, said in states:
            for frame in reachable:
                if frame >= last:
                    token = int(best[frame])
                    now = said if said and said[-1] == token else (*said, token)
                    if [x for x in now if x] == wanted[: sum(x > 0 for x in now)]:
                        following.add((frame, now))
        states = following
    return any([x for x in said if x] == wanted for _, said in states)


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=7), st.sampled_from(RATES)
)
def test_keep_tokens_keeps_the_decode_wherever_any_choice_does(runs, rate):
    best = np.repeat([token for token, _ in runs], [count for _, count in runs])
    ramp = Ramp.whole(len(best), -(-len(best) * rate[0] // rate[1]))
    chosen = keep_tokens(best, 0, ramp)
    assert len(chosen) == ramp.count
    assert (np.diff(chosen) >= 0).all()
    if fits(best, ramp):
        assert greedy_ctc(best[chosen], 0) == greedy_ctc(best, 0)


@given(paths, st.sampled_from(RATES))
def test_keep_tokens_never_drifts_further_than_it_says_and_adds_no_token(best, rate):
    ramp = Ramp.whole(len(best), -(-len(best) * rate[0] // rate[1]))
    chosen = keep_tokens(best, 0, ramp)
    reach = max(1.0, np.ceil(MAX_DRIFT * float(ramp.step)))
    assert (np.abs(chosen - ramp.nearest(len(best))) <= reach).all()
    kept, every = greedy_ctc(best[chosen], 0), iter(greedy_ctc(best, 0))
    assert all(token in every for token in kept)  # a subsequence
    silence = np.zeros(len(best), int)
    assert np.array_equal(keep_tokens(silence, 0, ramp), ramp.nearest(len(best)))


@pytest.mark.parametrize("rate", [(1, 2), (3, 4)])
def test_targets_at_another_rate_say_what_the_teacher_says(tmp_path, rate):
    """The reason for the default: mixing a spike with the blank beside it deletes tokens, choosing does not."""
    dump_logits(demo.teacher(), demo.manifest(), tmp_path, DumpOptions(streams={"ctc": "dense"}))
    store = open_store(tmp_path)
    errors, tokens = dict.fromkeys((None, "linear"), 0), 0
    for utt_id in store:
        wanted = greedy_ctc(store[utt_id].log_probs("ctc").argmax(1), store.tokens.blank)
        tokens += len(wanted)
        count = -(-store[utt_id].T * rate[0] // rate[1])
        for method in errors:
            served = store.batch([utt_id], frames=[count], method=method)["ctc"].dense()[0]
            errors[method] += edit_distance(wanted, greedy_ctc(served.argmax(1).numpy(), store.tokens.blank))
    assert errors[None] <= 0.02 * tokens
    assert errors["linear"] > 0.04 * tokens


def test_methods_by_stream_and_defaults():
    rows, _ = target(12)
    both = Target(
        "u", 12, rows.labels, {"ctc": rows["ctc"], "rnnt": rows["ctc"]}, {"ctc": (12, V), "rnnt": (12, V)}
    )
    assert Method.of("ctc", None) == Method("keep-tokens")
    assert Method.of("rnnt", "") == Method("compose")
    assert Method.of("hidden", "") == Method("linear")
    assert Method.of("ctc", "+shift=2") == Method("keep-tokens", shift=2)
    assert Method.of("ctc", "nearest") == Method("nearest")
    one = collate_targets([both], frames=[5], method={"ctc": "nearest"})
    near, composed = (collate_targets([both], frames=[5], method=m) for m in ("nearest", "compose"))
    assert torch.equal(one["ctc"].logp, near["ctc"].logp)
    assert torch.equal(one["rnnt"].logp, composed["rnnt"].logp)
    with pytest.raises(UsageError, match="no stream 'ctd'"):
        collate_targets([both], frames=[5], method={"ctd": "nearest"})
    with pytest.raises(UsageError, match="stacks of 1, 2"):
        collate_targets([both], method={"ctc": "stack:2"})


@given(lengths, lengths, st.integers(0, 2**16))
def test_spikes_are_the_frames_with_most_nonblank_mass(t, s, seed):
    mass = np.random.default_rng(seed).integers(0, 6, t) / 6  # with ties
    found = spikes(mass, nearest(t, s), s)
    inside = [[] for _ in range(s)]
    for j in range(t):
        inside[int(Fraction(2 * j + 1, 2 * t) * s)].append(j)
    for i, frames in enumerate(inside):
        wanted = max(frames, key=lambda j: (mass[j], -j)) if frames else nearest(t, s)[i]
        assert found[i] == wanted
    if s <= t:
        assert mass[found].max() == mass.max()  # the sharpest spike of all is never lost


@pytest.mark.parametrize("encoding", ["dense", "topk:3", "topk:9", "nucleus:0.01"])
def test_nonblank_mass(encoding):
    made, logits = target(40, encoding)
    wanted = 1 - torch.softmax(logits, -1)[:, BLANK].numpy()
    found = nonblank(made["ctc"], BLANK)
    at = made["ctc"].at(1.0)
    kept = np.ones(40, bool) if at.ids is None else ((at.ids == BLANK) & (at.logp > NOTHING)).any(1)
    np.testing.assert_allclose(found[kept], wanted[kept], atol=4e-3)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[~kept] > 0.5).all()  # a blank that is not among the best has little


@pytest.mark.parametrize("student", [5, 13, 30])
def test_max_nonblank_takes_rows(student):
    made, logits = target(13)
    stream = collate_targets([made], frames=[student], method="max-nonblank", stretch=True)["ctc"]
    frames = spikes(1 - torch.softmax(logits, -1)[:, BLANK].numpy(), nearest(13, student), student)
    wanted = torch.log_softmax(logits, -1)[torch.from_numpy(frames)]
    torch.testing.assert_close(stream.logp[0].double(), wanted, atol=5e-3, rtol=2e-3)


def test_max_nonblank_uses_the_teachers_own_blank():
    names = ["a", "b", "<blk>", *"cdefgh"]
    teacher, student = TokenTable(tuple(names), BLANK), TokenTable(tuple(sorted(names)), 0)
    made, _ = target(20)
    vocab = VocabMap.by_token(teacher, student)
    one = collate_targets([made], frames=[7], method="max-nonblank")["ctc"]
    two = collate_targets([made], frames=[7], method="max-nonblank", vocab=vocab)["ctc"]
    torch.testing.assert_close(two.logp[..., [student.id(n) for n in names]], one.logp)


@settings(max_examples=30)
@given(st.integers(2, 20), st.integers(1, 30), st.floats(1, 6), st.integers(0, 999))
def test_linear_logit_mixes_logits(t, s, temperature, seed):
    made, logits = target(t, seed=seed)
    how = Method("linear-logit")
    stream = collate_targets([made], frames=[s], method=str(how), temperature=temperature, stretch=True)[
        "ctc"
    ]
    p = plan(t, s, how)
    w = torch.from_numpy(p.weight).double()[:, None]
    mixed = (1 - w) * logits[p.low] + w * logits[p.high]
    wanted = torch.log_softmax(mixed / temperature, -1)
    torch.testing.assert_close(stream.logp[0].double(), wanted, atol=2e-2, rtol=2e-3)
    torch.testing.assert_close(stream.logp[0].exp().sum(-1), torch.ones(s), atol=1e-5, rtol=0)


def test_linear_logit_needs_every_class():
    made, _ = target(6, "topk:3")
    with pytest.raises(UsageError, match="pruned"):
        collate_targets([made], frames=[4], method="linear-logit")
    collate_targets([made], frames=[6], method="linear-logit")  # nothing to mix


def test_stacked_frames():
    made = [target(t, "topk:3", seed=t)[0] for t in (7, 3)]
    batch = collate_targets(made, method="stack:3", temperature=2.0)
    whole = collate_targets(made, temperature=2.0)["ctc"]
    assert batch.lengths.tolist() == [3, 1]
    stream = batch["ctc"]
    assert stream.logp.shape == (2, 3, 3, 3)
    assert stream.mask.sum((1, 2)).tolist() == [7, 3]
    assert torch.equal(stream.logp[stream.mask], whole.logp[whole.mask])
    assert torch.equal(stream.ids[stream.mask], whole.ids[whole.mask])
    logits = torch.randn(2, 9, V)
    stacked = ctc_kd(logits.reshape(2, 3, 3, V), stream)
    torch.testing.assert_close(stacked, ctc_kd(logits[:, :7], whole))
    with pytest.raises(LengthError, match="3 frames of this"):
        collate_targets(made, frames=[2, 1], method="stack:3")


@pytest.mark.parametrize("method", ["linear", "nearest", "max-nonblank"])
def test_shift_moves_targets_of_a_lagging_student(method):
    made = [target(t, "topk:3", seed=t)[0] for t in (12, 7)]
    frames = [6, 9]
    plain = collate_targets(made, frames=frames, method=method, stretch=True)["ctc"]
    late = collate_targets(made, frames=frames, method=f"{method}+shift=2", stretch=True)["ctc"]
    assert not bool(late.mask[:, :2].any())
    for b, length in enumerate(frames):
        assert bool(late.mask[b, 2:length].all())
        assert torch.equal(late.dense()[b, 2:length], plain.dense()[b, : length - 2])
    gone = collate_targets(made, frames=frames, method=f"{method}+shift=9", stretch=True)["ctc"]
    assert not bool(gone.mask.any())
    logits = torch.randn(2, 9, V, requires_grad=True)
    loss = ctc_kd(logits, gone)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not bool(logits.grad.any())


def test_shift_of_stacks():
    made = [target(8, seed=1)[0]]
    stream = collate_targets(made, method="stack:2+shift=1")["ctc"]
    plain = collate_targets(made, method="stack:2")["ctc"]
    assert torch.equal(stream.logp[:, 1:], plain.logp[:, :3])
    assert stream.mask[0, :, 0].tolist() == [False, True, True, True]


def test_spikes_of_the_trained_teacher_survive_a_slow_student(tmp_path):
    """At a third of the frame rate, taking the nearest frame loses more tokens than max-nonblank does.

    It cannot keep all: two tokens that fall into one student frame are still one too many.
    """
    dump_logits(demo.teacher(), demo.manifest(6), tmp_path / "s", DumpOptions(streams={"ctc": "topk:4"}))
    store = open_store(tmp_path / "s")
    errors = {}
    for method in ("nearest", "max-nonblank"):
        errors[method] = 0
        for made in store.values():
            rows = collate_targets([made], frames=[-(-made.T // 3)], method=method)["ctc"]
            said = greedy_ctc(rows.dense()[0].argmax(-1).numpy(), store.tokens.blank)
            whole = greedy_ctc(made["ctc"].at(1.0).dense().argmax(-1), store.tokens.blank)
            errors[method] += edit_distance(whole, said)
    assert errors["max-nonblank"] < errors["nearest"]
