"""icefall: its conventions in a small recipe of our own. Its real ones: ``test_icefall_recipes.py``."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from logitstore.errors import TeacherError, UsageError
from logitstore.teachers import load_teacher
from logitstore.teachers._checkpoints import between, mean_of
from logitstore.teachers.icefall import IcefallTeacher, teacher_of
from logitstore.tokens.table import TokenTable
from tests.frameworks.teacher_checks import batched, check_teacher, ctc_logits, lattice, recordings

TOKENS = ["<blk>", "<sos/eos>", "<unk>", "▁the", "▁", "▁c", "at", "a", "t", "s", "▁s", "e", "h"]

RECIPE = '''
"""A recipe as train.py is one: settings, options, get_model(params)."""
import argparse
import torch
from torch import nn


class Decoder(nn.Module):
    def __init__(self, classes, dim, blank_id):
        super().__init__()
        self.blank_id = blank_id
        self.embedding = nn.Embedding(classes, dim)
        self.conv = nn.Conv1d(dim, dim, 2, bias=False)

    def forward(self, y, need_pad=True):
        out = self.embedding(y).transpose(1, 2)
        return self.conv(nn.functional.pad(out, (1, 0))).transpose(1, 2).relu()


class Joiner(nn.Module):
    def __init__(self, encoder, decoder, dim, classes):
        super().__init__()
        self.encoder_proj = nn.Linear(encoder, dim)
        self.decoder_proj = nn.Linear(decoder, dim)
        self.output_linear = nn.Linear(dim, classes)

    def forward(self, encoder_out, decoder_out, project_input=True):
        assert encoder_out.ndim == decoder_out.ndim
        if project_input:
            encoder_out, decoder_out = self.encoder_proj(encoder_out), self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))


class Encoder(nn.Module):
    causal = False

    def __init__(self, bins, dim, chunk_size):
        super().__init__()
        self.chunk_size = tuple(int(c) for c in chunk_size.split(","))
        self.conv = nn.Conv1d(bins, dim, 7, stride=4)

    def forward(self, x, lengths):
        return self.conv(x.transpose(1, 2)).transpose(1, 2).tanh(), (lengths - 7) // 4 + 1


class Model(nn.Module):
    def __init__(self, params):
        super().__init__()
        self.encoder = Encoder(params.feature_dim, params.encoder_dim, params.chunk_size)
        self.encoder.causal = params.causal
        if params.use_ctc:
            self.ctc_output = nn.Sequential(
                nn.Dropout(0.1), nn.Linear(params.encoder_dim, params.vocab_size), nn.LogSoftmax(-1)
            )
        if params.use_transducer:
            self.decoder = Decoder(params.vocab_size, 8, params.blank_id)
            self.joiner = Joiner(params.encoder_dim, 8, 10, params.vocab_size)

    def forward_encoder(self, x, x_lens):
        return self.encoder(x, x_lens)


def get_params():
    class Settings(dict):
        __getattr__ = dict.__getitem__

    return Settings(feature_dim=80, subsampling_factor=4)


def get_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder-dim", type=int, default=24)
    parser.add_argument("--chunk-size", default="16,32,-1")
    parser.add_argument("--causal", type=bool, default=False)
    parser.add_argument("--use-ctc", type=bool, default=True)
    parser.add_argument("--use-transducer", type=bool, default=True)
    return parser


def get_model(params):
    return Model(params)


def ready():
    params = get_params()
    params.update(vars(get_parser().parse_args([])), vocab_size=13, blank_id=0, encoder_dim=16)
    return get_model(params)
'''


class Experiment:
    """An exp folder with three epochs, a table and the recipe beside it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.exp, self.recipe = folder / "exp", folder / "train.py"
        self.exp.mkdir()
        self.recipe.write_text(RECIPE)
        lang = folder / "data" / "lang_bpe_13"
        lang.mkdir(parents=True)
        lines = [*TOKENS, "#0", "#1"]
        (lang / "tokens.txt").write_text("".join(f"{t} {i}\n" for i, t in enumerate(lines)), encoding="utf-8")
        space: dict[str, Any] = {}
        exec(RECIPE, space)
        params = space["get_params"]()
        params.update(vars(space["get_parser"]().parse_args([])), vocab_size=13, blank_id=0, encoder_dim=20)
        params.update(settings)
        torch.manual_seed(0)
        self.models = [space["get_model"](params).eval() for _ in range(3)]
        for epoch, model in enumerate(self.models, 1):
            torch.save(
                {
                    "model": model.state_dict(),
                    "model_avg": model.state_dict(),
                    "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
                    "sampler": None,
                    "exp_dir": self.exp,  # a PosixPath, as train.py keeps its options
                    "batch_idx_train": 10 * epoch + 3,
                    "average_period": 10,
                    **{k: v for k, v in params.items() if k not in ("vocab_size", "blank_id")},
                },
                self.exp / f"epoch-{epoch}.pt",
            )

    def teacher(self, options: str = "epoch=3") -> Any:
        return load_teacher(f"icefall:{self.exp},model={self.recipe}:get_model,{options}")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path)


def own_ctc(model: Any, teacher: Any, audio: Any) -> torch.Tensor:
    x = teacher.features(audio)[None]
    with torch.inference_mode():
        enc, lengths = model.forward_encoder(x, torch.tensor([x.shape[1]]))
        return model.ctc_output(enc)[0, : lengths[0]]


def test_an_experiment_folder(experiment: Experiment) -> None:
    teacher = experiment.teacher()
    check_teacher(teacher)
    spec = teacher.describe()
    assert [h.module for h in spec.heads] == ["ctc_output.1", "joiner.output_linear"]
    assert (spec.frame_shift, spec.features["snip_edges"]) == (640, False)
    assert teacher.tokens() == TokenTable(tuple(TOKENS), 0)  # without #0 and #1
    for audio in recordings():
        got, own = ctc_logits(teacher, [audio])[0], own_ctc(experiment.models[2], teacher, audio)
        assert got.shape == own.shape
        assert (got.log_softmax(-1) - own).abs().max() <= 1e-5
        assert got.logsumexp(-1).abs().max() > 1e-2  # before the LogSoftmax


def test_the_joiner_in_slices_is_the_joiner_at_once(experiment: Experiment) -> None:
    teacher, model = experiment.teacher(), experiment.models[2]
    labels = teacher.labels("the cat sat")
    assert [teacher.tokens()[i] for i in labels] == ["▁the", "▁c", "at", "▁s", "at"]
    audio = recordings()[0]
    x = teacher.features(audio)[None]
    with torch.inference_mode():
        enc, _ = model.forward_encoder(x, torch.tensor([x.shape[1]]))
        dec = model.decoder(torch.tensor([[0, *labels]]))
        own = model.joiner(enc[:, :, None], dec[:, None])[0]
    assert (lattice(teacher, [audio], labels)[0] - own).abs().max() <= 1e-4


def test_text_outside_the_table(experiment: Experiment) -> None:
    with pytest.raises(ValueError, match="does not tokenise"):
        experiment.teacher().labels("the dog")


def test_padding_is_log_epsilon_or_nothing(experiment: Experiment) -> None:
    together, alone = experiment.teacher("epoch=3,batch=together"), experiment.teacher()
    audio = recordings()
    features, lengths = batched(together, audio)
    padded = pad_sequence(
        [together.features(a) for a in audio], batch_first=True, padding_value=math.log(1e-10)
    )
    with torch.inference_mode():
        own = experiment.models[2].forward_encoder(padded, lengths)[0]
        assert torch.equal(together.forward(features, lengths)["enc"], own)
    for a, b in zip(ctc_logits(together, audio), ctc_logits(alone, audio), strict=True):
        assert (a - b).abs().max() < 1e-4
    assert together.describe() != alone.describe()


def test_averaging(experiment: Experiment) -> None:
    one, two, three = (m.state_dict() for m in experiment.models)
    plain = experiment.teacher("epoch=3,avg=2,use-averaged-model=0").model.state_dict()
    running = experiment.teacher("epoch=3,avg=2").model.state_dict()
    for name in one:
        assert torch.allclose(plain[name], (two[name] + three[name]) / 2, atol=1e-6)
        # model_avg is the mean since training began: 30 batches of it less the first 10
        assert torch.allclose(running[name], (three[name] * 30 - one[name] * 10) / 20, atol=1e-5)
    with pytest.raises(UsageError, match=r"has 3 of the 4 .*avg=3"):
        experiment.teacher("epoch=3,avg=3")
    with pytest.raises(UsageError, match=r"epoch-1\.pt, epoch-2\.pt, epoch-3\.pt"):
        experiment.teacher("epoch=7")
    with pytest.raises(UsageError, match=r"pretrained\.pt does not exist"):
        experiment.teacher("avg=1")


def test_averages_keep_what_is_not_floating_point() -> None:
    states = [{"w": torch.full((2,), float(i)), "n": torch.tensor(i)} for i in (1, 2)]
    assert mean_of(states)["n"] == 2
    with pytest.raises(TeacherError, match="no model_avg"):
        between({}, {}, "here")


def test_iterations(experiment: Experiment) -> None:
    (experiment.exp / "epoch-2.pt").rename(experiment.exp / "checkpoint-2000.pt")
    got = experiment.teacher("iter=2000").model.state_dict()
    assert torch.equal(got["ctc_output.1.weight"], experiment.models[1].state_dict()["ctc_output.1.weight"])


def test_a_pretrained_file_and_a_function_without_arguments(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, encoder_dim=16)
    state = {f"module.{k}": v for k, v in experiment.models[0].state_dict().items()}  # DDP's names
    torch.save({"model": state}, experiment.exp / "pretrained.pt")
    for where in (experiment.exp, experiment.exp / "pretrained.pt"):
        teacher = load_teacher(f"icefall:{where},model={experiment.recipe}:ready")
        audio = recordings()[0]
        own = own_ctc(experiment.models[0], teacher, audio)
        assert (ctc_logits(teacher, [audio])[0].log_softmax(-1) - own).abs().max() <= 1e-5


def test_weights_that_do_not_fit_are_named(experiment: Experiment) -> None:
    with pytest.raises(TeacherError, match="do not fit Model"):
        experiment.teacher("epoch=3,params.encoder_dim=24")
    checkpoint = torch.load(experiment.exp / "epoch-3.pt", weights_only=False)
    del checkpoint["model"]["ctc_output.1.weight"]
    torch.save(checkpoint, experiment.exp / "epoch-3.pt")
    with pytest.raises(TeacherError, match=r"lacks ctc_output\.1\.weight"):
        experiment.teacher()


def test_settings_of_the_recipe(experiment: Experiment) -> None:
    with pytest.raises(UsageError, match="Did you mean 'encoder_dim'"):
        experiment.teacher("epoch=3,params.encoder_dims=24")
    with pytest.raises(UsageError, match="Add model="):
        load_teacher(f"icefall:{experiment.exp},epoch=3")


def test_a_random_chunk_size_is_refused(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, causal=True)
    with pytest.raises(TeacherError, match=r"chunk sizes 16, 32, -1"):
        experiment.teacher()
    assert experiment.teacher("epoch=3,params.chunk_size=32").model.encoder.chunk_size == (32,)


def test_pickled_code_is_not_run_unless_told(experiment: Experiment) -> None:
    checkpoint = torch.load(experiment.exp / "epoch-3.pt", weights_only=False)
    torch.save({**checkpoint, "env": textwrap.TextWrapper()}, experiment.exp / "epoch-3.pt")
    with pytest.raises(TeacherError, match="pickle=trusted"):
        experiment.teacher()
    experiment.teacher("epoch=3,pickle=trusted")


def test_a_recipe_that_needs_what_is_missing(experiment: Experiment) -> None:
    experiment.recipe.write_text("import no_such_k2\n" + RECIPE)
    with pytest.raises(UsageError, match="needs 'no_such_k2'"):
        experiment.teacher()


def test_a_recipe_does_not_take_the_threads(experiment: Experiment) -> None:
    before = torch.get_num_threads()
    experiment.recipe.write_text(
        f"import torch\ntorch.set_num_threads({before + 1})\ntorch.set_num_interop_threads(1)\n{RECIPE}"
    )
    experiment.teacher()
    assert torch.get_num_threads() == before


def test_a_model_of_ones_own() -> None:
    space: dict[str, Any] = {}
    exec(RECIPE, space)
    table = TokenTable(tuple(TOKENS), 0)
    model = space["ready"]()
    check_teacher(teacher_of(model, table))
    del model.joiner, model.decoder
    teacher = teacher_of(model, table)
    assert type(teacher) is IcefallTeacher
    assert [h.stream for h in teacher.describe().heads] == ["ctc"]
    with pytest.raises(TeacherError, match="neither ctc_output nor joiner"):
        teacher_of(nn.Sequential(nn.Linear(2, 2)), table)


class Joiner(nn.Module):
    """The joiners from before the two projections, in the order of their age; see ``_icefall_joiner``."""

    def __init__(self, kind: str, dim: int = 20) -> None:
        super().__init__()
        self.kind = kind
        if kind == "expanded":
            self.inner_linear = nn.Linear(dim, 6)
        self.output_linear = nn.Linear(6 if kind == "expanded" else dim, len(TOKENS))

    def full(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        """(T, C) and (U, C) → (T, U, V)."""
        added = torch.tanh(enc[:, None] + dec[None])
        inner = self.inner_linear(added).relu() if self.kind == "expanded" else added
        return self.output_linear(inner)


class Plain(Joiner):
    def forward(self, encoder_out: Any, decoder_out: Any) -> torch.Tensor:
        return torch.stack([self.full(e, d) for e, d in zip(encoder_out, decoder_out, strict=True)])


class Expanded(Joiner):
    def forward(self, encoder_out: Any, decoder_out: Any) -> torch.Tensor:
        assert encoder_out.shape == decoder_out.shape
        return self.output_linear(self.inner_linear(torch.tanh(encoder_out + decoder_out)).relu())


class Packed(Joiner):
    def forward(self, encoder_out: Any, decoder_out: Any, encoder_len: Any, decoder_len: Any) -> torch.Tensor:
        said = [
            self.full(e[:t], d[:u]).reshape(-1, len(TOKENS))
            for e, d, t, u in zip(
                encoder_out, decoder_out, encoder_len.tolist(), decoder_len.tolist(), strict=True
            )
        ]
        return torch.cat(said)


class Squeezed(Plain):
    def forward(
        self, encoder_out: Any, decoder_out: Any, unused: Any = None, too: Any = None
    ) -> torch.Tensor:
        return super().forward(encoder_out, decoder_out).squeeze(2).squeeze(1)


@pytest.mark.parametrize("kind", [Plain, Expanded, Packed, Squeezed])
def test_joiners_without_projections(kind: type[Joiner], experiment: Experiment) -> None:
    model = experiment.models[0]
    model.decoder = type(model.decoder)(len(TOKENS), 20, 0).eval()
    model.joiner = kind(kind.__name__.lower()).eval()
    teacher: Any = teacher_of(model, TokenTable(tuple(TOKENS), 0))
    check_teacher(teacher)
    audio, labels = recordings()[0], [3, 5, 6]
    x = teacher.features(audio)[None]
    with torch.inference_mode():
        enc, _ = model.forward_encoder(x, torch.tensor([x.shape[1]]))
        own = model.joiner.full(enc[0], model.decoder(torch.tensor([[0, *labels]]))[0])
    for step in (1, 3):  # of one frame, an axis that is squeezed away
        assert (lattice(teacher, [audio], labels, step)[0] - own).abs().max() <= 1e-4
    assert (lattice(teacher, [audio], [], step=1)[0] - own[:, :1]).abs().max() <= 1e-4


class Conformer(nn.Module):
    """As ``conformer_ctc`` has it: lengths in supervisions, its input scaled in place, the head inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(80, 16, 7, stride=4)
        self.encoder_output_layer = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, len(TOKENS)))

    def ctc_output(self, x: torch.Tensor) -> torch.Tensor:  # a method, not a module
        return self.encoder_output_layer(x).permute(1, 0, 2).log_softmax(-1)

    def forward(self, x: torch.Tensor, supervision: Any = None) -> tuple[Any, Any, Any]:
        x *= 0.1
        memory = self.conv(x.transpose(1, 2)).permute(2, 0, 1).tanh()
        padding = None
        if supervision is not None:
            frames = ((supervision["num_frames"] - 1) // 2 - 1) // 2
            padding = torch.arange(len(memory))[None] >= frames[:, None]
        return self.ctc_output(memory), memory, padding


class Tdnn(nn.Module):
    """As ``tdnn_lstm_ctc`` has it: (N, C, T) in, no lengths, a stride of three."""

    def __init__(self) -> None:
        super().__init__()
        self.subsampling_factor = 3
        self.tdnn = nn.Sequential(nn.Conv1d(80, 16, 3, stride=3, padding=1), nn.ReLU(inplace=True))
        self.linear = nn.Linear(16, len(TOKENS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.tdnn(x).transpose(1, 2)).log_softmax(-1)


@pytest.mark.parametrize("kind", [Conformer, Tdnn])
def test_models_of_one_forward(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    table = TokenTable(tuple(TOKENS), 0)
    teacher, together = teacher_of(model, table), teacher_of(model, table, alone=False)
    check_teacher(teacher)
    check_teacher(together)
    assert (teacher.describe().name, teacher.describe().frame_shift) == (
        kind.__name__,
        640 if kind is Conformer else 480,
    )
    for audio, many in zip(recordings(), ctc_logits(together, recordings()), strict=True):
        x = teacher.features(audio)[None]
        with torch.inference_mode():
            own = model(x.clone())[0][0] if kind is Conformer else model(x.transpose(1, 2))[0]
        got = ctc_logits(teacher, [audio])[0]
        assert got.shape == own.shape == many.shape
        assert (got.log_softmax(-1) - own).abs().max() <= 1e-5


def test_a_tail_of_silence(experiment: Experiment) -> None:
    plain, tailed = experiment.teacher(), experiment.teacher("epoch=3,tail=30")
    audio = recordings()[0]
    x = torch.nn.functional.pad(plain.features(audio), (0, 0, 0, 30), value=math.log(1e-10))
    assert torch.equal(tailed.features(audio), x)
    assert len(ctc_logits(tailed, [audio])[0]) == (len(x) - 7) // 4 + 1
    assert (tailed.describe().features["tail"], "tail" in plain.describe().features) == (30, False)


def test_ids_that_a_recipe_takes_from_its_pieces(experiment: Experiment) -> None:
    asked = "assert (params.unk_id, params.sos_id) == (2, 1)"
    experiment.recipe.write_text(RECIPE.replace("return Model(params)", f"{asked}\n    return Model(params)"))
    experiment.teacher()
