"""ESPnet2: tiny models of the real classes, built by its task, written as its trainer writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from logitstore.errors import TeacherError, UsageError
from logitstore.teachers import load_teacher
from logitstore.teachers.tap import Tap
from tests.frameworks.models_espnet import CONDITIONED, CONFORMER, CTC, TOKENS, TRANSDUCER, build
from tests.frameworks.teacher_checks import (
    batched,
    check_teacher,
    ctc_logits,
    decoder_logits,
    framework,
    lattice,
    recordings,
)

framework("espnet2.tasks.asr")


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    (tmp_path / "exp").mkdir()
    return tmp_path / "exp" / "asr" if (tmp_path / "exp" / "asr").mkdir() is None else tmp_path


@pytest.mark.parametrize("encoder", ["conformer", "conditioned", "transformer", "e_branchformer", "vgg_rnn"])
def test_ctc(encoder: str, exp: Path) -> None:
    config: dict[str, Any] = {**CTC, "encoder": encoder}
    if encoder == "conditioned":
        config |= {"encoder": "conformer", "encoder_conf": CONDITIONED}
    elif encoder == "transformer":
        config["encoder_conf"] = {k: v for k, v in CONFORMER.items() if k != "cnn_module_kernel"}
    elif encoder == "e_branchformer":
        config["encoder_conf"] = {
            **{k: v for k, v in CONFORMER.items() if k != "cnn_module_kernel"},
            "cgmlp_linear_units": 32,
            "cgmlp_conv_kernel": 5,
        }
    elif encoder == "vgg_rnn":
        config["encoder_conf"] = {"num_layers": 1, "hidden_size": 8, "output_size": 16}
    model = build(exp, **config)
    teacher: Any = load_teacher(f"espnet:{exp}")
    check_teacher(teacher)
    assert teacher.tokens().tokens == tuple(TOKENS)
    assert teacher.tokens().blank == 0
    assert teacher.describe().frame_shift == 512
    head = teacher.describe().head("ctc").module
    assert head == ("ctc_head" if encoder == "conditioned" else "ctc.ctc_lo")
    for audio in recordings():
        with torch.inference_mode():
            enc, lengths = model.encode(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
            enc = enc[0] if isinstance(enc, tuple) else enc
            own = model.ctc.log_softmax(enc)[0]
        got = ctc_logits(teacher, [audio])[0]
        assert len(got) == int(lengths[0])
        assert (got.log_softmax(-1) - own).abs().max() <= 1e-5


def test_a_batch_together_is_what_the_model_says_of_that_batch(exp: Path) -> None:
    model = build(exp, **CTC)
    teacher = load_teacher(f"espnet:{exp},batch=together")
    audio = recordings()
    waves = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in audio], batch_first=True)
    with torch.inference_mode():
        enc, lengths = model.encode(waves, torch.tensor([len(a) for a in audio]))
        own = model.ctc.log_softmax(enc)
    for got, said, n in zip(ctc_logits(teacher, audio), own, lengths.tolist(), strict=True):
        assert len(got) == n
        assert (got.log_softmax(-1) - said[:n]).abs().max() <= 1e-5


ATTENTION: dict[str, dict[str, Any]] = {
    "transformer": {"decoder_conf": {"attention_heads": 2, "linear_units": 24, "num_blocks": 2}},
    "rnn": {"decoder_conf": {"hidden_size": 12, "num_layers": 1, "att_conf": {"adim": 12}}},
}


@pytest.mark.parametrize("weight", [0.3, 0.0])
@pytest.mark.parametrize("decoder", ATTENTION)
def test_attention_decoder(decoder: str, weight: float, exp: Path) -> None:
    config = {**CTC, **ATTENTION[decoder], "decoder": decoder, "model_conf": {"ctc_weight": weight}}
    model = build(exp, **{**config, "encoder_conf": CONDITIONED if weight else CONFORMER})
    teacher: Any = load_teacher(f"espnet:{exp}")
    check_teacher(teacher)
    head, audio = teacher.describe().head("seq2seq"), recordings()[0]
    assert [h.stream for h in teacher.describe().heads] == (["ctc"] if weight else []) + ["seq2seq"]
    assert teacher.tokens()[head.end] == "<sos/eos>"
    labels = teacher.labels("cat")
    caught = []
    with torch.inference_mode():
        enc, n = model.encode(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        enc = enc[0] if isinstance(enc, tuple) else enc
        model.criterion_att.forward = lambda *pair: caught.append(pair) or torch.tensor(0.0)
        model._calc_att_loss(enc, n, torch.tensor([labels]), torch.tensor([len(labels)]))
    said, wanted = caught[0]  # what the model itself compares in training
    got = decoder_logits(teacher, [audio], labels)[0]
    assert wanted[0].tolist() == [*labels, head.end]
    assert (got - said[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("encoder", [CONFORMER, CONDITIONED], ids=["plain", "conditioned"])
def test_transducer(encoder: dict[str, Any], exp: Path) -> None:
    model = build(exp, **{**TRANSDUCER, "encoder_conf": encoder})
    teacher: Any = load_teacher(f"espnet:{exp}")
    check_teacher(teacher)
    labels = teacher.labels("the cat") if "t" in TOKENS else []
    assert [TOKENS[i] for i in labels] == ["t", "h", "e", "<space>", "c", "a", "t"]
    with pytest.raises(ValueError, match="does not tokenise"):
        teacher.labels("fox")
    audio = recordings()[0]
    with torch.inference_mode():
        enc, _ = model.encode(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        enc = enc[0] if isinstance(enc, tuple) else enc
        dec = model.decoder(torch.tensor([[0, *labels]]))
        own = model.joint_network(enc.unsqueeze(2), dec.unsqueeze(1))[0]
    assert (lattice(teacher, [audio], labels)[0] - own).abs().max() <= 1e-4
    head = teacher.describe().head("rnnt").module
    features, lengths = batched(teacher, [audio])
    with torch.inference_mode(), Tap(teacher.model, {"rnnt": head}) as tap:
        out = teacher.join(*teacher.transducer(teacher.forward(features, lengths), 0, labels))
        assert torch.equal(tap.take("rnnt")[0], out)


BODIES: dict[str, dict[str, Any]] = {
    "conformer": {"conv_mod_kernel_size": 5, "pos_wise_dropout_rate": 0.1},
    "branchformer": {"conv_mod_kernel_size": 5},
    "ebranchformer": {"conv_mod_kernel_size": 5, "depth_conv_kernel_size": 5},
}
PREDICTIONS: dict[str, dict[str, Any]] = {
    "rnn": {"rnn_type": "lstm", "num_layers": 2, "embed_size": 8, "hidden_size": 12},
    "stateless": {"embed_size": 12},
    "mega": {"block_size": 8, "linear_size": 12, "qk_size": 4, "v_size": 8, "num_heads": 2, "num_blocks": 2},
    "rwkv": {"block_size": 8, "linear_size": 12, "num_blocks": 2, "rescale_every": 1},
}


def other_transducer(exp: Path, body: str, decoder: str, *, ctc: float = 0.3, **main: Any) -> Any:
    block = {"block_type": body, "hidden_size": 16, "linear_size": 24, "heads": 2, "num_blocks": 2}
    encoder = {
        "input_conf": {"subsampling_factor": 4},
        "body_conf": [{**block, **BODIES[body]}],
        "main_conf": main,
    }
    model = build(
        exp,
        task="asr_transducer",
        encoder_conf=encoder,
        decoder=decoder,
        decoder_conf=PREDICTIONS[decoder],
        joint_network_conf={"joint_space_size": 10},
        model_conf={"auxiliary_ctc_weight": ctc, "auxiliary_ctc_dropout_rate": 0.3},
    )
    model.encoder.dynamic_chunk_training = False  # as ESPnet's inference does
    return model


def searched(decoder: Any, labels: list[int]) -> torch.Tensor:
    """(1, U+1, D) as ESPnet's beam search asks its decoder: one label more at a time."""
    state, rows = decoder.init_state(1), []
    for u in range(len(labels) + 1):
        row, state = decoder.score([0, *labels][: u + 1], state)
        rows.append(row.reshape(-1))
    return torch.stack(rows)[None]


@pytest.mark.parametrize(
    ("body", "decoder"),
    [("conformer", "rnn"), ("branchformer", "stateless"), ("ebranchformer", "mega"), ("conformer", "rwkv")],
)
def test_the_task_asr_transducer(body: str, decoder: str, exp: Path) -> None:
    model = other_transducer(exp, body, decoder)
    teacher: Any = load_teacher(f"espnet:{exp}")
    assert type(teacher.asr).__name__ == "ESPnetASRTransducerModel"
    check_teacher(teacher)
    assert [h.module for h in teacher.describe().heads] == ["ctc_lin", "joint_network.lin_out"]
    assert (teacher.describe().frame_shift, teacher.tokens().blank) == (512, 0)
    labels = teacher.labels("the cat")
    for audio in recordings():
        with torch.inference_mode():
            enc, lengths = model.encode(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
            # All labels at once, as in training, and one by one, as its search does. RWKV needs a GPU for the
            # former, and MEGA's search attends to a row of zeros that its training knew nothing of.
            said = [model.decoder(torch.tensor([[0, *labels]]))] if decoder != "rwkv" else []
            said += [searched(model.decoder, labels)] if decoder != "mega" else []
            own = [model.joint_network(enc.unsqueeze(2), dec.unsqueeze(1))[0] for dec in said]
            ctc = model.ctc_lin(enc)[0]
        got = lattice(teacher, [audio], labels)[0]
        assert len(got) == int(lengths[0])
        for full in own:
            assert (got - full).abs().max() <= 1e-4
        assert (ctc_logits(teacher, [audio])[0] - ctc).abs().max() <= 1e-5


def test_its_inference_class_says_the_same(exp: Path) -> None:
    from espnet2.bin.asr_transducer_inference import Speech2Text

    other_transducer(exp, "conformer", "rnn")
    own = Speech2Text(config_of(exp), exp / "valid.acc.ave.pth", token_type="char", beam_size=2)
    search = own.beam_search
    heard_by_it: list[torch.Tensor] = []
    own.beam_search = lambda enc: heard_by_it.append(enc) or search(enc)
    audio = recordings()[1]
    own(audio)
    teacher: Any = load_teacher(f"espnet:{exp}")
    labels = teacher.labels("the cat")
    with torch.inference_mode():
        dec = searched(search.decoder, labels)
        full = search.joint_network(heard_by_it[0][None, :, None], dec[:, None])[0]
    assert (lattice(teacher, [audio], labels)[0] - full).abs().max() <= 1e-4


def config_of(exp: Path) -> Path:
    """The config with the statistics' path as seen from here: ESPnet counts it from the recipe's folder."""
    text = (exp / "config.yaml").read_text().replace("exp/asr_stats", str(exp.parent / "exp" / "asr_stats"))
    (exp / "here.yaml").write_text(text)
    return exp / "here.yaml"


def test_chunks_drawn_at_random_in_eval_are_switched_off(exp: Path) -> None:
    model = other_transducer(exp, "conformer", "stateless", dynamic_chunk_training=True, short_chunk_size=3)
    teacher = load_teacher(f"espnet:{exp}")
    check_teacher(teacher)  # steadiness included
    model.encoder.dynamic_chunk_training = True
    audio = torch.from_numpy(recordings()[0])[None]
    with torch.inference_mode():
        said = [model.encode(audio, torch.tensor([audio.shape[1]]))[0] for _ in range(8)]
    assert any(not torch.equal(said[0], other) for other in said[1:])


def test_a_transducer_without_ctc(exp: Path) -> None:
    other_transducer(exp, "conformer", "stateless", ctc=0.0)
    teacher = load_teacher(f"espnet:{exp}")
    check_teacher(teacher)
    assert [h.stream for h in teacher.describe().heads] == ["rnnt"]


def test_live_dropout_is_refused(exp: Path) -> None:
    model = build(exp, **CTC, ctc_conf={"dropout_rate": 0.3})
    hidden, one = torch.randn(1, 9, 16), torch.tensor([9])
    losses = {float(model.ctc(hidden, one, torch.tensor([[3, 4]]), torch.tensor([2]))) for _ in range(3)}
    assert len(losses) > 1  # in eval mode
    with pytest.raises(TeacherError, match=r"dropout_rate 0\.3"):
        load_teacher(f"espnet:{exp}")


def test_weights_have_to_be_clear(exp: Path) -> None:
    build(exp, **CTC)
    (exp / "valid.acc.ave.pth").rename(exp / "5epoch.pth")
    torch.save({}, exp / "6epoch.pth")
    with pytest.raises(UsageError, match=r"5epoch\.pth, 6epoch\.pth"):
        load_teacher(f"espnet:{exp}")
    with pytest.raises(TeacherError, match="lacks"):
        load_teacher(f"espnet:{exp},model={exp}/6epoch.pth")
    load_teacher(f"espnet:{exp},model={exp}/5epoch.pth")


SCRIPT = """
import sys
import types
import soundfile
import torch

loss = types.ModuleType("warprnnt_pytorch")  # it has to be compiled, and only training uses it
loss.RNNTLoss = torch.nn.Identity
sys.modules["warprnnt_pytorch"] = loss
from espnet2.bin.asr_inference import Speech2Text

options = dict(beam_size=2, nbest=1, lm_weight=0.0, ctc_weight=0.0)
speech2text = Speech2Text("config.yaml", "valid.acc.ave.pth", **options)
for path in sys.argv[1:]:
    audio, rate = soundfile.read(path, dtype="float32")
    print(path, speech2text(audio)[0][0])
"""


def test_its_own_beam_search_captured(exp: Path) -> None:
    from tests.frameworks.own_inference import audio, check_lattices, probed_and_captured

    wide = {**TRANSDUCER["decoder_conf"], "hidden_size": 14}  # another width than V
    build(exp, **{**TRANSDUCER, "decoder_conf": wide})
    config = (exp / "config.yaml").read_text()
    stats = str(exp.parent / "exp" / "asr_stats" / "feats_stats.npz")
    (exp / "config.yaml").write_text(config.replace("exp/asr_stats/feats_stats.npz", stats))
    found, store, _ = probed_and_captured(SCRIPT, exp)
    assert found["transducer"]["convention"] == "espnet"
    assert (found["transducer"]["joiner"], found["transducer"]["encoder"]) == ("joint_network", "encoder")
    assert store.spec.teacher.heads[-1].module == "joint_network.lin_out"
    teacher: Any = load_teacher(f"espnet:{exp}")
    check_lattices(store, lambda wav, labels: lattice(teacher, [audio(wav)], labels)[0])
