"""Capture of transducers whose program never makes the whole joint, and of joints of every other shape."""

import copy
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from logitstore import StoreWriter, TokenTable, open_store
from logitstore.capture.pieces import split_padded, split_pruned
from logitstore.errors import LengthError, TapError, TapPathError, UsageError, VocabError
from logitstore.runner.checks import self_check
from logitstore.runner.driver import TeacherDriver
from logitstore.runner.loader import load
from logitstore.schema.lattice import Form
from logitstore.tokens.tokenise import Tokeniser
from recipes.demo.decode import collate, read_manifest, rnnt_greedy
from recipes.demo.pieces import Pieces
from tests.support import demo, recipe
from tests.support.captured import loader

GREEDY = [*recipe.DECODE, "--method", "greedy-search"]
SLICE = 1 << 18  # logits that a slice of a lattice holds


def lattice(model, enc, labels):
    """Slices along T of one utterance's whole joint, (t, U+1, V), by the model's own modules."""
    dec = model.joiner.decoder_proj(model.decoder(torch.tensor([[0, *labels]])))
    enc = model.joiner.encoder_proj(enc)
    step = max(1, SLICE // ((len(labels) + 1) * 150))
    return [
        model.joiner(enc[None, t : t + step, None], dec[:, None], project_input=False)[0]
        for t in range(0, len(enc), step)
    ]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """Rows of the same model, batches and labels, dumped in a loop of one's own: both streams, and one."""
    pieces, model = Pieces.read(demo.TOKENS), demo.teacher().model
    utterances = read_manifest(demo.MANIFEST, pieces)
    texts = {line["id"]: line["text"] for line in demo.lines()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stores = {}
    for streams in ({"rnnt": "topk:16"}, {"ctc": "dense", "rnnt": "topk:16"}):
        place = tmp_path_factory.mktemp("hand") / "store"
        with (
            torch.inference_mode(),
            StoreWriter.open(place, tokens=TokenTable.read(demo.TOKENS), streams=streams) as w,
        ):
            for i in range(0, len(utterances), 5):
                enc, lens = model.forward_encoder(*collate(utterances[i : i + 5]))
                logits = model.ctc_output[1](enc)
                for b, u in enumerate(utterances[i : i + 5]):
                    n = int(lens[b])
                    ctc = {"ctc": logits[b, :n]} if "ctc" in streams else {}
                    rnnt = lattice(model, enc[b, :n], u.labels)
                    w.add(u.id, **ctc, rnnt=rnnt, labels=u.labels, text=texts[u.id])
        stores[len(streams)] = recipe.rows(place)
    torch.set_num_threads(threads)
    return stores


@pytest.fixture(scope="module")
def plain():
    """The recipe on its own."""
    return recipe.call(*GREEDY)


def test_the_command_that_probe_prints_makes_the_store_of_a_hand_made_dump(tmp_path, by_hand, plain):
    home = {"PYTHONPATH": str(demo.ROOT)}
    probed = recipe.call(*recipe.PROBE, "--", *GREEDY, cwd=tmp_path, env=home)
    report = probed.stderr.decode()
    assert "lattices joiner: capture runs this joiner, by icefall's convention, on encoder; " in report
    command = recipe.printed(probed.stderr)
    assert command[3:8] == ["capture", "--joiner", "joiner", "--encoder", "encoder"]
    assert 'modules["encoder"][1]' in command
    ran = recipe.call(*command, cwd=tmp_path, env=home)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == plain.stdout
    assert b"logitstore: labels: the batch's texts" in ran.stderr
    assert recipe.rows(tmp_path / "store") == by_hand[1]
    head = open_store(tmp_path / "store").spec.teacher.heads[0]
    assert (head.stream, head.module, head.normalised) == ("rnnt", "joiner.output_linear", False)


def test_both_branches_of_a_recipe_that_decodes_with_one(tmp_path, by_hand):
    ran = recipe.capture(
        tmp_path / "s", "--ctc", "ctc_output.1", "--joiner", "joiner", "--tokens", demo.TOKENS
    )
    assert ran.returncode == 0, ran.stderr
    assert b"%WER 2.82%" in ran.stdout
    assert recipe.rows(tmp_path / "s") == by_hand[2]


DRAWS = """
import sys, torch
from pathlib import Path
sys.path[:0] = [{root!r}, {folder!r}]
from asr_datamodule import test_dataloader
from decode import load_model
from recipes.demo.decode import rnnt_greedy

model = load_model(Path({root!r}) / "recipes" / "demo")
torch.manual_seed(7)
torch.set_num_threads(1)
with torch.no_grad():
    for batch in test_dataloader(Path({root!r}) / "manifests" / "demo.jsonl", 5, 0):
        enc, lens = model.forward_encoder(batch["inputs"], batch["supervisions"]["num_frames"])
        noise = torch.randn(len(enc))
        print([rnnt_greedy(model, e[:n]) for e, n in zip(enc, lens)], enc.sum().item(), noise.tolist())
"""


def test_texts_are_tokenised_with_the_token_table_alone():
    table = TokenTable.read(demo.TOKENS)
    own = demo.teacher().labels
    for line in demo.lines():
        assert Tokeniser(table).labels(line["text"]) == own(line["text"])
    assert Tokeniser(table).how == "by byte pairs"
    letters = Tokeniser(TokenTable(("<blk>", "<space>", "a", "b", "ab"), 0))
    assert (letters.labels("ab a"), letters.how) == ([4, 1, 2], "by byte pairs")
    unigram = Tokeniser(TokenTable(("<blk>", "▁ab", "▁", "a", "b"), 0))
    assert (unigram.labels("ab ba"), unigram.how) == ([1, 2, 4, 3], "by the longest tokens that fit")
    for text in ("é", "<blk>"):
        with pytest.raises(ValueError, match="does not tokenise"):
            unigram.labels(text)


def test_outputs_and_random_numbers_of_a_recipe_stay_the_same(tmp_path):
    script = tmp_path / "x.py"
    script.write_text(DRAWS.format(root=str(demo.ROOT), folder=str(recipe.FOLDER)))
    plain = recipe.call(sys.executable, script)
    ran = recipe.capture(tmp_path / "s", "--joiner", "joiner", "--greedy", command=[sys.executable, script])
    assert ran.returncode == 0, ran.stderr
    assert plain.stdout == ran.stdout != b""
    assert b"labels: the teacher's own decode" in ran.stderr


@torch.no_grad()
def search(program, batches):
    """A program that decodes with the transducer: encoder once a batch, joiner once a step."""
    said = {}
    for batch in batches:
        enc, lens = program.forward_encoder(batch["feats"], batch["feats_lengths"])
        for b, utt_id in enumerate(batch["utt_ids"]):
            said[utt_id] = rnnt_greedy(program, enc[b, : lens[b]])
    return said


def check(store, model, utterances, labels=None, lengths=slice(None)):
    """The store holds each utterance's whole joint, as it is beside the others of its batch of three."""
    for i in range(0, len(utterances), 3):
        part = utterances[i : i + 3]
        with torch.no_grad():
            enc, lens = model.forward_encoder(*collate(part))
            for b, u in enumerate(part):
                wanted = labels[u.id] if labels else u.labels
                assert store[u.id].labels.tolist() == wanted
                whole = torch.cat(lattice(model, enc[b, : lens[b]], wanted))
                stored = torch.from_numpy(store[u.id]["rnnt"].logits()).reshape(whole.shape)
                torch.testing.assert_close(stored, whole, atol=2e-2, rtol=1e-3)


DENSE = {"ctc": "", "joiner": "joiner", "streams": {"rnnt": "dense"}}


def test_labels_are_the_greedy_decode_where_there_are_no_texts(session, model, utterances):
    run = session(**DENSE)
    said = search(model, loader(utterances))
    store = run.store()
    check(store, model, utterances, said)
    meta = store.record(utterances[0].id).meta
    assert meta["labels_from"] == "rnnt"
    assert meta["labels_score"] < 0


@pytest.mark.parametrize("form", ["banded:5", "path", "sample:4+occupancy"])
def test_forms_that_read_a_lattice_twice(session, model, utterances, form):
    run = session(**{**DENSE, "streams": {"rnnt": f"topk:8/{form}"}}, greedy=True)
    search(model, loader(utterances[:3]))
    store = run.store()
    assert store.spec.streams[0].form == form
    assert len(store) == 3


def test_labels_by_an_expression(session, model, utterances):
    run = session(**DENSE, encoder="encoder", labels="ys")
    ys = [u.labels for u in utterances[:3]]
    assert len(ys) == 3
    search(model, loader(utterances[:3]))
    check(run.store(), model, utterances[:3])


def with_texts(utterances, texts):
    """A loader whose batches hold texts."""
    return loader(utterances, size=len(utterances), text=texts)


def test_texts_that_cannot_be_tokenised_are_refused(session, model, utterances):
    run = session(**DENSE)
    search(model, with_texts(utterances[:2], ["CAFÉ", "no"]))
    run.close()
    error = run.inside.report.fields["error"]
    assert re.search(
        r"(?s)TokenError.*'CAFÉ' cannot be tokenised.*--bpe FILE.*--labels EXPR.*--greedy", error
    )
    assert not (run.place / "sealed").exists()


def test_texts_by_a_sentencepiece_model(session, model, utterances, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [line["text"] for line in demo.lines()]
    (tmp_path / "text").write_text("\n".join(texts * 5), "utf-8")
    train = sentencepiece.SentencePieceTrainer.train
    options = {"vocab_size": 40, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2}
    train(input=str(tmp_path / "text"), model_prefix=str(tmp_path / "bpe"), **options)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    names = ["<blk>", *pieces, *(f"<{i}>" for i in range(149 - len(pieces)))]  # other ids than the model's
    (tmp_path / "tokens.txt").write_text("".join(f"{t} {i}\n" for i, t in enumerate(names)), "utf-8")
    run = session(**DENSE, tokens=str(tmp_path / "tokens.txt"), bpe=str(tmp_path / "bpe.model"))
    search(model, with_texts(utterances[:2], texts[:2]))
    store = run.store()
    for u, text in zip(utterances, texts[:2], strict=False):
        assert [names[i] for i in store[u.id].labels] == processor.encode(text, out_type=str)


class Foreign(nn.Module):
    """The demo's transducer, spoken to in a way that nobody else has; its encoder gives time first."""

    def __init__(self, model, extra=0):
        super().__init__()
        self.body, self.predictor_net = model.encoder, model.decoder
        self.blend = nn.Module()
        self.blend.a, self.blend.b = model.joiner.encoder_proj, model.joiner.decoder_proj
        self.blend.c = model.joiner.output_linear
        self.blend.forward = lambda a, b: self.blend.c(torch.tanh(a + b))

    def forward_encoder(self, x, lens):
        enc, lens = self.body(x, lens)
        return enc, lens


DRIVE = """
class Blend:
    encoder, width = "body", 128

    def __init__(self, model):
        self.of = model

    def project(self, enc):
        return self.of.blend.a(enc)

    def predict(self, labels, device):
        import torch
        return self.of.blend.b(self.of.predictor_net(torch.tensor([[0, *labels]], device=device))[0])

    def join(self, enc, dec):
        return self.of.blend(enc[:, None], dec[None])

def nothing(model):
    return model
"""


def test_a_joiner_of_an_unknown_framework(session, model, utterances, tmp_path):
    program = Foreign(model).eval()
    (tmp_path / "own_adapter.py").write_text(DRIVE)
    options = {**DENSE, "joiner": "blend", "tokens": ""}
    run = session(**options, labels="ys", joiner_adapter=f"{tmp_path}/own_adapter.py:Blend", encoder="body")
    for part in (utterances[:3], utterances[3:]):
        ys = [u.labels for u in part]
        with torch.no_grad():
            assert len(ys) == 3
            for batch in loader(part):
                program.forward_encoder(batch["feats"], batch["feats_lengths"])
    check(run.store(), model, utterances)


REFUSED = {
    "unknown": (
        {},
        TapError,
        r"(?s)known here fits this joiner \(a 128 \+ b 96 -> 112\).*--joiner-adapter",
    ),
    "not three": ({"joiner_adapter": "own_adapter.py:nothing"}, UsageError, "has no project, predict, join"),
    "no such name": ({"joiner_adapter": "own_adapter.py:Blond"}, UsageError, "Did you mean 'Blend'"),
    "no such file": ({"joiner_adapter": "nowhere.py:Blend"}, UsageError, "is not FILE.py:NAME"),
    "encoder": (
        {"joiner_adapter": "own_adapter.py:Blend", "encoder": "bod"},
        TapPathError,
        "Did you mean 'body'",
    ),
    "width": (
        {"joiner_adapter": "own_adapter.py:Blend", "encoder": "body.first"},
        LengthError,
        "no axis of the joiner's 128",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_models_with_a_joiner_that_cannot_be_run_are_refused(session, model, utterances, tmp_path, name):
    options, error, said = REFUSED[name]
    program = Foreign(model).eval()
    (tmp_path / "own_adapter.py").write_text(DRIVE)
    adapter = {}
    if "joiner_adapter" in options:
        adapter = {"joiner_adapter": f"{tmp_path}/{options['joiner_adapter']}"}
    session(**{**DENSE, "joiner": "blend", **options, **adapter})
    with pytest.raises(error, match=said), torch.no_grad():
        for batch in loader(utterances[:3]):
            program.forward_encoder(batch["feats"], batch["feats_lengths"])


class Turned(nn.Module):
    """The demo's encoder with its axes in another order, as zipformer's and NeMo's have them."""

    def __init__(self, encoder, axes):
        super().__init__()
        self.encoder, self.axes = encoder, axes

    def forward(self, x, lens):
        enc, lens = self.encoder(x, lens)
        return {"out": enc.permute(self.axes)}, lens


@pytest.mark.parametrize(
    ("axes", "options"), [((1, 0, 2), {}), ((0, 2, 1), {}), ((1, 0, 2), {"encoder_layout": "TBD"})]
)
def test_encoder_layouts(session, model, utterances, axes, options):
    run = session(**DENSE, greedy=True, **options)
    reference = {}
    turned = Turned(model.encoder, axes)
    back = tuple(torch.tensor(axes).argsort().tolist())
    model.encoder = turned.eval()

    def encode(x, lens):
        said, lens = model.encoder(x, lens)
        return said["out"].permute(back), lens

    model.forward_encoder = encode
    reference = search(model, loader(utterances))
    store = run.store()
    check(store, model, utterances, reference)


def test_a_joiner_in_training_mode_is_run_in_eval_mode_with_a_note(session, model, utterances):
    run = session(**DENSE, greedy=True)
    model.decoder = nn.Sequential(model.decoder, nn.Dropout(0.5))
    model.decoder.blank_id = 0
    model.decoder.train()
    with torch.no_grad():
        for batch in loader(utterances[:3]):
            model.forward_encoder(batch["feats"], batch["feats_lengths"])
    assert model.decoder[1].training
    assert "5 modules that the program left in training mode" in run.inside.report.fields["notes"]["eval"]
    store = run.store()
    model.decoder = model.decoder[0].eval()
    check(store, model, utterances[:3], {u.id: store[u.id].labels.tolist() for u in utterances[:3]})


def test_a_model_in_training_mode(session, model, utterances):
    session(**DENSE)
    with pytest.raises(TapError, match="training mode"):
        search(model.train(), loader(utterances))


def test_an_encoder_that_runs_in_chunks_is_refused(session, model, utterances):
    session(**DENSE)
    with pytest.raises(TapError, match="ran again in one batch"), torch.no_grad():
        for batch in loader(utterances[:3]):
            for _ in range(2):
                model.forward_encoder(batch["feats"], batch["feats_lengths"])


# -- joints that the recipe makes itself, in other shapes than (B, T, U+1, V) ------------------------------


class Joint(nn.Module):
    """The demo's model as a program that scores references, its joint in the shape that a loss wants."""

    def __init__(self, model, way):
        super().__init__()
        self.model, self.way = model, way
        self.joint = Shaped(model.joiner, way)

    @torch.no_grad()
    def forward(self, batch, labels):
        enc, enc_lens = self.model.forward_encoder(batch["feats"], batch["feats_lengths"])
        y = torch.nn.utils.rnn.pad_sequence([torch.tensor(u) for u in labels], batch_first=True)
        dec = self.model.decoder(pad(y, (1, 0)))
        joiner = self.model.joiner
        enc, dec = joiner.encoder_proj(enc)[:, :, None], joiner.decoder_proj(dec)[:, None]
        if self.way == "packed":
            parts = [
                (e[:n] + d[:, : len(u) + 1]).flatten(0, 1)
                for e, d, n, u in zip(enc, dec, enc_lens, labels, strict=True)
            ]
            return self.joint(torch.cat(parts))
        if self.way == "pruned":
            s_ranges = self.ranges(enc_lens, labels, enc.shape[1])
            picked = torch.stack([d[0][r] for d, r in zip(dec, s_ranges, strict=True)])
            return self.joint(enc + picked)
        if self.way == "fused":
            for at in range(0, len(enc), 2):
                n, u = enc_lens[at : at + 2].max(), max(map(len, labels[at : at + 2]))
                self.joint(enc[at : at + 2, :n] + dec[at : at + 2, :, : u + 1])
            return None
        return self.joint(enc + dec)

    def ranges(self, lens, labels, frames, size=5):
        """(B, T, S) as k2.get_rnnt_prune_ranges gives them: from 0 to U, none left out."""
        rows = []
        for n, u in zip(lens.tolist(), labels, strict=True):
            last = max(len(u) + 1 - size, 0)
            begin = (torch.arange(frames) * last // max(n - 1, 1)).clamp(max=last)
            rows.append(begin[:, None] + torch.arange(size))
        return torch.stack(rows)


class Shaped(nn.Module):
    """What follows the sum of both sides."""

    def __init__(self, joiner, way):
        super().__init__()
        self.out, self.way = joiner.output_linear, way
        if way == "tdt":
            self.durations = nn.Linear(joiner.output_linear.in_features, 4)
        if way == "hat":
            self.blank_pred = nn.LogSigmoid()

    def forward(self, x):
        logits = self.out(torch.tanh(x))
        if self.way == "tdt":
            return torch.cat([logits, self.durations(x)], -1)
        return logits.log_softmax(-1) if self.way == "hat" else logits


def score(program, batches, utterances):
    labels = {u.id: u.labels for u in utterances}
    for batch in batches:
        y = [labels[i] for i in batch["utt_ids"]]
        program(batch, y)


TAPPED = {
    "ctc": "",
    "joiner": "joint",
    "labels": "labels",
    "streams": {"rnnt": "dense"},
    "lengths": "enc_lens",
}


@pytest.mark.parametrize(
    ("way", "options"), [("packed", {}), ("fused", {"accumulate": "b"}), ("tdt", {"durations": 4})]
)
def test_joints_of_other_shapes(session, model, utterances, way, options):
    run = session(**TAPPED, **options)
    score(Joint(model, way).eval(), loader(utterances), utterances)
    check(run.store(), model, utterances)


@pytest.mark.parametrize("options", [{}, {"ranges": "s_ranges"}])
def test_a_pruned_joint_is_stored_with_its_ranges(session, model, utterances, options):
    run = session(**TAPPED, **options)
    program = Joint(model, "pruned").eval()
    score(program, loader(utterances), utterances)
    store = run.store()
    assert store.spec.streams[0].form == "banded:5"
    for i in (0, 3):
        part = utterances[i : i + 3]
        with torch.no_grad():
            enc, lens = model.forward_encoder(*collate(part))
        ranges = program.ranges(lens, [u.labels for u in part], enc.shape[1])
        batch = store.batch([u.id for u in part])
        assert batch["rnnt"].positions.shape == ranges.shape
        for b, u in enumerate(part):
            n = int(lens[b])
            assert torch.equal(batch["rnnt"].positions[b, :n], ranges[b, :n])
            with torch.no_grad():
                wanted = torch.cat(lattice(model, enc[b, :n], u.labels))
            wanted = wanted.gather(1, ranges[b, :n, :, None].expand(-1, -1, 150))
            stored = torch.from_numpy(store[u.id]["rnnt"].logits()).reshape(wanted.shape)
            torch.testing.assert_close(stored, wanted, atol=2e-2, rtol=1e-3)


def test_a_hat_joiner_is_stored_as_log_probabilities_with_a_note(session, model, utterances):
    run = session(**TAPPED)
    score(Joint(model, "hat").eval(), loader(utterances[:3]), utterances)
    store = run.store()
    assert store.spec.teacher.heads[0].normalised
    assert store[utterances[0].id]["rnnt"].logits().max() <= 1e-3
    assert run.inside.report.fields["notes"]["rnnt"].startswith("log-probabilities")


SHAPES = {
    "packed, other lengths": (
        "packed",
        {"lengths": "enc_lens - 1"},
        LengthError,
        "packed rows, but T times U",
    ),
    "packed, no lengths": ("packed", {"lengths": ""}, LengthError, "nothing holds the valid lengths"),
    "other ranges": ("pruned", {"ranges": "[1]"}, LengthError, r"ranges of \(1,\) for a pruned lattice"),
    "fused": ("fused", {}, UsageError, "no ids of 2 utterances"),
    "fused, with ids": ("fused", {"ids": "batch['utt_ids']"}, LengthError, "--accumulate"),
    "durations": ("tdt", {}, VocabError, "gives 154 classes(?s:.*)--durations 4"),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_joints_that_are_refused(session, model, utterances, name):
    way, options, error, said = SHAPES[name]
    run = session(**{**TAPPED, **options})
    with pytest.raises(error, match=said):
        score(Joint(model, way).eval(), loader(utterances), utterances)
    run.close()
    assert not (run.place / "sealed").exists()


def test_a_band_other_than_that_of_the_pruned_joiner_is_refused(session, model, utterances):
    run = session(**{**TAPPED, "streams": {"rnnt": "topk:4/banded:9"}})
    score(Joint(model, "pruned").eval(), loader(utterances[:3]), utterances)
    run.close()
    said = run.inside.report.fields
    assert "5 label positions per frame, which form banded:9 cannot store" in said["error"]
    assert "banded:5" in said["error"]


def test_a_pruned_joint_without_its_ranges_is_refused_by_name(session, model, utterances):
    """Its third axis is no label position: there are fewer than labels."""

    class Hidden(Joint):
        def forward(self, batch, labels):
            with torch.no_grad():
                enc, enc_lens = self.model.forward_encoder(batch["feats"], batch["feats_lengths"])
                enc = self.model.joiner.encoder_proj(enc)[:, :, None].expand(-1, -1, 5, -1)
                assert len(enc_lens) == len(labels)
                self.joint(enc)

    session(**TAPPED)
    with pytest.raises(LengthError, match=r"(?s)labels of 3 utterances.*A pruned lattice.*--ranges EXPR"):
        score(Hidden(model, "plain").eval(), loader(utterances), utterances)


def test_lattice_pieces_that_lack_or_exceed_utterances_are_refused(session, model, utterances):
    class Thrice(Joint):
        def forward(self, batch, labels):
            for _ in range(2):
                super().forward(batch, labels)

    session(**TAPPED, accumulate="b", ids="batch['utt_ids'][:2]")
    with pytest.raises(LengthError, match="pieces of 3 utterances in a batch of 2"):
        score(Thrice(model, "plain").eval(), loader(utterances), utterances)


@pytest.mark.parametrize("kind", ["tdt", "hat"])
def test_joiners_with_durations_or_without_logits_are_dumped(kind, tmp_path):
    """TDT: the tapped Linear has durations behind the tokens. HAT: log-probabilities are all there is."""
    wide = nn.Linear(112, 155)
    joiner = copy.deepcopy(demo.teacher().model.joiner)
    with torch.no_grad():
        wide.weight[:150], wide.bias[:150] = joiner.output_linear.weight, joiner.output_linear.bias

    class Hat(nn.Module):
        def forward(self, enc, dec):
            return joiner.output_linear(torch.tanh(enc + dec)).log_softmax(-1)

    model = nn.ModuleDict({"of": demo.teacher().model, "wide": wide, "hat": Hat()}).eval()

    def describe(teacher):
        spec = teacher.describe()
        path = "wide" if kind == "tdt" else "hat"
        return replace(spec, heads=(replace(spec.heads[1], module=path, normalised=kind == "hat"),))

    def join(teacher, enc, dec):
        if kind == "hat":
            return model["hat"](enc[:, None], dec[None])
        return model["wide"](torch.tanh(enc[:, None] + dec[None]))[..., :150]

    teacher = demo.Spoiled(describe=describe, join=join)
    teacher.model = model
    driver = TeacherDriver(teacher, teacher.tokens(), ["rnnt"], "cpu")
    utterance = next(iter(demo.manifest(1)))
    loaded = load(utterance, teacher, teacher.tokens(), True)
    spoken = driver.run([loaded])
    found = self_check(driver, spoken).findings
    assert any("HAT" in f for f in found) == (kind == "hat")
    with torch.inference_mode():
        lattice = torch.cat(list(driver.lattice(spoken[0])))
        own = demo.teacher().join(*demo.teacher().transducer(spoken[0].batch_output, 0, loaded.labels))
    torch.testing.assert_close(lattice.log_softmax(-1), own.log_softmax(-1))


def test_ranges_of_short_utterances_end_at_their_last_label():
    output, at = torch.randn(1, 6, 5, 9), torch.arange(5).expand(1, 6, 5)
    form = Form.parse("banded:5")
    part = split_pruned(output, at, [4], [[1, 2]], "here")[0]
    assert part.logits.shape == (4, 3, 9)
    nodes = part.nodes(form, 2, "here")
    assert (nodes.width, nodes.position.tolist()) == (3, [0, 1, 2] * 4)
    assert split_padded(torch.randn(1, 6, 3, 9), [4], [[1, 2]])[0].nodes(form, 2, "here") is None
    for wrong, labels in ((at + 1, [1, 2]), (at, [1] * 9)):  # beyond the last label; not up to it
        with pytest.raises(LengthError, match="banded:"):
            split_pruned(output, wrong, [4], [labels], "here")[0].nodes(form, len(labels), "here")
    with pytest.raises(LengthError, match="one behind the other"):
        split_pruned(output, at * 2, [4], [[1, 2]], "here")
