"""``icefall:EXP,model=FILE.py:get_model``: an icefall experiment folder and the recipe that made it.

``EXP`` is the ``exp`` folder, or ``pretrained.pt`` itself. Options, as those of ``decode.py``:
``epoch=N``, ``iter=N``, ``avg=N`` (1 if not given), ``use-averaged-model=0``; ``model=FILE.py:NAME`` (needed;
the recipe's ``train.py:get_model``, or a function of one's own without arguments); ``tokens=FILE``,
``bpe=FILE``; ``params.NAME=VALUE`` (a setting of the recipe, ``;`` for a comma); ``sample_rate=HZ``;
``batch=together``; ``tail=N`` (feature frames of silence put behind every recording: ``decode.py`` of causal
models appends 30, training none); ``pickle=trusted`` (read checkpoints that hold more than weights).

Each utterance is encoded alone unless ``batch=together``, which is faster on a GPU: the convolutions in
front of a zipformer see what stands after a recording, so in a batch the last frame of a shorter one differs.

Any other model of the same conventions: ``IcefallTeacher(model, tokens)``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import registry
from ..errors import TeacherError, UsageError
from ..tokens.table import TokenTable
from ..tokens.tokenise import Tokeniser
from ._checkpoints import State, between, fill, mean_of, read_checkpoint
from ._fbank import Fbank
from ._one_by_one import measured_shift, one_by_one, read_alone
from ._options import existing, read_where
from .joiners import AdapterBase, JoinerAdapter, has, sides, takes
from .protocol import Head, Teacher, TeacherSpec, twin
from .script import run_file
from .tap import Tap

OPTIONS = (
    *("epoch", "iter", "avg", "use-averaged-model", "model", "tokens", "bpe", "sample_rate", "batch"),
    *("tail", "pickle"),
)
STATES = ("model", "model_avg", "optimizer", "scheduler", "grad_scaler", "sampler")
LOG_EPSILON = math.log(1e-10)  # icefall's padding of features
HERE = "Run logitstore where the recipe runs: its Python, and its PYTHONPATH."


def load(where: str) -> Teacher:
    """Build the recipe's model and fill it from the checkpoints, averaged as ``decode.py`` averages.

    Raises ``UsageError`` for wrong options or where the recipe's own packages are missing, and
    ``TeacherError`` where model, checkpoint and tokens do not fit each other.
    """
    asked = read_where(where, "exp", OPTIONS, free="params.")
    exp = existing(asked["exp"], "an icefall exp folder, or a .pt file")
    if "model" not in asked:
        raise UsageError(
            "a checkpoint holds weights, not the model", where="--teacher", do="Add model=train.py:get_model."
        )
    said, state, source = _read(exp, asked)
    table = _beside(exp, asked, "tokens", "tokens.txt")
    if table is None:
        raise UsageError(f"there is no tokens.txt near {exp}", where="--teacher", do="Say tokens=FILE.")
    tokens = TokenTable.read(table)
    model = _build(asked, said, tokens)
    fill(model, state, source)
    bpe = _beside(exp, asked, "bpe", "bpe.model")
    rate = int(asked.get("sample_rate", 16000))
    bins = int(said.get("feature_dim", 80))
    return teacher_of(
        model,
        tokens,
        features=Fbank(rate, bins, high_freq=-400.0, snip_edges=False),
        encode_text=_sentencepiece(bpe) if bpe else None,
        alone=read_alone(asked),
        tail=int(asked.get("tail", 0)),
    )


def teacher_of(model: nn.Module, tokens: TokenTable, **options: Any) -> IcefallTeacher:
    """An ``IcefallTransducer`` for a model with a joiner, an ``IcefallTeacher`` for one without."""
    kind = IcefallTransducer if getattr(model, "joiner", None) is not None else IcefallTeacher
    return kind(model, tokens, **options)


class IcefallTeacher:
    """A model with ``forward_encoder`` (or ``encoder``) and ``ctc_output``, as icefall writes them.

    Args:
        model: ``forward_encoder(x, x_lens)`` gives (N, T, C) and (N,); ``ctc_output`` is a Sequential. Or
            one of the older models that ``_icefall_whole`` knows.
        tokens: k2's table; symbols beyond the model's classes, ``#0`` and the like, are cut off.
        features: ``audio → (T0, F)``; settings are taken from its ``to_json`` where it has one.
        sample_rate: Hz; the features' own where they say it.
        encode_text: text → ids; by the longest tokens that fit where it is not given.
        alone: encode utterance by utterance, so that no padding reaches into an utterance's frames.
        tail: feature frames of log(1e-10) put behind every recording; they make frames like any others.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: TokenTable,
        *,
        features: Callable[[NDArray[np.float32]], torch.Tensor] | None = None,
        sample_rate: int | None = None,
        encode_text: Callable[[str], list[int]] | None = None,
        alone: bool = True,
        tail: int = 0,
    ) -> None:
        name = type(model).__name__
        model = as_encoder_and_head(model)
        self.model: Any = model.eval()
        self.compute: Any = features or Fbank(sample_rate or 16000, high_freq=-400.0, snip_edges=False)
        self.rate = sample_rate or int(getattr(self.compute, "sample_rate", 16000))
        self.encode_text, self.alone, self.tail = encode_text, alone, tail
        self.ctc_path = _ctc_path(model)
        self._refuse_random_chunks()
        heads = self._heads(tokens.blank)
        if not heads:
            raise TeacherError(
                f"{name} has neither ctc_output nor joiner",
                do="IcefallTeacher documents what the model must have.",
            )
        linear: Any = model.get_submodule(heads[0].module)
        if linear.out_features > len(tokens):
            raise TeacherError(f"{len(tokens)} tokens, but {linear.out_features} classes")
        self.table = TokenTable(tokens.tokens[: linear.out_features], tokens.blank)
        self._longest = Tokeniser(self.table)
        settings = self.compute.to_json() if hasattr(self.compute, "to_json") else {}
        settings = {**settings, "batch": "alone" if alone else "together"} | ({"tail": tail} if tail else {})
        shift = measured_shift(self, self.rate)
        self.spec = TeacherSpec(name, self.rate, shift, heads, settings)

    def _refuse_random_chunks(self) -> None:
        encoder = getattr(self.model, "encoder", None)
        sizes = getattr(encoder, "chunk_size", ())
        if getattr(encoder, "causal", False) and isinstance(sizes, list | tuple) and len(sizes) > 1:
            raise TeacherError(
                f"a streaming encoder with the chunk sizes {', '.join(map(str, sizes))}",
                why="It draws one of them at random in every forward, in eval mode too.",
                do="Say which: params.chunk_size=32,params.left_context_frames=128.",
            )

    def _heads(self, blank: int) -> tuple[Head, ...]:
        return (Head("ctc", self.ctc_path, blank),) if self.ctc_path else ()

    def describe(self) -> TeacherSpec:
        return self.spec

    def tokens(self) -> TokenTable:
        return self.table

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        value: torch.Tensor = torch.as_tensor(self.compute(audio))
        if len(value) < 9:
            raise ValueError(f"{len(audio)} samples are too short for one frame of the encoder")
        return nn.functional.pad(value, (0, 0, 0, self.tail), value=LOG_EPSILON)

    def _encode(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = getattr(self.model, "forward_encoder", None) or self.model.encoder
        out, frames = encoder(x, lengths)[:2]
        out = (
            out[-1] if isinstance(out, list) else out
        )  # pruned_transducer_stateless6: its layers, the last last
        return out, frames.long().clamp(max=out.shape[1])

    def _encode_one(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        out, frames = self._encode(x, length)
        return out[:, : int(frames[0])]  # some give a frame more than they call valid

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if self.alone:
            enc, frames = one_by_one(self._encode_one, features, lengths)
        else:
            outside = torch.arange(features.shape[1], device=lengths.device)[None] >= lengths[:, None]
            # As in training: convolutions see the padding.
            enc, frames = self._encode(features.masked_fill(outside[..., None], LOG_EPSILON), lengths)
        said = {"enc": enc, "lengths": frames}
        if self.ctc_path:
            said["ctc"] = self.model.get_submodule(self.ctc_path.rpartition(".")[0])(enc)
        return said

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        """What the model itself says, for the self-check."""
        return {"ctc": output["ctc"].float().log_softmax(-1)} if self.ctc_path else {}

    def labels(self, text: str) -> list[int]:
        """Token ids of a text; raises ``ValueError`` for one that has no tokens."""
        ids = [int(i) for i in self.encode_text(text)] if self.encode_text else self._longest.labels(text)
        unknown = [self.table[i] for i in ids if i == self.table.blank or self.table[i] == "<unk>"]
        if unknown:
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        return ids


class IcefallTransducer(IcefallTeacher):
    """The same with ``decoder`` and ``joiner``, of any kind that ``drives.icefall`` knows."""

    def _heads(self, blank: int) -> tuple[Head, ...]:
        own = int(getattr(self.model.decoder, "blank_id", blank))
        if own != blank:
            raise TeacherError(f"the blank is {blank} in the tokens and {own} in the decoder")
        return (*super()._heads(blank), Head("rnnt", "joiner.output_linear", blank))

    @cached_property
    def drive(self) -> JoinerAdapter:
        """Of its joiner."""
        return IcefallJoiner(self.model, blank=self.table.blank)

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return sides(self.drive, output["enc"][b, : int(output["lengths"][b])], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return self.drive.join(enc, dec)


def _ctc_path(model: nn.Module) -> str:
    for name in ("ctc_output", "ctc_output_module"):
        layers = getattr(model, name, None)
        if isinstance(layers, nn.Module):
            found = [n for n, m in layers.named_modules() if isinstance(m, nn.Linear)]
            if len(found) == 1 and found[0]:
                return f"{name}.{found[0]}"
    return ""


def _read(exp: Path, asked: Mapping[str, str]) -> tuple[dict[str, Any], State, str]:
    """The settings that a checkpoint holds, the weights asked for, and where they are from."""
    trusted = asked.get("pickle") == "trusted"
    avg, by_iter = int(asked.get("avg", 1)), "iter" in asked
    if exp.is_file() or not {"epoch", "iter"} & set(asked):
        file = exp if exp.is_file() else existing(exp / "pretrained.pt", "a checkpoint: say epoch=N")
        last = read_checkpoint(file, trusted=trusted)
        return _settings(last), dict(last.get("model", last)), str(file)
    if by_iter:
        saved = {int(f.stem.rpartition("-")[2]): f for f in exp.glob("checkpoint-*.pt")}
    else:
        saved = {int(f.stem.rpartition("-")[2]): f for f in exp.glob("epoch-*.pt")}
    number = int(asked["iter" if by_iter else "epoch"])
    before = sorted(n for n in saved if n <= number)
    running = avg > 1 and asked.get("use-averaged-model", "1") not in ("0", "no", "false", "False")
    wanted = before[-(avg + running) :]
    if number not in saved or len(wanted) < avg + running:
        raise UsageError(
            f"{exp} has {len(wanted)} of the {avg + running} checkpoints up to {number} that avg={avg} needs",
            where="--teacher",
            do=f"There are: {', '.join(saved[n].name for n in sorted(saved)) or 'none'}.",
        )
    source = ", ".join(saved[n].name for n in wanted)
    if running:
        start, last = (read_checkpoint(saved[n], trusted=trusted) for n in (wanted[0], number))
        return _settings(last), between(start, last, source), source
    read = [read_checkpoint(saved[n], trusted=trusted) for n in wanted]
    return _settings(read[-1]), mean_of([c["model"] for c in read]), source


def _settings(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in checkpoint.items() if k not in STATES and "model" in checkpoint}


class _Params(dict[str, Any]):
    """icefall's AttributeDict: settings as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the recipe has no setting {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _build(asked: Mapping[str, str], said: Mapping[str, Any], tokens: TokenTable) -> nn.Module:
    file, _, name = asked["model"].rpartition(":")
    path = existing(file or asked["model"], "the file with the model's function: model=train.py:get_model")
    try:
        with _own_threads():
            module = run_file(path.resolve())
    except TeacherError as e:
        if isinstance(e.__cause__, ModuleNotFoundError):
            raise UsageError(f"the recipe needs {e.__cause__.name!r}", where=str(path), do=HERE) from e
        raise
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{path} has no function {name!r}", do=registry.suggest(name, known))
    with registry.needs("icefall", HERE):
        model = factory(_params(module, asked, said, tokens)) if _takes_one(factory) else factory()
    if not isinstance(model, nn.Module):
        raise TeacherError(f"{name}() gave {type(model).__name__}, not a model", where=str(path))
    return model


@contextmanager
def _own_threads() -> Iterator[None]:
    """Importing a train.py sets the process to one thread, and fails where threads have run already."""
    names = ("set_num_threads", "set_num_interop_threads")
    real = {name: getattr(torch, name) for name in names}
    for name in names:
        setattr(torch, name, lambda n: None)
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(torch, name, function)


def _takes_one(factory: Callable[..., Any]) -> bool:
    needed = [
        p for p in inspect.signature(factory).parameters.values() if p.default is p.empty and p.kind < 2
    ]
    return len(needed) == 1


def _params(module: Any, asked: Mapping[str, str], said: Mapping[str, Any], tokens: TokenTable) -> _Params:
    """As decode.py makes them: the recipe's, its options' defaults, what the run was trained with, yours."""
    params = _Params(module.get_params() if hasattr(module, "get_params") else {})
    options: dict[str, Any] = {}
    if hasattr(module, "get_parser"):
        options = vars(module.get_parser().parse_args([]))
    classes = sum(1 for t in tokens.tokens if not (t.startswith("#") and t[1:].isdigit()))
    params.update({**options, "vocab_size": classes, "blank_id": tokens.blank})
    named = {"unk_id": "<unk>", "sos_id": "<sos/eos>", "eos_id": "<sos/eos>"}
    params.update({k: tokens.tokens.index(t) for k, t in named.items() if t in tokens.tokens})
    params.update(said)
    for key, text in asked.items():
        if key.startswith("params."):
            name, value = key.removeprefix("params."), text.replace(";", ",")
            if name not in params:
                raise UsageError(f"the recipe has no setting {name!r}", do=registry.suggest(name, params))
            kind = type(params[name])
            params[name] = value in ("1", "true", "True") if kind is bool else kind(value)
    return params


def _beside(exp: Path, asked: Mapping[str, str], option: str, name: str) -> Path | None:
    """The file asked for, or the one of its name in the exp folder or in data/lang* beside it."""
    if option in asked:
        return existing(asked[option], name)
    folder = exp if exp.is_dir() else exp.parent
    found = [f for f in (folder / name, *sorted(folder.parent.glob(f"data/lang*/{name}"))) if f.exists()]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} files called {name} near {exp}", where="--teacher", do=f"Say {option}=FILE."
        )
    return found[0] if found else None


def _sentencepiece(path: Path) -> Callable[[str], list[int]]:
    with registry.needs("icefall", "pip install sentencepiece"):
        import sentencepiece
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda text: [int(i) for i in processor.encode(text)]


class IcefallJoiner(AdapterBase):
    """A decoder with or without state, and its joiner; see ``_icefall_joiner``."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """An ``output_linear`` behind an encoder's and a decoder's output, and a ``decoder`` beside it."""
        named = has(joint, "output_linear") and has(owner, "decoder")
        return named and takes(joint, "encoder_out") and takes(joint, "decoder_out")

    def __init__(self, owner: Any, name: str = "joiner", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "output_linear")
        self.classes = int(self.joint.output_linear.out_features)
        self.width = int(self.joint.encoder_proj.in_features) if has(self.joint, "encoder_proj") else 0

    def own_blank(self) -> int:
        return int(getattr(self.owner.decoder, "blank_id", 0))

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return self.joint.encoder_proj(enc) if has(self.joint, "encoder_proj") else enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        said = self.owner.decoder(self.begun(labels, device))
        dec: torch.Tensor = (said[0] if isinstance(said, tuple) else said)[0]
        return self.joint.decoder_proj(dec) if has(self.joint, "decoder_proj") else dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return joined(self.joint, enc, dec)


JOINER = IcefallJoiner


def joined(joiner: Any, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
    """(t, J) and (U+1, J), projected where the joiner projects → (t, U+1, V)."""
    t, u = len(enc), len(dec)
    if hasattr(joiner, "encoder_proj"):
        said = joiner(enc[None, :, None], dec[None, None], project_input=False)
    elif hasattr(joiner, "inner_linear"):
        said = joiner(enc[None, :, None].expand(1, t, u, -1), dec[None, None].expand(1, t, u, -1))
    elif len(inspect.signature(joiner.forward).parameters) > 2:
        said = joiner(enc[None], dec[None], torch.tensor([t]), torch.tensor([u]))
    else:
        said = joiner(enc[None], dec[None])
    logits: torch.Tensor = said.reshape(t, u, -1)
    return logits


def as_encoder_and_head(model: nn.Module) -> nn.Module:
    """The model itself where it has an encoder and a head already, else one around it that has."""
    if isinstance(getattr(model, "ctc_output", None), nn.Module) or hasattr(model, "joiner"):
        return model
    layers = getattr(model, "encoder_output_layer", None)
    if isinstance(layers, nn.Module):
        found = [n for n, m in layers.named_modules() if isinstance(m, nn.Linear)]
        return Conformer(model, f"encoder_output_layer.{found[0]}") if len(found) == 1 else model
    if isinstance(getattr(model, "tdnn", None), nn.Module):
        return Tdnn(model, "linear")
    return model


class _Whole(nn.Module):
    """A model whose head runs inside its forward: once an utterance. Its twin says the answer once a batch.

    Args:
        model: the recipe's.
        head: path of the Linear in front of its softmax.
    """

    layout = "BTV"

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.asr: Any = model
        self.ctc_output = nn.Sequential(twin(model.get_submodule(head)))
        self._head = head

    def encoder(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, T0, F) and (N,) → what goes into the head, (N, T, C), and valid frames (N,)."""
        with Tap(self.asr, {"in": self._head}, layouts={"in": self.layout}, side="input") as tap:
            said = self.call(x.clone(), lengths)  # some scale their input in place
            hidden = tap.take("in")
        return hidden, self.frames(said, lengths)

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        raise NotImplementedError

    def frames(self, said: Any, lengths: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Conformer(_Whole):
    """``model(x, supervision)`` → log-probabilities (N, T, V), encoder (T, N, C), padding (N, T)."""

    layout = "TBV"

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        order = torch.arange(len(lengths))
        segments = {"sequence_idx": order, "start_frame": 0 * order, "num_frames": lengths.cpu()}
        return self.asr(x, segments)

    def frames(self, said: Any, lengths: torch.Tensor) -> torch.Tensor:
        padding: torch.Tensor = said[2]
        return (~padding).sum(1)


class Tdnn(_Whole):
    """``model(x)`` with x (N, F, T0) → log-probabilities (N, T, V); its last convolution strides."""

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return self.asr(x.transpose(1, 2))

    def frames(self, said: Any, lengths: torch.Tensor) -> torch.Tensor:
        return (lengths - 1).div(self.asr.subsampling_factor, rounding_mode="floor") + 1
