"""ESPnet2: tiny models of the real classes, built by its task, written as its trainer writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_checks import batched, check_teacher, framework, heard, lattice, recordings

from logitstore.errors import TeacherError, UsageError
from logitstore.tap import Tap
from logitstore.teachers import load_teacher

framework("espnet2.tasks.asr")

TOKENS = ["<blank>", "<unk>", "<space>", *"acdehost", "<sos/eos>"]
CONFORMER: dict[str, Any] = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 3,
    "cnn_module_kernel": 5,
    "dropout_rate": 0.1,
}
CONDITIONED: dict[str, Any] = {
    **CONFORMER,
    "interctc_layer_idx": [1, 2],
    "interctc_use_conditioning": True,
}


def build(folder: Path, *options: str, **config: Any) -> Any:
    import yaml
    from espnet2.tasks.asr import ASRTask

    from logitstore.teachers.espnet import _no_transducer_loss

    args = ASRTask.get_parser().parse_args(["--output_dir", str(folder), "--token_type", "char", *options])
    for key, value in {"token_list": TOKENS, "frontend_conf": {"fs": "16k", "n_mels": 40}, **config}.items():
        setattr(args, key, value)
    stats = folder.parent / "exp" / "asr_stats" / "feats_stats.npz"
    stats.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.savez(stats, count=100, sum=rng.standard_normal(40) * 100, sum_square=np.full(40, 1e4))
    args.normalize, args.normalize_conf = "global_mvn", {"stats_file": str(stats)}
    torch.manual_seed(0)
    with _no_transducer_loss():
        model = ASRTask.build_model(args)
    said = {**vars(args), "normalize_conf": {"stats_file": "exp/asr_stats/feats_stats.npz"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    torch.save(model.state_dict(), folder / "valid.acc.ave.pth")
    torch.save({"model": None, "optimizers": [], "epoch": 1}, folder / "checkpoint.pth")
    return model.eval()


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    (tmp_path / "exp").mkdir()
    return tmp_path / "exp" / "asr" if (tmp_path / "exp" / "asr").mkdir() is None else tmp_path


CTC: dict[str, Any] = {
    "encoder": "conformer",
    "encoder_conf": CONFORMER,
    "decoder": None,
    "decoder_conf": {},
    "model_conf": {"ctc_weight": 1.0},
}
TRANSDUCER: dict[str, Any] = {
    "encoder": "conformer",
    "encoder_conf": CONFORMER,
    "decoder": "transducer",
    "decoder_conf": {"rnn_type": "lstm", "num_layers": 1, "hidden_size": 12},
    "joint_net_conf": {"joint_space_size": 10},
    "model_conf": {"ctc_weight": 0.3, "report_cer": False, "report_wer": False},
}


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
        got = heard(teacher, [audio])[0]
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
    for got, said, n in zip(heard(teacher, audio), own, lengths.tolist(), strict=True):
        assert len(got) == n
        assert (got.log_softmax(-1) - said[:n]).abs().max() <= 1e-5


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


@pytest.mark.parametrize("encoder", [CONFORMER, CONDITIONED], ids=["plain", "conditioned"])
def test_its_own_beam_search_captured(encoder: dict[str, Any], exp: Path) -> None:
    from recipes import audio, check_lattices, probed_and_captured

    wide = {**TRANSDUCER["decoder_conf"], "hidden_size": 14}  # another width than V
    build(exp, **{**TRANSDUCER, "encoder_conf": encoder, "decoder_conf": wide})
    config = (exp / "config.yaml").read_text()
    stats = str(exp.parent / "exp" / "asr_stats" / "feats_stats.npz")
    (exp / "config.yaml").write_text(config.replace("exp/asr_stats/feats_stats.npz", stats))
    found, store, _ = probed_and_captured(SCRIPT, exp)
    assert found["driven"]["convention"] == "espnet"
    assert (found["driven"]["joiner"], found["driven"]["encoder"]) == ("joint_network", "encoder")
    assert store.spec.teacher.heads[-1].module == "joint_network.lin_out"
    teacher: Any = load_teacher(f"espnet:{exp}")
    check_lattices(store, lambda wav, labels: lattice(teacher, [audio(wav)], labels)[0])
