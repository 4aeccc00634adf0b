"""icefall's own recipes, small, where ICEFALL names a clone; k2 and lhotse, for training, are stubs."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import math
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from logitstore.teachers import load_teacher
from logitstore.teachers.icefall import _ignored_thread_counts
from logitstore.teachers.script import run_file
from tests.frameworks.teacher_checks import check_teacher, ctc_logits, lattice, recordings

ROOT = os.environ.get("ICEFALL", "")
RECIPES = Path(ROOT) / "egs/librispeech/ASR"
if not ROOT:
    pytest.skip("set ICEFALL to a clone of icefall to test its own recipes", allow_module_level=True)

TOKENS = ["<blk>", "<sos/eos>", "<unk>", "▁the", "▁", "▁c", "at", "a", "t", "s", "▁s", "e", "h"]
LABELS = [3, 5, 6]


class Stub(types.ModuleType):
    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *a, **k: None})


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for what the recipes import and inference does not use."""

    names = (
        *("k2", "lhotse", "kaldialign", "pypinyin", "tensorboard", "asr_datamodule", "sentencepiece"),
        *("torchaudio", "multi_quantization"),
    )

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.partition(".")[0] in self.names or name == "torch.utils.tensorboard"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> Any:
        module = Stub(spec.name)
        if spec.name == "k2":
            zero = torch.zeros(())
            module.swoosh_l = module.swoosh_l_forward = lambda x: (
                torch.logaddexp(zero, x - 4) - 0.08 * x - 0.035
            )
            module.swoosh_r = module.swoosh_r_forward = lambda x: (
                torch.logaddexp(zero, x - 1) - 0.08 * x - 0.313261687
            )
        return module

    def exec_module(self, module: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def stubs() -> Iterator[None]:
    """Recipes call their modules alike (model, joiner, …): each test forgets those of the last."""
    finder, before, path = Stubs(), set(sys.modules), list(sys.path)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, ROOT)
    yield
    sys.meta_path.remove(finder)
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = str(getattr(sys.modules[name], "__file__", ""))
        if isinstance(sys.modules[name], Stub) or file.startswith(ROOT):
            del sys.modules[name]


def recipe(name: str) -> Path:
    if not (RECIPES / name / "train.py").exists():
        pytest.skip(f"the clone that ICEFALL names has no {name}")
    return RECIPES / name


def imported(name: str, file: str = "train.py") -> Any:
    with _ignored_thread_counts():
        module = run_file(recipe(name) / file)
    module.get_env_info = dict  # asks k2 for its version, and git
    return module


def saved(folder: Path, model: Any, settings: dict[str, Any] | None = None) -> None:
    """An exp folder as ``save_checkpoint`` leaves it: the weights, and the settings beside them."""
    keep = {k: v for k, v in (settings or {}).items() if not k.endswith(("vocab_size", "_id"))}
    torch.save({"model": model.state_dict(), **keep}, folder / "epoch-1.pt")
    lines = (f"{t} {i}\n" for i, t in enumerate(TOKENS))
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")


def disturb(model: torch.nn.Module) -> None:
    """Batch norms that have seen nothing, and layers that begin as zeros, would hide a fault."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() and not p.any():
                p += 0.1 * torch.randn_like(p)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn_like(buffer)


def built(name: str, folder: Path, function: str, small: dict[str, Any]) -> tuple[Any, str]:
    """The recipe's model, and the teacher's address: its train.py builds it anew from the checkpoint."""
    train = imported(name)
    params = train.get_params()
    params.update(vars(train.get_parser().parse_args([])))
    special = {
        "vocab_size": len(TOKENS),
        "blank_id": 0,
        "unk_id": 2,
        "sos_id": 1,
    }  # decode.py has them of the BPE
    params.update(small, **special)
    torch.manual_seed(0)
    model = getattr(train, function)(params).eval()
    disturb(model)
    saved(folder, model, {k: v for k, v in params.items() if k != "env_info"})
    own = folder / "mine.py"  # get_params of a clone asks for k2's version
    own.write_text(
        f"from logitstore.teachers.script import run_file\n"
        f"from pathlib import Path\n"
        f"train = run_file(Path({str(RECIPES / name / 'train.py')!r}))\n"
        f"train.get_env_info = dict\n"
        f"get_params, get_parser, {function} = train.get_params, train.get_parser, train.{function}\n"
    )
    return model, f"icefall:{folder},epoch=1,model={own}:{function}"


SMALL: dict[str, Any] = {
    "encoder_dim": 16,
    "dim_feedforward": 24,
    "nhead": 2,
    "num_encoder_layers": 2,
    "decoder_dim": 12,
    "joiner_dim": 10,
}
SEVEN: dict[str, Any] = {  # zipformers of the first kind take a number a stack
    "num_encoder_layers": "1,1,1,1,1",
    "feedforward_dims": "24,24,24,24,24",
    "nhead": "2,2,2,2,2",
    "encoder_dims": "16,16,16,16,16",
    "attention_dims": "16,16,16,16,16",
    "encoder_unmasked_dims": "16,16,16,16,16",
    "decoder_dim": 12,
    "joiner_dim": 10,
    "num_decoder_layers": 0,
}
OLD = {**SMALL, "encoder_out_dim": 14, "attention_dim": 16, "embedding_dim": 16}


def projected(model: Any, enc: Any, dec: Any) -> Any:
    return model.joiner(enc[:, :, None], dec[:, None])[0]


def expanded(model: Any, enc: Any, dec: Any) -> Any:
    t, u = enc.shape[1], dec.shape[1]
    return model.joiner(enc[:, :, None].expand(-1, t, u, -1), dec[:, None].expand(-1, t, u, -1))[0]


def packed(model: Any, enc: Any, dec: Any) -> Any:
    t, u = enc.shape[1], dec.shape[1]
    return model.joiner(enc, dec, torch.tensor([t]), torch.tensor([u])).view(t, u, -1)


def plain(model: Any, enc: Any, dec: Any) -> Any:
    return model.joiner(enc, dec)[0]


TRANSDUCERS: dict[str, tuple[dict[str, Any], Any]] = {
    "pruned_transducer_stateless": (OLD, expanded),
    **{f"pruned_transducer_stateless{n}": (SMALL, projected) for n in (2, 3, 4, 5)},
    "pruned_transducer_stateless6": (
        {**SMALL, "distillation_layer": 0, "enable_distillation": True, "num_codebooks": 2},
        projected,
    ),
    "pruned_transducer_stateless7": (SEVEN, projected),
    "pruned_transducer_stateless7_ctc": (SEVEN, projected),
    "pruned_transducer_stateless7_streaming": (SEVEN, projected),
    "pruned_transducer_stateless8": (SEVEN, projected),
    "lstm_transducer_stateless": ({**SMALL, "rnn_hidden_size": 20}, projected),
    "conv_emformer_transducer_stateless2": (SMALL, projected),
    "tiny_transducer_ctc": ({**SMALL, "channels": 16, "conv_layers": 3}, projected),
    "transducer_stateless": (OLD, packed),
    "transducer_stateless2": (OLD, packed),
    "transducer": ({**OLD, "decoder_embedding_dim": 8, "decoder_hidden_dim": 12}, plain),
    "transducer_lstm": (
        {**OLD, "encoder_hidden_size": 16, "decoder_embedding_dim": 8, "decoder_hidden_dim": 12},
        plain,
    ),
}


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_a_transducer(name: str, tmp_path: Path) -> None:
    small, full_joint = TRANSDUCERS[name]
    model, where = built(name, tmp_path, "get_transducer_model", small)
    teacher: Any = load_teacher(where)
    check_teacher(teacher)
    streams = [h.stream for h in teacher.describe().heads]
    assert streams == (["ctc", "rnnt"] if hasattr(model, "ctc_output") else ["rnnt"])
    for audio in recordings():
        x = teacher.features(audio)[None]
        with torch.inference_mode():
            enc, lengths = model.encoder(x, torch.tensor([x.shape[1]]))[:2]
            enc = enc[-1] if isinstance(enc, list) else enc  # the layers that it was told to give
            dec = model.decoder(torch.tensor([[0, *LABELS]]))
            own = full_joint(model, enc, dec[0] if isinstance(dec, tuple) else dec)
        got = lattice(teacher, [audio], LABELS)[0]
        assert len(got) == int(lengths[0])
        assert (got - own[: len(got)]).abs().max() <= 1e-4
        assert lattice(teacher, [audio], [], step=1)[0].shape[:2] == (len(got), 1)  # nothing squeezed away
        if "ctc" in streams:
            with torch.inference_mode():
                ctc = model.ctc_output(enc)[0, : len(got)]
            assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - ctc).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["zipformer_ctc", "conformer_ctc3", "zipformer_mmi"])
def test_a_ctc_model(name: str, tmp_path: Path) -> None:
    small = SMALL if name == "conformer_ctc3" else SEVEN
    model, where = built(name, tmp_path, "get_ctc_model", small)
    teacher = load_teacher(where)
    check_teacher(teacher)
    for audio in recordings():
        x = teacher.features(audio)[None]
        with torch.inference_mode():
            enc, lengths = model.encoder(x, torch.tensor([x.shape[1]]))[:2]
            head = model.ctc_output_module if name == "conformer_ctc3" else model.ctc_output
            own = head(enc)[0, : int(lengths[0])].log_softmax(-1)
        got = ctc_logits(teacher, [audio])[0].log_softmax(-1)
        assert got.shape == own.shape
        assert (got - own).abs().max() <= 1e-5


WHOLE: dict[str, str] = {
    "conformer_ctc": "from conformer import Conformer\n"
    "def get_model(): return Conformer(80, 13, d_model=16, nhead=2, dim_feedforward=24, num_encoder_layers=2,"
    " num_decoder_layers=1, use_feat_batchnorm=0.1)\n",
    "conformer_ctc2": "from conformer import Conformer\n"
    "def get_model(): return Conformer(80, 13, d_model=16, nhead=2, dim_feedforward=24, num_encoder_layers=2,"
    " num_decoder_layers=1)\n",
    "streaming_conformer_ctc": "from conformer import Conformer\n"
    "def get_model(): return Conformer(80, 13, d_model=16, nhead=2, dim_feedforward=24, num_encoder_layers=2,"
    " num_decoder_layers=0, causal=True)\n",
    "tdnn_lstm_ctc": "from model import TdnnLstm\ndef get_model(): return TdnnLstm(80, 13)\n",
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_ctc_model_of_one_forward(name: str, tmp_path: Path) -> None:
    text = f"import sys\nsys.path.insert(0, {str(recipe(name))!r})\n{WHOLE[name]}"
    (tmp_path / "mine.py").write_text(text)
    torch.manual_seed(0)
    model = run_file(tmp_path / "mine.py").get_model().eval()
    disturb(model)
    saved(tmp_path, model)
    where = f"icefall:{tmp_path},epoch=1,model={tmp_path}/mine.py:get_model"
    teacher = load_teacher(where)
    check_teacher(teacher)
    assert teacher.describe().name == type(model).__name__
    tdnn = name == "tdnn_lstm_ctc"
    assert teacher.describe().frame_shift == (480 if tdnn else 640)
    for audio in recordings():
        x = teacher.features(audio)[None]
        with torch.inference_mode():
            own = model(x.transpose(1, 2))[0] if tdnn else model(x.clone(), None)[0][0]
        got = ctc_logits(teacher, [audio])[0]
        assert got.shape == own.shape
        assert (got.log_softmax(-1) - own).abs().max() <= 1e-5
        assert got.logsumexp(-1).abs().max() > 1e-2
    # As its decode.py does: the batch at once, padded with log(1e-10), its lengths in the supervisions.
    audio, together = recordings(), load_teacher(f"{where},batch=together")
    features = [teacher.features(a) for a in audio]
    x = torch.nn.utils.rnn.pad_sequence(features, True, math.log(1e-10))
    frames = torch.tensor([len(f) for f in features])
    segments = {"sequence_idx": torch.arange(3), "start_frame": 0 * frames, "num_frames": frames}
    with torch.inference_mode():
        own = model(x.transpose(1, 2)) if tdnn else model(x, segments)[0]
    for got, said in zip(ctc_logits(together, audio), own, strict=True):
        assert (got.log_softmax(-1) - said[: len(got)]).abs().max() <= 1e-5


ZIPFORMER: dict[str, Any] = {
    "num_encoder_layers": "1,1",
    "downsampling_factor": "1,2",
    "feedforward_dim": "32,48",
    "num_heads": "2,2",
    "encoder_dim": "16,24",
    "encoder_unmasked_dim": "16,16",
    "cnn_module_kernel": "7,7",
    "query_head_dim": "8",
    "value_head_dim": "4",
    "pos_dim": 8,
    "decoder_dim": 16,
    "joiner_dim": 16,
    "use_ctc": True,
}
CAUSAL: dict[str, Any] = {**ZIPFORMER, "causal": True, "chunk_size": "16", "left_context_frames": "64"}


def own_ctc(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        enc, lengths = model.forward_encoder(x[None], torch.tensor([len(x)]))
        return model.ctc_output(enc)[0, : lengths[0]]


@pytest.mark.parametrize("causal", [False, True])
def test_the_zipformer(tmp_path: Path, causal: bool) -> None:
    model, where = built("zipformer", tmp_path, "get_model", CAUSAL if causal else ZIPFORMER)
    teacher: Any = load_teacher(where)
    check_teacher(teacher)
    # In a batch the last frame of a shorter recording sees its padding: hence alone.
    together = ctc_logits(load_teacher(f"{where},batch=together"), recordings())
    leaks = [(a - b).abs().amax(1) for a, b in zip(together, ctc_logits(teacher, recordings()), strict=True)]
    assert max(leak[:-2].max() for leak in leaks) < 1e-2 < 0.1 < max(leak[-1] for leak in leaks)
    assert teacher.describe().frame_shift == 640
    audio = recordings()
    for a in audio:
        got, own = ctc_logits(teacher, [a])[0], own_ctc(model, teacher.features(a))
        assert len(got) == ((len(teacher.features(a)) - 7) // 2 + 1) // 2
        assert (got.log_softmax(-1) - own).abs().max() <= 1e-5
    x = teacher.features(audio[0])[None]
    with torch.inference_mode():
        enc, _ = model.forward_encoder(x, torch.tensor([x.shape[1]]))
        full = model.joiner(enc[:, :, None], model.decoder(torch.tensor([[0, *LABELS]]))[:, None])[0]
    assert (lattice(teacher, audio[:1], LABELS)[0] - full).abs().max() <= 1e-4


def test_decode_py_of_a_causal_zipformer_hears_a_tail(tmp_path: Path) -> None:
    """Its own ``decode_one_batch`` appends 30 frames of log(1e-10): so does ``tail=30``, and nothing else."""
    model, where = built("zipformer", tmp_path, "get_model", CAUSAL)
    decode, audio = imported("zipformer", "decode.py"), recordings()[0]
    teacher, plain = load_teacher(f"{where},tail=30"), load_teacher(where)
    x = plain.features(audio)
    encoded: list[tuple[torch.Tensor, torch.Tensor]] = []
    encode = model.forward_encoder

    def listen(x: torch.Tensor, lengths: torch.Tensor) -> Any:
        encoded.append(encode(x, lengths))
        return encoded[-1]

    model.forward_encoder = listen
    model.device = torch.device("cpu")
    params = decode.AttributeDict(
        causal=True, decoding_method="greedy_search", max_sym_per_frame=1, context_size=2, blank_penalty=0.0
    )
    batch = {"inputs": x[None], "supervisions": {"num_frames": torch.tensor([len(x)])}}
    with torch.inference_mode():
        decode.decode_one_batch(params, model, SimpleNamespace(decode=lambda ids: [""] * len(ids)), batch)
        enc, lengths = encoded[0]
        own = model.ctc_output(enc)[0, : lengths[0]]
    got = ctc_logits(teacher, [audio])[0].log_softmax(-1)
    assert got.shape == own.shape
    assert (got - own).abs().max() <= 1e-5
    assert teacher.describe().features["tail"] == 30
    assert teacher.describe().frame_shift == 640
    without = ctc_logits(plain, [audio])[0].log_softmax(-1)
    assert len(got) - len(without) == 8
    # The tail is no mere appendix: what the last chunk says of the recording itself depends on it.
    assert (got[: len(without)] - without).abs().max() > 1e-3
