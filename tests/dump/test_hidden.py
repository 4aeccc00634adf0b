"""A layer's own numbers, through every story: the demo teacher's blocks, as its user names them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from logitstore import StoreWriter, Tap, VocabMap, open_store
from logitstore.cli import main
from logitstore.dump.against import against_teacher
from logitstore.encodings import parse_encoding
from logitstore.errors import (
    CorruptError,
    FormatError,
    IdentityError,
    LengthError,
    NonFinite,
    TapError,
    TapPathError,
    TeacherError,
    UsageError,
)
from logitstore.losses import hidden_kd, joint_kd
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import by_length, load
from logitstore.schema.spec import Head
from logitstore.store.diff import diff_stores
from logitstore.store.inspect import inspect_store, inspect_utterance
from logitstore.store.rewrite import compact_store, convert_store
from logitstore.store.verify import check_record, verify_store
from logitstore.targets.clip import Clip
from logitstore.teachers.layers import parse_layer, with_layers
from logitstore.testing import vectors
from logitstore.tokens.table import TokenTable
from tests.support import demo
from tests.support.dumping import run as run_dump
from tests.support.dumping import same_tree

LAYERS = [Head("hidden", "encoder.norm", 0), Head("hidden_2", "encoder.blocks.1", 0)]
BOTH = {"ctc": "dense", "hidden": "vectors", "hidden_2": "vectors:int8"}
ENCODINGS = {"vectors": 2.0**-11, "vectors:int8": 1 / 254}


def teacher(*layers):
    return with_layers(demo.teacher(), layers or LAYERS)


def run(out, limit=0, streams=BOTH, **options):
    return run_dump(out, limit, streams, **{"teacher": teacher(), **options})


@pytest.fixture(scope="module")
def own():
    """What the layers gave, by a hook of one's own: id -> {path: (T, D)}."""
    said, caught = {}, {}
    model = demo.teacher().model
    handles = [
        model.get_submodule(h.module).register_forward_hook(lambda m, a, x, p=h.module: caught.update({p: x}))
        for h in LAYERS
    ]
    utterances = list(demo.manifest())
    for number in range(0, len(utterances), 6):
        for batch in by_length(utterances[number : number + 6], 10.0, None):
            loaded = [load(u, demo.teacher(), demo.teacher().tokens(), True) for u in batch]
            lengths = torch.tensor([len(x.features) for x in loaded])
            features = nn.utils.rnn.pad_sequence([x.features for x in loaded], batch_first=True)
            with torch.inference_mode():
                _, lens = model.forward_encoder(features, lengths)
            for b, item in enumerate(loaded):
                said[item.utt.id] = {p: x[b, : lens[b]].clone().numpy() for p, x in caught.items()}
    for handle in handles:
        handle.remove()
    return said


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("hidden") / "s"
    run(out)
    return out


@pytest.mark.parametrize("check", vectors.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_conformance(encoding, check):
    check(parse_encoding(encoding), ENCODINGS[encoding])


def test_a_store_holds_what_the_layers_gave(store, own):
    opened = open_store(store)
    assert [(s.name, s.kind, s.width, s.classes) for s in opened.spec.streams] == [
        ("ctc", "ctc", 0, 150),
        ("hidden", "hidden", 128, 150),
        ("hidden_2", "hidden", 128, 150),
    ]
    assert [h.module for h in opened.spec.teacher.heads][-2:] == ["encoder.norm", "encoder.blocks.1"]
    for utt_id, layers in own.items():
        target = opened[utt_id]
        for head, encoding in zip(LAYERS, ENCODINGS, strict=True):
            x = layers[head.module]
            assert target.shapes[head.stream] == x.shape == (target.T, 128)
            bound = ENCODINGS[encoding] * np.abs(x).max(1, keepdims=True) + 1e-6
            assert (np.abs(target.vectors(head.stream) - x) <= bound).all()


def test_by_the_command_line(own, tmp_path, capsys):
    def dump(*more):
        args = ["dump", "--teacher", demo.FACTORY, "--manifest", demo.MANIFEST, "--out", tmp_path / "s"]
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in (*args, "--limit", "4", *more)])
        return e.value.code, capsys.readouterr()

    assert dump("--hidden", "encoder.norm")[0] == 0
    opened = open_store(tmp_path / "s")
    assert [str(s.encoding) for s in opened.spec.streams] == ["vectors"]
    far = np.abs(opened["demo-00"].vectors() - own["demo-00"]["encoder.norm"])
    assert far.max() < 0.01
    code, said = dump("--hidden", "encoder.blocks.1")
    assert code == 1
    assert '"encoder.norm"' in said.err
    assert '"encoder.blocks.1"' in said.err
    for name in ("s", "s demo-00"):
        store, *rest = name.split()
        with pytest.raises(SystemExit) as e:
            main(["inspect", str(tmp_path / store), *rest])
        assert e.value.code == 0
        assert "vectors" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e:
        args = ["verify", tmp_path / "s", "--against-teacher", demo.FACTORY, "2", "--manifest", demo.MANIFEST]
        main(list(map(str, args)))
    assert e.value.code == 0
    assert "relative squared error" in capsys.readouterr().out


def test_another_layer_or_width_is_another_store(store, tmp_path):
    run(tmp_path / "s", 2, {"hidden": "vectors"}, teacher=teacher(LAYERS[0]))
    with pytest.raises(IdentityError, match=r"heads\[2\].module"):
        run(
            tmp_path / "s",
            4,
            {"hidden": "vectors"},
            teacher=teacher(replace(LAYERS[0], module="encoder.blocks.0")),
        )
    with pytest.raises(IdentityError, match="encoding"):
        run(tmp_path / "s", 4, {"hidden": "vectors:int8"}, teacher=teacher(LAYERS[0]))
    assert run(tmp_path / "s", 4, {"hidden": "vectors"}, teacher=teacher(LAYERS[0])).done == 2
    with pytest.raises(LengthError, match="128 numbers a row, the store 127"):
        run(tmp_path / "t", 4, {"hidden": "vectors/127"}, teacher=teacher(LAYERS[0]))


def test_stories(store, tmp_path):
    assert not verify_store(store).findings
    convert_store(store, tmp_path / "tar", "webdataset")
    convert_store(tmp_path / "tar", tmp_path / "zarr", "zarr")
    assert same_tree(store, tmp_path / "zarr")
    assert compact_store(tmp_path / "tar", "100").merged == 4
    assert diff_stores(open_store(store), open_store(tmp_path / "tar")).same
    run(tmp_path / "half", streams={**BOTH, "hidden": "vectors:int8"})
    found = diff_stores(open_store(store), open_store(tmp_path / "half"))
    assert not found.same
    assert 0 < found.largest["hidden"] < 0.05
    assert found.largest["hidden_2"] == 0
    assert set(found.kl) == {"ctc"}
    close = diff_stores(open_store(store), open_store(tmp_path / "half"), tolerance=0.05)
    assert not close.differing
    for c in against_teacher(open_store(store), demo.teacher(), demo.manifest(), 3):
        assert not c.note
        assert c.kl < 1e-5
        assert c.lost < 3e-4


def test_another_teacher_is_told_apart(tmp_path):
    run(tmp_path / "s", 3, {"hidden": "vectors"}, teacher=teacher(LAYERS[0]))
    with demo.poisoned("encoder.norm", 100.0):
        found = against_teacher(open_store(tmp_path / "s"), demo.teacher(), demo.manifest(3), 3)
    assert max(c.kl for c in found) > 1e-3


def test_resampled_along_frames(store, own):
    opened, ids = open_store(store), ["demo-00", "demo-01"]
    x = [own[i]["encoder.norm"] for i in ids]
    t = [len(rows) for rows in x]
    same = opened.batch(ids, streams=["hidden"])["hidden"]
    assert same.mask.sum(1).tolist() == t
    assert (same.h[1, t[1] :] == 0).all()
    assert np.abs(same.h[1, : t[1]].numpy() - x[1]).max() < 0.01
    halves = [n // 2 for n in t]
    linear = opened.batch(ids, streams=["hidden"], frames=halves)["hidden"]
    for b, (rows, n) in enumerate(zip(x, halves, strict=True)):
        at = (2 * np.arange(n) + 1) * len(rows) / (2 * n) - 0.5
        want = np.stack([np.interp(at, np.arange(len(rows)), rows[:, d]) for d in range(128)], 1)
        assert np.abs(linear.h[b, :n].numpy() - want).max() < 0.01
        assert not linear.mask[b, n:].any()
    near = opened.batch(ids, streams=["hidden"], frames=[2 * n for n in t], method="nearest")["hidden"]
    assert torch.equal(near.h[0, : 2 * t[0] : 2], same.h[0, : t[0]])
    stack = opened.batch(ids, streams=["hidden"], method="stack:3")["hidden"]
    assert stack.h.shape == (2, -(-max(t) // 3), 3, 128)
    assert torch.equal(stack.h[0].flatten(0, 1)[: t[0]], same.h[0, : t[0]])
    assert stack.mask.sum((1, 2)).tolist() == t
    late = opened.batch(ids, streams=["hidden"], method="linear+shift=2")["hidden"]
    assert torch.equal(late.h[0, 2 : t[0]], same.h[0, : t[0] - 2])
    assert not late.mask[0, :2].any()
    for method in ("linear-logit", "max-nonblank"):
        with pytest.raises(UsageError, match=f"{method} of 'hidden'"):
            opened.batch(ids, streams=["hidden"], method=method)
    with pytest.raises(LengthError, match="demo-00"):
        opened.batch(ids, streams=["hidden"], frames=[0, 0])


def test_clips_of_it_are_its_frames_and_nothing_in_silence(store):
    opened, utt_id = open_store(store), "demo-00"
    whole = opened.batch([utt_id], streams=["hidden"])["hidden"].h[0]
    shift = opened.spec.teacher.frame_shift / opened.spec.teacher.sample_rate
    clips = [
        Clip(utt_id).pad(before=10 * shift),
        Clip(utt_id).crop(start=20 * shift, duration=30 * shift),
    ]
    batch = opened.batch(clips, streams=["hidden"], method="nearest")["hidden"]
    assert not batch.mask[0, :10].any()
    assert (batch.h[0, :10] == 0).all()
    assert torch.equal(batch.h[0, 10 : 10 + len(whole)], whole)
    assert torch.equal(batch.h[1, :30], whole[20:50])
    assert batch.mask.sum(1).tolist() == [len(whole), 30]
    stacked = opened.batch(clips[1:], streams=["hidden"], method="stack:3")["hidden"]
    assert torch.equal(stacked.h[0].flatten(0, 1), whole[20:50])


def test_neither_maps_nor_temperatures_touch_it(store):
    table = demo.teacher().tokens()
    student = TokenTable((*reversed(table.tokens),), len(table) - 1)
    mapped, plain = open_store(store, vocab=VocabMap.by_token(table, student)), open_store(store)
    assert np.array_equal(mapped["demo-00"].vectors(), plain["demo-00"].vectors())
    assert mapped["demo-00"].shapes == plain["demo-00"].shapes
    batch = mapped.batch(["demo-00", "demo-01"], temperature=4.0)
    assert torch.equal(batch["hidden"].h, plain.batch(["demo-00", "demo-01"])["hidden"].h)
    assert batch["ctc"].temperature == 4.0
    with pytest.raises(UsageError, match="hidden has no classes"):
        plain["demo-00"]["hidden"]
    with pytest.raises(UsageError, match="ctc has classes"):
        plain["demo-00"].vectors("ctc")


def test_losses_take_the_batch(store):
    batch = open_store(store).batch(["demo-00", "demo-01", "demo-02"])
    stream = batch["hidden"]
    assert float(hidden_kd(stream.h, stream)) == 0
    student = torch.randn(stream.h.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = hidden_kd(student, stream)
    rows = (student - stream.h).square().mean(-1)[stream.mask]
    assert torch.allclose(loss, rows.mean())
    assert torch.allclose(loss, hidden_kd(student, stream.h, stream.mask))
    some = stream.mask.clone()
    some[:, 5:] = False
    assert torch.allclose(hidden_kd(student, stream, some), hidden_kd(student, stream.h, some & stream.mask))
    with pytest.raises(UsageError, match="no mask"):
        hidden_kd(student, stream.h)
    ctc = torch.zeros(*batch.mask.shape, 150)
    joint = joint_kd(
        batch,
        logits={"ctc": ctc, "hidden": student, "hidden_2": student},
        lambdas={"hidden_2_kd": 0.25},
        temperature=1.0,
    )
    assert torch.allclose(joint.parts["hidden_kd"], loss)
    joint.backward()
    assert (student.grad[~stream.mask] == 0).all()
    moved = batch.to("cpu").map(lambda x: x.clone())
    assert torch.equal(moved["hidden"].h, stream.h)


def test_inspect(store, own):
    about = inspect_store(open_store(store)).streams["hidden_2"]
    every = np.concatenate([x["encoder.blocks.1"] for x in own.values()])
    assert about.shape == "(T, 128)"
    assert about.rms == pytest.approx(np.sqrt((every.astype(float) ** 2).mean()), rel=1e-2)
    assert about.bytes_per_row == 132
    assert about.entropy is about.error_rate is None
    shown = inspect_utterance(open_store(store), "demo-00").streams["hidden"]
    assert len(shown.rms) == shown.shape[0] == len(own["demo-00"]["encoder.norm"])


def test_in_ones_own_loop(own, tmp_path):
    table = demo.teacher().tokens()
    with pytest.raises(UsageError, match="vectors/256"):
        StoreWriter.open(tmp_path / "s", tokens=table, streams={"hidden": "vectors"})
    with StoreWriter.open(tmp_path / "s", tokens=table, streams={"hidden": "vectors:int8/128"}) as w:
        for utt_id, x in own.items():
            w.add(utt_id, hidden=x["encoder.norm"])
        with pytest.raises(LengthError, match=r"hidden numbers of shape \(1, 2, 128\), not \(T, D\)"):
            w.add("axes", hidden=torch.zeros(1, 2, 128))
        with pytest.raises(LengthError, match="96 numbers a row, the store 128"):
            w.add("width", hidden=torch.zeros(2, 96))
        for bad in (torch.nan, torch.inf):
            with pytest.raises(NonFinite, match="hidden holds"):
                w.add("nan", hidden=torch.full((2, 128), bad))
        w.add("large", hidden=torch.full((2, 128), 1e30))
    opened = open_store(tmp_path / "s")
    assert opened["large"].vectors().max() == pytest.approx(1e30, rel=1e-3)
    assert opened["demo-00"].vectors().shape == own["demo-00"]["encoder.norm"].shape
    with StoreWriter.open(tmp_path / "half", tokens=table, streams={"hidden": "vectors/4"}) as w:
        with pytest.raises(NonFinite, match="beyond float16"):
            w.add("large", hidden=torch.full((2, 4), 1e5))
        w.add("good", hidden=torch.full((2, 4), 6e4))
    assert open_store(tmp_path / "half")["good"].vectors().max() == pytest.approx(6e4, rel=1e-3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(value, tmp_path):
    with demo.poisoned("encoder.norm", value), pytest.raises(NonFinite, match=rf"hidden holds {value}"):
        run(tmp_path / "s", streams={"hidden": "vectors"})


def test_a_layer_that_does_not_hear(tmp_path):
    module = demo.teacher().model.encoder.norm
    handle = module.register_forward_hook(lambda m, a, x: torch.ones_like(x) * torch.arange(128))
    try:
        with pytest.raises(TeacherError, match="hidden branch is constant"):
            run(tmp_path / "s", streams={"hidden": "vectors"})
    finally:
        handle.remove()


def test_a_layer_that_padding_leaks_into(tmp_path):
    module = demo.teacher().model.encoder.norm
    handle = module.register_forward_hook(lambda m, a, x: x + x.mean((0, 1)))
    try:
        with pytest.raises(TeacherError, match="in a padded batch its numbers differ"):
            run(tmp_path / "s", streams={"hidden": "vectors"})
    finally:
        handle.remove()


class Alone(demo.Spoiled):
    """Encodes each utterance by itself, as most framework teachers do."""

    def __init__(self):
        super().__init__(forward=self._forward)

    @staticmethod
    def _forward(teacher, features, lengths):
        each = [teacher.forward(f[None, :n], n[None]) for f, n in zip(features, lengths, strict=True)]
        pad = nn.utils.rnn.pad_sequence
        encoded = pad([x.encoder_out[0] for x in each], batch_first=True)
        return replace(each[0], encoder_out=encoded, lens=torch.cat([x.lens for x in each]))


def test_layers_of_utterances_encoded_one_by_one(own, tmp_path):
    run(tmp_path / "s", 8, {"hidden": "vectors"}, teacher=with_layers(Alone(), LAYERS))
    opened = open_store(tmp_path / "s")
    for utt_id in opened:
        assert np.abs(opened[utt_id].vectors() - own[utt_id]["encoder.norm"]).max() < 0.01


@pytest.mark.parametrize(
    ("layer", "error", "said"),
    [
        (Head("hidden", "encoder.first", 0, "BVT"), LengthError, "frames where the teacher has"),
        (Head("hidden", "encoder.first", 0), LengthError, "hidden gives .* frames|for a batch"),
        (Head("hidden", "encoder.blocks.9", 0), TapPathError, "no module '9'"),
        (Head("hidden", "encoder", 0), TapError, r"number to the path: \[0\], \[1\]"),
        (Head("hidden", "decoder", 0), TeacherError, "did not run"),
    ],
)
def test_layers_that_cannot_be_taken(layer, error, said, tmp_path):
    with pytest.raises(error, match=said):
        run(tmp_path / "s", streams={"ctc": "dense", "hidden": "vectors"}, teacher=teacher(layer))


def test_a_part_of_a_tuple_and_a_layout(own):
    for layer in (Head("hidden", "encoder[0]", 0), Head("hidden", "encoder.blocks.1.conv", 0, "BVT")):
        driver = TeacherDriver(teacher(layer), demo.teacher().tokens(), ["hidden"], "cpu")
        items = [load(u, demo.teacher(), driver.table, False) for u in demo.manifest(3)]
        for output in driver.run(items):
            assert output.rows["hidden"].shape == (output.T, 128)
            if layer.module == "encoder[0]":
                x = own[output.loaded.utt.id]["encoder.norm"]
                assert np.abs(output.rows["hidden"].numpy() - x).max() < 1e-3
    model = nn.Sequential(nn.GRU(3, 4, batch_first=True)).eval()
    with Tap(model, {"h": "0[0]"}) as tap:
        x, _ = model(torch.ones(2, 5, 3))
        assert torch.equal(tap.take("h"), x)


def test_how_a_layer_is_named():
    assert parse_layer("encoder.layers.3", 0) == Head("hidden", "encoder.layers.3", 0)
    assert parse_layer("hidden_top=encoder[0]:BVT", 2) == Head("hidden_top", "encoder[0]", 2, "BVT")
    for wrong, said in (
        ("ctc=x", "ctc is not the name of a hidden stream"),
        ("a:XYZ", "no layout"),
        ("=", "PATH"),
        ("layer_3=x", "no stream"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_layer(wrong, 0)
    with pytest.raises(UsageError, match="hidden names two layers"):
        teacher(LAYERS[0], LAYERS[0])
    for streams, said in (
        ({"hidden": "dense"}, "not for rows of D"),
        ({"hidden": "vectors/x"}, "no width"),
        ({"hidden": "factored"}, "not for rows of D"),
    ):
        with pytest.raises(UsageError, match=said):
            StoreWriter.open("nowhere", tokens=demo.teacher().tokens(), streams=streams)


def test_damage_is_named(store):
    opened = open_store(store)
    row = opened.record_at(opened.shards[0], 0)
    cut = replace(row, arrays={**row.arrays, "hidden.h": row.arrays["hidden.h"][1:]})
    with pytest.raises(FormatError, match=r"hidden has \d+ rows, T = \d+ \(SPEC S7\)"):
        opened.decode(cut)
    h = row.arrays["hidden.h"].copy()
    h[0, 0] = np.nan
    opened.record_at = lambda *_: replace(row, arrays={**row.arrays, "hidden.h": h})
    with pytest.raises(CorruptError, match="S14"):
        check_record(opened, opened.shards[0], 0)
