"""Maps between token tables: mass is kept, and tokens are matched by name."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitstore import StoreWriter, TokenTable, VocabMap, collate_targets, open_store, read_table
from logitstore.encodings.dense import Dense
from logitstore.encodings.rows import NOTHING, TEMPERATURES, Rows, Tempered, logsumexp
from logitstore.encodings.topk import Sparse
from logitstore.errors import TokenError, UsageError, VocabError
from logitstore.targets.batch import _pad
from logitstore.targets.resample import Resampled, resample

TEACHER = TokenTable(("<blk>", "a", "b", "c", "d", "e", "f", "<unk>"), 0)
RESORTED = TokenTable(("f", "e", "<unk>", "d", "<blk>", "c", "b", "a"), 4)
REDUCED = TokenTable(("d", "b", "<blank>", "a"), 2)
FILLED = TokenTable(("<blk>", "<filler>", "d", "b"), 0)
V = len(TEACHER)


def dense_rows(rng, n=50, classes=V):
    logits = rng.normal(size=(n, classes)) * 4
    logp = logits - logsumexp(logits)[:, None]
    return Dense(logp.astype(np.float32), np.zeros(n, np.float32))


def sparse_rows(rng, k, n=50, classes=V):
    """As ``topk:K`` decodes."""
    logp = dense_rows(rng, n, classes).logp.astype(np.float64)
    order = np.argsort(-logp, axis=1)
    ids, rest = order[:, :k], order[:, k:]
    kept = np.take_along_axis(logp, ids, 1)
    odds = np.full((n, len(TEMPERATURES)), -30.0)
    if k < classes:
        left = np.take_along_axis(logp, rest, 1)
        odds = np.stack([logsumexp(left / t) - logsumexp(kept / t) for t in TEMPERATURES], 1)
    return Sparse(classes, ids.astype(np.uint16), kept.astype(np.float32), odds, np.zeros(n, np.float32))


def mass(rows):
    """(N,) what a row sums to, its tail included; repeated ids hold nothing."""
    return np.exp(rows.logp.astype(np.float64)).sum(1) + np.exp(rows.tail.astype(np.float64))


def one_by_one(rows, to, classes):
    """Class and tail masses of every row, added up in the plainest way."""
    out = np.zeros((len(rows.logp), classes + 1))  # the last column is the tail
    ids = np.tile(np.arange(rows.classes), (len(rows.logp), 1)) if rows.ids is None else rows.ids
    for n in range(len(out)):
        for i, logp in zip(ids[n], rows.logp[n], strict=True):
            out[n, to[i]] += np.exp(np.float64(logp))
    out[:, -1] += np.exp(rows.tail.astype(np.float64))
    return out


def read_back(rows):
    """The same from a mapped row."""
    return one_by_one(rows, np.arange(rows.classes), rows.classes)


# --- building a map ---------------------------------------------------------------------------------------


def test_blank_goes_to_blank_whatever_it_is_called():
    assert VocabMap.by_token(TEACHER, RESORTED).to.tolist() == [4, 7, 6, 5, 3, 1, 0, 2]
    assert VocabMap.by_token(TEACHER, REDUCED).to.tolist() == [2, 3, 1, -1, 0, -1, -1, -1]


def test_a_token_with_the_name_of_the_other_blank_is_not_the_blank():
    teacher = TokenTable(("<pad>", "<blk>", "a", "b"), 0)
    student = TokenTable(("<blk>", "<pad>", "a", "b"), 0)
    there = VocabMap.by_token(teacher, student)
    assert there.to.tolist() == [0, -1, 2, 3]
    assert there.dropped == ("<blk>",)
    assert there.unfed == ("<pad>",)


def test_missing_tokens_go_to_the_filler():
    there = VocabMap.by_token(TEACHER, FILLED, missing="filler")
    assert there.to.tolist() == [0, 1, 3, 1, 2, 1, 1, 1]
    assert there.dropped == ("a", "c", "e", "f", "<unk>")
    assert there.unfed == ()
    with pytest.raises(VocabError, match="no filler"):
        VocabMap.by_token(TEACHER, REDUCED, missing="filler")
    with pytest.raises(UsageError, match="Known: tail, filler"):
        VocabMap.by_token(TEACHER, REDUCED, missing="drop")


def test_several_tokens_may_share_a_class():
    student = TokenTable(("<blk>", "a", "d"), 0, (("b", 1), ("c", 1), ("e", -1)))
    assert VocabMap.by_token(TEACHER, student).to.tolist() == [0, 1, 1, 1, 2, -1, -1, -1]


def test_coverage_and_explanation():
    there = VocabMap.by_token(TEACHER, FILLED)
    c = there.coverage()
    assert (c.teacher, c.mapped, c.student, c.fed, c.share) == (8, 3, 4, 3, 3 / 8)
    said = there.explain()
    assert "the teacher has 8 tokens, the student 4" in said
    assert "3 of 8 teacher tokens (37.5%) become 3 of 4 classes" in said
    assert "5 go to the tail: 'a', 'c', 'e', 'f', '<unk>'" in said
    assert "1 classes of the student get no mass: '<filler>'" in said
    assert "in another order" in VocabMap.by_token(TEACHER, RESORTED).explain()
    assert "go to '<filler>'" in VocabMap.by_token(TEACHER, FILLED, missing="filler").explain()


def test_characters_to_pieces_is_refused():
    letters = tuple("abcdefghijklmnopqrstuvwxyz")
    characters = TokenTable(("<blk>", *letters), 0)
    pieces = TokenTable(("<blk>", *letters, *(a + b for a in "aeiou" for b in "nrst")), 0)
    for one, two in ((characters, pieces), (pieces, characters)):
        with pytest.raises(VocabError, match="transcripts as hard targets"):
            VocabMap.by_token(one, two)


def test_other_spellings_and_other_tables_are_refused():
    upper = TokenTable(("<blk>", *"ABCDEF"), 0)
    with pytest.raises(VocabError, match=r"spell=str\.lower"):
        VocabMap.by_token(TEACHER, upper)
    assert VocabMap.by_token(TEACHER, upper, spell=str.upper).to.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
    with pytest.raises(VocabError, match="no token in common"):
        VocabMap.by_token(TEACHER, TokenTable(("<blk>", *"жщю"), 0))


def test_spelling_may_merge_tokens():
    teacher = TokenTable(("<blk>", "a", "A", "b", "B"), 0)
    there = VocabMap.by_token(teacher, TokenTable(("<blk>", "a", "b"), 0), spell=str.lower)
    assert there.to.tolist() == [0, 1, 1, 2, 2]


# --- rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("student", [RESORTED, REDUCED])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_loss_is_that_of_the_teachers_table_restricted(student, temperature, pruned):
    rng = np.random.default_rng(1)
    rows = sparse_rows(rng, V) if pruned else dense_rows(rng)
    there = VocabMap.by_token(TEACHER, student)
    names = [student.tokens[student.blank] if t == "<blk>" else t for t in TEACHER.tokens]
    columns = [names.index(t) for t in student.tokens]
    kept = torch.from_numpy(rows.at(temperature).dense()[:, columns]).double().log_softmax(-1)
    mapped = torch.from_numpy(there.apply(rows.at(temperature)).dense()).double()
    told = torch.from_numpy(rng.normal(size=kept.shape)).log_softmax(-1)
    kl = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)
    assert kl(told, mapped).item() == pytest.approx(kl(told, kept).item(), abs=1e-5)


@st.composite
def problems(draw):
    """Any map between tables of a few classes, K, a temperature and a seed."""
    teacher = TokenTable(tuple(f"t{i}" for i in range(draw(st.integers(2, 9)))), 0)
    student = TokenTable(("<blk>", "<filler>", *(f"s{i}" for i in range(draw(st.integers(0, 5))))), 0)
    to = np.array([0] + [draw(st.integers(-1, len(student) - 1)) for _ in teacher.tokens[1:]])
    named = to >= 0
    if draw(st.booleans()):
        to[~named] = 1
    there = VocabMap(teacher, student, to, named)
    return (
        there,
        draw(st.integers(1, len(teacher))),
        draw(st.sampled_from([1.0, 2.0, 5.0])),
        draw(st.integers(0, 99)),
    )


@given(problems())
@settings(deadline=None)
def test_dense_rows_add_up(problem):
    there, _, temperature, seed = problem
    rows = dense_rows(np.random.default_rng(seed), 5, len(there)).at(temperature)
    mapped = there.apply(rows)
    assert mapped.ids is None
    assert mapped.logp.dtype == mapped.tail.dtype == np.float32
    assert mapped.logp.shape == (5, len(there.student))
    np.testing.assert_allclose(
        read_back(mapped), one_by_one(rows, there.to, len(there.student)), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(mass(mapped), 1, atol=1e-5)
    np.testing.assert_allclose(np.exp(mapped.dense()).sum(1), 1, atol=1e-4)


@given(problems())
@settings(deadline=None)
def test_pruned_rows_add_up(problem):
    there, k, temperature, seed = problem
    rows = sparse_rows(np.random.default_rng(seed), k, 5, len(there)).at(temperature)
    mapped = there.apply(rows)
    expected = one_by_one(rows, there.to, len(there.student))
    if there._filler_id is not None:  # its share of what the row left out
        left = len(there) - k
        inside = np.isin(rows.ids, np.flatnonzero(there.to == there._filler_id)).sum(1)
        share = ((there.to == there._filler_id).sum() - inside) / max(left, 1)
        moved = share * np.exp(rows.tail)
        expected[:, there._filler_id] += moved
        expected[:, -1] -= moved
    np.testing.assert_allclose(read_back(mapped), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mass(mapped), 1, atol=1e-5)
    np.testing.assert_allclose(np.exp(mapped.dense()).sum(1), 1, atol=1e-4)
    if mapped.ids is not None:
        real = mapped.logp > NOTHING
        assert (np.diff(mapped.logp, axis=1) <= 0).all(), "best first"
        for ids, logp, there_is in zip(mapped.ids, mapped.logp, real, strict=True):
            assert len(set(ids[there_is])) == there_is.sum(), "every class once"
            assert (ids[~there_is] == ids[0]).all()
            assert (logp[~there_is] == NOTHING).all()


def test_a_tiny_mass_added_to_a_large_one_is_kept():
    logp = np.array([[0.0, -3000.0, -3001.0, -9000.0] + [-9000.0] * 4], np.float32)
    rows = Tempered(V, 1.0, logp, None, np.full(1, NOTHING, np.float32))
    student = TokenTable(("<blk>", "a", "c"), 0, (("b", 1),))
    mapped = VocabMap.by_token(TEACHER, student).apply(rows)
    assert mapped.logp[0, 1] == pytest.approx(-3000 + np.log1p(np.exp(-1)), abs=1e-3)
    pruned = Tempered(V, 1.0, logp[:, :3], np.array([[0, 1, 2]], np.int32), rows.tail)
    assert VocabMap.by_token(TEACHER, student).apply(pruned).logp[0, 1] == mapped.logp[0, 1]


def test_a_pruned_row_without_any_class_of_the_student():
    rows = Tempered(
        V,
        1.0,
        np.log([[0.6, 0.3]]).astype(np.float32),
        np.array([[5, 6]], np.int32),
        np.log([0.1]).astype("f4"),
    )
    mapped = VocabMap.by_token(TEACHER, REDUCED).apply(rows)
    assert mapped.tail == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(np.exp(mapped.dense()), 0.25, atol=1e-5)


def test_rows_of_another_width_are_refused():
    there = VocabMap.by_token(TEACHER, REDUCED)
    with pytest.raises(VocabError, match="rows of 9 classes for a map from 8"):
        there.apply(dense_rows(np.random.default_rng(0), classes=9).at())


def test_large_batches_are_mapped_in_blocks(monkeypatch):
    rows = dense_rows(np.random.default_rng(0)).at(2.0)
    there = VocabMap.by_token(TEACHER, REDUCED)
    whole = there.apply(rows)
    monkeypatch.setattr("logitstore.targets.vocab_map.BLOCK", 15)
    np.testing.assert_array_equal(there.apply(rows).tail, whole.tail)


@pytest.mark.parametrize("student", [REDUCED, FILLED])
@pytest.mark.parametrize("method", ["linear", "nearest"])
def test_mapping_and_resampling_dense_rows_commute(student, method):
    there = VocabMap.by_token(TEACHER, student, missing="tail")
    rows = dense_rows(np.random.default_rng(3), 11)
    after = there.apply(resample(rows, (11, V), 7, method=method, temperature=2.0))
    merged = there.apply(rows.at(2.0))  # dense rows of the student's own, mixed once they are mapped

    class First(Rows):
        classes = len(student)

        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows.logp)

        def take(self, i):
            return First(Tempered(self.classes, 2.0, self.rows.logp[i], None, self.rows.tail[i]))

        def at(self, temperature):
            return self.rows

    before = resample(First(merged), (11, len(student)), 7, method=method, temperature=2.0)
    np.testing.assert_allclose(np.exp(before.logp), np.exp(after.logp), atol=1e-6)
    np.testing.assert_allclose(np.exp(before.tail), np.exp(after.tail), atol=1e-6)


# --- labels -----------------------------------------------------------------------------------------------


def test_labels():
    there = VocabMap.by_token(TEACHER, REDUCED)
    assert there.labels([1, 4, 2]).tolist() == [3, 0, 1]
    assert there.labels(np.zeros(0, np.int32)).shape == (0,)
    with pytest.raises(TokenError, match="the label 'c' is not in"):
        there.labels([1, 3])
    with pytest.raises(TokenError, match="label 8 is outside"):
        there.labels([8])
    assert VocabMap.by_token(TEACHER, FILLED, missing="filler").labels([3]).tolist() == [1]


# --- through a store --------------------------------------------------------------------------------------


def make(path, encoding, labels=(1, 4), table=TEACHER):
    rng = np.random.default_rng(7)
    streams = {"ctc": encoding, "rnnt": encoding}
    with StoreWriter.open(path, tokens=table, streams=streams) as w:
        for i, t in enumerate((9, 12, 5)):
            w.add(
                f"u{i}",
                ctc=(rng.normal(size=(t, len(table))) * 5).astype("f4"),
                rnnt=(rng.normal(size=(t, len(labels) + 1, len(table))) * 5).astype("f4"),
                labels=labels,
            )
    return path


@pytest.mark.parametrize("encoding", ["dense", "topk:3", f"topk:{V}"])
@pytest.mark.parametrize("missing", ["tail", "filler"])
def test_a_mapped_store_gives_the_students_classes(tmp_path, encoding, missing):
    path = make(tmp_path / "s", encoding, labels=(2, 4))
    there = VocabMap.by_token(TEACHER, FILLED, missing=missing)
    plain, store = open_store(path), open_store(path, vocab=there)
    target = store["u1"]
    assert target.labels.tolist() == [3, 2]
    assert target["ctc"].classes == 4
    assert target.shapes == {"ctc": (12, 4), "rnnt": (12, 3, 4)}
    ctc = target.log_probs("ctc", 2.0)
    np.testing.assert_array_equal(ctc, there.apply(plain["u1"]["ctc"].at(2.0)).dense())
    np.testing.assert_allclose(np.exp(target.log_probs("rnnt", 2.0)).sum(-1), 1, atol=1e-4)
    batch = store.batch(["u0", "u1"], temperature=2.0)
    assert batch["ctc"].classes == 4
    assert batch.labels.tolist() == [[3, 2], [3, 2]]
    torch.testing.assert_close(batch["ctc"].dense()[1], torch.from_numpy(ctc), atol=1e-5, rtol=1e-5)
    sums = batch["rnnt"].dense().exp().sum(-1)[batch["rnnt"].mask]
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)
    late = collate_targets([plain["u0"], plain["u1"]], temperature=2.0, vocab=there)
    torch.testing.assert_close(late["rnnt"].logp, batch["rnnt"].logp)
    assert late.labels.equal(batch.labels)
    fewer = store.batch(["u0", "u1"], frames=[4, 6], temperature=2.0)
    sums = fewer["ctc"].dense().exp().sum(-1)[fewer.mask]
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0)


def test_a_mapped_store_pickles(tmp_path):
    store = open_store(make(tmp_path / "s", "topk:3", labels=()), vocab=VocabMap.by_token(TEACHER, REDUCED))
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again["u0"].log_probs("ctc"), store["u0"].log_probs("ctc"))


def test_a_map_from_another_table_is_refused(tmp_path):
    path = make(tmp_path / "s", "dense", labels=())
    with pytest.raises(VocabError, match="the map's teacher 8; they differ first at id 0"):
        open_store(path, vocab=VocabMap.by_token(RESORTED, REDUCED))


def test_a_label_that_the_student_lacks_names_utterance_and_token(tmp_path):
    path = make(tmp_path / "s", "dense", labels=(3,))
    store = open_store(path, vocab=VocabMap.by_token(TEACHER, REDUCED))
    with pytest.raises(TokenError, match="u0: the label 'c' is not in the student's token table"):
        store["u0"]


def frame_of(rows):
    return Resampled(rows, (1,), np.ones(1, bool))


def test_utterances_that_mix_to_different_widths_share_a_batch():
    """Mixing rows of a small table may make some of them complete."""
    full = Tempered(3, 1.0, np.log([[0.5, 0.3, 0.2]]).astype("f4"), None, np.full(1, NOTHING, "f4"))
    part = Tempered(
        3, 1.0, np.log([[0.6, 0.3]]).astype("f4"), np.array([[2, 0]], "i4"), np.log([0.1]).astype("f4")
    )
    batch = _pad([frame_of(full), frame_of(part)])
    expected = torch.tensor([[[0.5, 0.3, 0.2]], [[0.3, 0.1, 0.6]]])
    torch.testing.assert_close(batch.dense().exp(), expected)


def test_a_batch_of_rows_with_every_class_kept_beside_a_tail():
    row = Tempered(
        2, 1.0, np.log([[0.3, 0.1]]).astype("f4"), np.array([[1, 0]], "i4"), np.log([0.6]).astype("f4")
    )
    torch.testing.assert_close(_pad([frame_of(row)]).dense().exp(), torch.tensor([[[0.25, 0.75]]]))
    np.testing.assert_allclose(np.exp(row.dense()), [[0.25, 0.75]], atol=1e-6)


def test_a_second_map_is_refused(tmp_path):
    """Between tables of one size, a second mapping would fit and turn every token into another."""
    there = VocabMap.by_token(TEACHER, RESORTED)
    store = open_store(make(tmp_path / "s", "dense", labels=()), vocab=there)
    with pytest.raises(UsageError, match="u0: these rows are already mapped"):
        collate_targets([store["u0"]], vocab=there)


# --- the accident -----------------------------------------------------------------------------------------


def greedy(log_probs, table):
    """Tokens of the best path: repeats joined, blanks left out."""
    best = log_probs.argmax(-1)
    best = best[np.insert(best[1:] != best[:-1], 0, True)]
    return [table[int(i)] for i in best if i != table.blank]


def test_a_resorted_reduced_table_of_a_wake_word_system(tmp_path):
    """A re-sorted reduced dictionary has ids that all exist in the full one, and mean other tokens there."""
    spoken = ["n", "i3", "h", "ao3", "x", "iao3", "w", "en4"]
    others = [f"{a}{b}" for a in ("ai", "ang", "en", "ing", "uo") for b in "1234" if f"{a}{b}" != "en4"]
    full = tmp_path / "full" / "dict.txt"
    small = tmp_path / "small" / "dict.txt"
    for path in (full, small):
        path.parent.mkdir()
    tokens = ["sil", "<eps>", *sorted([*others, *spoken])]
    full.write_text("".join(f"{t} {i}\n" for i, t in enumerate(tokens)), "utf-8")
    small.write_text(
        "# only what the keyword needs\n<eps> -1\nsil 0\n<filler> 1\n"
        + "".join(f"{t} {i + 2}\n" for i, t in enumerate(sorted(spoken)))
    )
    teacher, student = read_table(full, blank=0), read_table(small, blank=0)
    rng = np.random.default_rng(5)
    said = [t for token in spoken for t in (token, token, "sil")]
    logits = rng.normal(size=(len(said), len(teacher)))
    logits[np.arange(len(said)), [teacher.id(t) for t in said]] += 6
    logits[4, teacher.id("ang2")] = 12  # one frame the student has no class for
    with StoreWriter.open(tmp_path / "s", tokens=teacher, streams={"ctc": "dense"}) as w:
        w.add("u", ctc=logits.astype("f4"))

    with pytest.raises(VocabError) as caught:
        open_store(tmp_path / "s", vocab=student)
    message = str(caught.value)
    assert f"the store has {len(teacher)} tokens, the student 10" in message
    assert "differ first at id 1: '<eps>' against '<filler>'" in message
    assert "reduced table" in message
    assert "under another id" in message

    stored = open_store(tmp_path / "s")["u"].log_probs("ctc")
    wrong = greedy(stored[:, : len(student)], student)  # what training without a word of warning would do
    assert wrong != spoken

    store = open_store(tmp_path / "s", vocab=VocabMap.by_token(teacher, student))
    columns = [teacher.id(t) if t in teacher else None for t in student.tokens]
    restricted = np.stack(
        [stored[:, c] if c is not None else np.full(len(said), -np.inf) for c in columns], 1
    )
    assert greedy(store["u"].log_probs("ctc"), student) == greedy(restricted, student)
    assert greedy(store["u"].log_probs("ctc"), student) == spoken

    filled = open_store(tmp_path / "s", vocab=VocabMap.by_token(teacher, student, missing="filler"))
    assert greedy(filled["u"].log_probs("ctc"), student) == [*spoken[:1], "i3", "<filler>", *spoken[2:]]
