"""SpeechBrain's training folders: its own Brain trains a little on the demo's audio, and is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from logitstore.errors import TeacherError, UsageError
from logitstore.teachers import load_teacher
from tests.frameworks.teacher_checks import check_teacher, ctc_logits, framework, lattice, recordings

framework("speechbrain")
import speechbrain as sb  # noqa: E402
from hyperpyyaml import load_hyperpyyaml  # noqa: E402

MANIFESTS = Path(__file__).parents[2] / "manifests"

# As the recipes write them: references, a placeholder, things that only training wants.
FRONT = """
seed: 7
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
output_folder: !ref results/tiny/<seed>
save_folder: !ref <output_folder>/save
train_log: !ref <output_folder>/train_log.txt
data_folder: !PLACEHOLDER
sample_rate: 16000
blank_index: 0
vocabulary: 32
epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
    limit: 3
compute_features: !new:speechbrain.lobes.features.Fbank
    sample_rate: !ref <sample_rate>
    n_mels: 40
normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
log_softmax: !new:speechbrain.nnet.activations.Softmax
    apply_log: True
opt_class: !name:torch.optim.Adam
    lr: 0.002
train_logger: !new:speechbrain.utils.train_logger.FileTrainLogger
    save_file: !ref <train_log>
"""
# Behind what it refers to, as everywhere: a yaml is resolved with each object where it first appears.
KEEPER = """
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: !ref <save_folder>
    recoverables:
        model: !ref <model>
        normalizer: !ref <normalize>
        counter: !ref <epoch_counter>
"""
CRDNN = """
{name}: !new:speechbrain.lobes.models.CRDNN.CRDNN
    input_shape: [null, null, 40]
    cnn_blocks: 1
    cnn_channels: (4,)
    inter_layer_pooling_size: (2,)
    time_pooling: True
    time_pooling_size: 4
    rnn_class: !name:speechbrain.nnet.RNN.LSTM
    rnn_layers: 1
    rnn_neurons: 8
    dnn_blocks: 1
    dnn_neurons: 16
"""
CTC = (
    FRONT
    + CRDNN.format(name="enc")
    + """
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: !ref <vocabulary>
seq_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 4
    n_neurons: 4
modules:
    enc: !ref <enc>
    ctc_lin: !ref <ctc_lin>
    seq_lin: !ref <seq_lin>
    normalize: !ref <normalize>
model: !new:torch.nn.ModuleList
    - [!ref <enc>, !ref <ctc_lin>, !ref <seq_lin>]
"""
    + KEEPER
)
CONFORMER = (
    FRONT.replace("<vocabulary>", "25")
    + """
avg_checkpoints: 2
activation: !name:torch.nn.GELU
CNN: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: (8, 10, 40)
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: (4, 2)
    kernel_sizes: (3, 3)
    strides: (2, 2)
    residuals: (False, False)
Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    input_size: 20
    tgt_vocab: !ref <vocabulary>
    d_model: 16
    nhead: 2
    num_encoder_layers: 1
    num_decoder_layers: 0
    d_ffn: 24
    dropout: 0.1
    activation: !ref <activation>
    encoder_module: conformer
    attention_type: RelPosMHAXL
    normalize_before: True
    causal: False
enc: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
    transformer: !ref <Transformer>
proj_ctc: !new:speechbrain.nnet.linear.Linear
    input_size: 12
    n_neurons: !ref <vocabulary>
proj_enc: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 12
proj_dec: !new:speechbrain.nnet.linear.Linear
    input_size: 9
    n_neurons: 12
emb: !new:speechbrain.nnet.embedding.Embedding
    num_embeddings: !ref <vocabulary>
    consider_as_one_hot: True
    blank_id: !ref <blank_index>
dec: !new:speechbrain.nnet.RNN.LSTM
    input_shape: [null, null, !ref <vocabulary> - 1]
    hidden_size: 9
    num_layers: 1
Tjoint: !new:speechbrain.nnet.transducer.transducer_joint.Transducer_joint
    joint: sum
    nonlinearity: !ref <activation>
transducer_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 12
    n_neurons: !ref <vocabulary>
    bias: False
modules:
    CNN: !ref <CNN>
    enc: !ref <enc>
    emb: !ref <emb>
    dec: !ref <dec>
    Tjoint: !ref <Tjoint>
    transducer_lin: !ref <transducer_lin>
    normalize: !ref <normalize>
    proj_ctc: !ref <proj_ctc>
    proj_dec: !ref <proj_dec>
    proj_enc: !ref <proj_enc>
model: !new:torch.nn.ModuleList
    - [!ref <CNN>, !ref <enc>, !ref <emb>, !ref <dec>, !ref <proj_enc>, !ref <proj_dec>, !ref <proj_ctc>,
       !ref <transducer_lin>]
Greedysearcher: !new:speechbrain.decoders.transducer.TransducerBeamSearcher
    decode_network_lst: [!ref <emb>, !ref <dec>, !ref <proj_dec>]
    tjoint: !ref <Tjoint>
    classifier_network: [!ref <transducer_lin>]
    blank_id: !ref <blank_index>
    beam_size: 1
    nbest: 1
"""
    + KEEPER
)


class Recipe(sb.Brain):
    """The recipes' ``compute_forward``, as they have it; only CTC is trained."""

    def encoder(self, wavs: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
        feats = self.modules.normalize(self.hparams.compute_features(wavs), lens)
        if hasattr(self.modules, "CNN"):
            return self.modules.proj_enc(self.modules.enc(self.modules.CNN(feats), lens, pad_idx=0))
        return self.modules.enc(feats.detach())

    def compute_forward(self, batch: Any, stage: Any) -> Any:
        head = getattr(self.modules, "ctc_lin", None) or self.modules.proj_ctc
        return self.hparams.log_softmax(head(self.encoder(batch["wavs"], batch["lens"])))

    def compute_objectives(self, said: Any, batch: Any, stage: Any) -> Any:
        return sb.nnet.losses.ctc_loss(
            said, batch["tokens"], batch["lens"], batch["token_lens"], blank_index=0
        )

    def on_stage_end(self, stage: Any, loss: float, epoch: int) -> None:
        if stage == sb.Stage.VALID:  # the second epoch is called the best, and is not the last
            self.checkpointer.save_checkpoint(
                meta={"WER": [50.0, 10.0, 30.0][epoch - 1], "epoch": epoch}, name=str(epoch)
            )

    def at(self, epoch: int) -> Recipe:
        """As its evaluation would have it."""
        found = [c for c in self.checkpointer.list_checkpoints() if c.meta["epoch"] == epoch]
        self.checkpointer.load_checkpoint(found[0])
        self.modules.eval()
        return self


def loader(encoder: Any) -> Any:
    """One batch, of the first four recordings of the demo."""
    rows = [json.loads(line) for line in (MANIFESTS / "demo.jsonl").read_text("utf-8").splitlines()[:4]]
    waves = []
    for row in rows:
        wave, rate = soundfile.read(MANIFESTS / row["audio"], dtype="float32", always_2d=True)
        waves.append(torch.from_numpy(wave[:: max(1, rate // 16000), 0].copy()))
    tokens = [torch.tensor(encoder(r["text"])) for r in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    one = {
        "wavs": pad(waves, True),
        "lens": torch.tensor([len(w) / max(map(len, waves)) for w in waves]),
        "tokens": pad(tokens, True),
        "token_lens": torch.tensor([len(t) / max(map(len, tokens)) for t in tokens]),
    }
    return torch.utils.data.DataLoader([one], batch_size=None)


def train(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, pieces: bool = False, rows: int = 32
) -> Recipe:
    """``python train.py hparams.yaml`` in a recipe's folder: what it leaves is below ``results``."""
    recipe = folder / "recipe"
    recipe.mkdir(parents=True)
    monkeypatch.chdir(recipe)
    yaml = recipe / "hparams.yaml"
    yaml.write_text(text)
    overrides = {"data_folder": "corpus"}
    with open(yaml) as f:
        hparams = load_hyperpyyaml(f, overrides)
    out = Path(hparams["output_folder"])
    hook = __import__("sys").excepthook
    sb.create_experiment_directory(out, hyperparams_to_save=yaml, overrides=overrides, save_env_desc=False)
    monkeypatch.setattr("sys.excepthook", hook)
    letters = sb.dataio.encoder.CTCTextEncoder()
    texts = "".join(json.loads(x)["text"] for x in (MANIFESTS / "demo.jsonl").read_text("utf-8").splitlines())
    letters.insert_blank(index=0)
    letters.update_from_iterable(sorted(set(texts))[: rows - 1], sequence_input=False)
    if pieces:
        import sentencepiece

        corpus = recipe / "text"
        corpus.write_text("the cat sat on the mat\na dog ate that hat\nthat mat the dog ate\n" * 5)
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(out / "25_unigram"),
            vocab_size=25,
            hard_vocab_limit=False,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    else:
        letters.save(out / "save" / "label_encoder.txt")
    brain = Recipe(
        hparams["modules"], hparams["opt_class"], hparams, {"device": "cpu"}, hparams["checkpointer"]
    )
    brain.progressbar = False

    def ids(text: str) -> list[int]:
        return [1 + i % 20 for i in range(8)] if pieces else [letters.lab2ind.get(c, 1) for c in text[:12]]

    brain.fit(hparams["epoch_counter"], loader(ids), loader(ids))
    brain.out = out.resolve()
    return brain.at(epoch=2)


def own(brain: Recipe, audio: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder output and CTC log-probabilities by the brain's own forward."""
    batch = {"wavs": torch.from_numpy(audio)[None], "lens": torch.ones(1)}
    with torch.inference_mode():
        return brain.encoder(batch["wavs"], batch["lens"]), brain.compute_forward(batch, sb.Stage.TEST)[0]


def test_the_best_checkpoint_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain = train(CTC, tmp_path, monkeypatch)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    teacher: Any = load_teacher(f"speechbrain:{brain.out}")
    check_teacher(teacher)
    assert not any(elsewhere.iterdir())  # its yaml names results/… as seen from the recipe's folder
    spec = teacher.describe()
    assert spec.features["chain"] == "compute_features + normalize + enc"
    assert (spec.features["checkpoint"], spec.features["chosen"]) == ("CKPT+2", "min WER: 10")
    assert spec.name == ("SpeechBrain Fbank + InputNormalization + CRDNN + Linear (CKPT+2, min WER: 10)")
    assert [h.stream for h in spec.heads] == ["ctc"]
    assert teacher.tokens()[0] == "<blank>"
    # Its statistics do not move with the model: they were sent to where the features are.
    assert teacher.model["encoder"].parts["normalize"].device == torch.device("cpu")
    for audio in recordings():
        said = own(brain, audio)[1]
        got = ctc_logits(teacher, [audio])[0]
        assert got.shape == said.shape
        assert (got.log_softmax(-1) - said).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("option", "epoch"), [("ckpt=last", 3), ("ckpt=CKPT+1", 1), ("max=WER", 1), ("min=epoch", 1)]
)
def test_another_checkpoint(option: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain = train(CTC, tmp_path, monkeypatch)
    teacher = load_teacher(f"speechbrain:{brain.out},{option}")
    assert teacher.describe().features["checkpoint"] == f"CKPT+{epoch}"
    brain.at(epoch)
    audio = recordings()[0]
    assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - own(brain, audio)[1]).abs().max() <= 1e-5


def test_a_conformer_transducer_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain = train(CONFORMER, tmp_path, monkeypatch, pieces=True)
    teacher: Any = load_teacher(f"speechbrain:{brain.out}")
    check_teacher(teacher)
    features = teacher.describe().features
    assert features["chain"] == "compute_features + normalize + CNN + enc + proj_enc"
    assert features["averaged"] == "CKPT+2, CKPT+3"  # the yaml's avg_checkpoints: 2, the two of least WER
    ranked = brain.checkpointer.find_checkpoints(min_key="WER", max_num_checkpoints=2)
    mean = sb.utils.checkpoints.average_checkpoints(ranked, recoverable_name="model")
    brain.hparams.model.load_state_dict(mean, strict=True)
    labels = teacher.labels("the cat")
    for audio in recordings():
        enc, said = own(brain, audio)
        with torch.inference_mode():
            h, _ = brain.modules.dec(brain.modules.emb(torch.tensor([[0, *labels]])))
            h = brain.modules.proj_dec(h)
            joint = brain.modules.transducer_lin(brain.modules.Tjoint(enc.unsqueeze(2), h.unsqueeze(1)))[0]
        assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - said).abs().max() <= 1e-5
        assert (lattice(teacher, [audio], labels)[0] - joint).abs().max() <= 1e-4
    together, audio = load_teacher(f"speechbrain:{brain.out},batch=together"), recordings()
    waves = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(a) for a in audio], True)
    relative = torch.tensor([len(a) for a in audio]) / len(audio[0])
    with torch.inference_mode():
        many = brain.compute_forward({"wavs": waves, "lens": relative}, sb.Stage.TEST)
    for got, said in zip(ctc_logits(together, audio), many, strict=True):
        assert (got.log_softmax(-1) - said[: len(got)]).abs().max() <= 1e-5
    one = load_teacher(f"speechbrain:{brain.out},avg=1")
    assert "averaged" not in one.describe().features


def test_the_yaml_that_the_training_was_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its references and placeholders are not resolved; the folder is known all the same."""
    brain = train(CTC, tmp_path, monkeypatch)
    (brain.out / "hyperparams.yaml").unlink()
    monkeypatch.chdir(tmp_path)
    teacher = load_teacher(f"speechbrain:{brain.out},hparams={tmp_path}/recipe/hparams.yaml")
    audio = recordings()[0]
    assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - own(brain, audio)[1]).abs().max() <= 1e-5
    assert not (tmp_path / "results").exists()


def test_modules_by_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CTC.replace("    enc: !ref <enc>\n", "    ears: !ref <enc>\n")
    text = text.replace("seq_lin: !ref", "mouth: !ref")
    saved = train(CTC, tmp_path, monkeypatch)
    (saved.out / "hyperparams.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"ears, mouth belongs") as e:
        load_teacher(f"speechbrain:{saved.out}")
    assert "chain=compute_features+normalize+enc" in str(e.value)
    teacher = load_teacher(f"speechbrain:{saved.out},chain=compute_features+normalize+ears")
    audio = recordings()[0]
    assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - own(saved, audio)[1]).abs().max() <= 1e-5
    with pytest.raises(UsageError, match="Did you mean 'ears'"):
        load_teacher(f"speechbrain:{saved.out},chain=compute_features+normalize+eers")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brain = train(CTC, tmp_path, monkeypatch)
    out = brain.out
    with pytest.raises(UsageError, match=r"CKPT\+1 \(WER, end-of-epoch, epoch, unixtime\)"):
        load_teacher(f"speechbrain:{out},ckpt=CKPT+9")
    with pytest.raises(UsageError, match="no such checkpoint"):
        load_teacher(f"speechbrain:{out},max=ACC")
    (out / "save" / "CKPT+2" / "normalizer.ckpt").unlink()
    with pytest.raises(TeacherError, match=r"no file of CKPT\+2 fills normalize"):
        load_teacher(f"speechbrain:{out}")
    (out / "save" / "CKPT+3" / "model.ckpt").unlink()
    with pytest.raises(TeacherError, match=r"no file of CKPT\+3 fills enc"):
        load_teacher(f"speechbrain:{out},ckpt=last")
    (out / "save" / "label_encoder.txt").rename(tmp_path / "letters.txt")
    with pytest.raises(UsageError, match="tokenizer=FILE"):
        load_teacher(f"speechbrain:{out},ckpt=CKPT+1")
    load_teacher(f"speechbrain:{out},ckpt=CKPT+1,tokenizer={tmp_path}/letters.txt")


def test_options_of_a_training_want_a_training(tmp_path: Path) -> None:
    (tmp_path / "hyperparams.yaml").write_text("a: 1")
    with pytest.raises(UsageError, match=r"ckpt= is for a training's folder"):
        load_teacher(f"speechbrain:{tmp_path},ckpt=last")
