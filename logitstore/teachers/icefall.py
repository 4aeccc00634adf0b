"""``icefall:EXP,model=FILE.py:get_model``: an icefall experiment folder and the recipe that made it.

``EXP`` is the ``exp`` folder, or ``pretrained.pt`` itself. Options, named as those of ``decode.py``:
``epoch=N``, ``iter=N``, ``avg=N`` (1 if not given), ``use-averaged-model=0``; ``model=FILE.py:NAME``
(required; the recipe's ``train.py:get_model``, or your own function without arguments); ``tokens=FILE``,
``bpe=FILE``; ``params.NAME=VALUE`` (a setting of the recipe, ``;`` for a comma); ``sample_rate=HZ``;
``batch=together``; ``tail=N`` (feature frames of silence behind every recording: ``decode.py`` of causal
models appends 30, their training none); ``pickle=trusted`` (read checkpoints that hold more than weights).

Each utterance is encoded alone unless ``batch=together``, which is faster on a GPU: the convolutions in front
of a zipformer see the padding behind a recording, so in a batch the last frame of a shorter one differs.

For any other model with the same methods and modules: ``IcefallTeacher(model, tokens)``.
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
from ._one_by_one import EncoderTeacher, measured_shift, read_alone
from ._options import existing, read_where
from .joiners import AdapterBase, JoinerAdapter, JoinerMethods, has_attributes, takes_parameter
from .protocol import Head, Teacher, TeacherSpec, copy_without_hooks
from .script import run_file
from .tap import Tap

OPTIONS = (
    *("epoch", "iter", "avg", "use-averaged-model", "model", "tokens", "bpe", "sample_rate", "batch"),
    *("tail", "pickle"),
)
STATES = ("model", "model_avg", "optimizer", "scheduler", "grad_scaler", "sampler")
LOG_EPSILON = math.log(1e-10)  # icefall's padding value of features
LEAST_FEATURES = 9  # feature frames that a subsampling by 4 needs for one frame
RUN_WHERE = "Run logitstore where the recipe runs: with its Python and its PYTHONPATH."


def load(where: str) -> Teacher:
    """Build the recipe's model and load the checkpoints, averaged as ``decode.py`` averages them.

    Raises ``UsageError`` for wrong options or where the recipe's own packages are missing, and
    ``TeacherError`` where model, checkpoint and tokens do not fit each other.
    """
    options = read_where(where, "exp", OPTIONS, free="params.")
    exp = existing(options["exp"], "an icefall exp folder, or a .pt file")
    if "model" not in options:
        raise UsageError(
            "a checkpoint holds weights, not the model", where="--teacher", do="Add model=train.py:get_model."
        )
    settings, state, source = _read_checkpoints(exp, options)
    table = _file_near(exp, options, "tokens", "tokens.txt")
    if table is None:
        raise UsageError(
            f"there is no tokens.txt near {exp}", where="--teacher", do="Name it with tokens=FILE."
        )
    tokens = TokenTable.read(table)
    model = _build(options, settings, tokens)
    fill(model, state, source)
    bpe = _file_near(exp, options, "bpe", "bpe.model")
    rate = int(options.get("sample_rate", 16000))
    bins = int(settings.get("feature_dim", 80))
    return teacher_of(
        model,
        tokens,
        features=Fbank(rate, bins, high_freq=-400.0, snip_edges=False),
        encode_text=_sentencepiece(bpe) if bpe else None,
        alone=read_alone(options),
        tail=int(options.get("tail", 0)),
    )


def teacher_of(
    model: nn.Module,
    tokens: TokenTable,
    *,
    features: Callable[[NDArray[np.float32]], torch.Tensor] | None = None,
    sample_rate: int | None = None,
    encode_text: Callable[[str], list[int]] | None = None,
    alone: bool = True,
    tail: int = 0,
) -> IcefallTeacher:
    """Make an ``IcefallTransducer`` for a model with a joiner, else an ``IcefallTeacher``; same arguments."""
    kind = IcefallTransducer if getattr(model, "joiner", None) is not None else IcefallTeacher
    return kind(
        model,
        tokens,
        features=features,
        sample_rate=sample_rate,
        encode_text=encode_text,
        alone=alone,
        tail=tail,
    )


class IcefallTeacher(EncoderTeacher):
    """icefall model with ``forward_encoder`` (or ``encoder``) and ``ctc_output``.

    Args:
        model: a model with ``forward_encoder(x, x_lens)`` that gives (N, T, C) and (N,), and with a
            Sequential ``ctc_output``; or an older conformer or TDNN that runs its head in forward.
        tokens: k2's token table; symbols beyond the model's classes, such as ``#0``, are cut off.
        features: function from audio to (T0, F); its settings are read from ``to_json`` where it has one.
        sample_rate: audio samples per second; the features' own where they give one.
        encode_text: tokenizer from text to ids; by default the longest matching tokens.
        alone: encode each utterance without padding.
        tail: feature frames of log(1e-10) behind every recording; they give output frames like any others.
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
        model = with_encoder_and_head(model)
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
        self._tokeniser = Tokeniser(self.table)
        settings = self.compute.to_json() if hasattr(self.compute, "to_json") else {}
        settings = {**settings, "batch": "alone" if alone else "together"}
        if tail:
            settings["tail"] = tail
        self.spec = TeacherSpec(name, self.rate, measured_shift(self, self.rate), heads, settings)

    def _refuse_random_chunks(self) -> None:
        encoder = getattr(self.model, "encoder", None)
        sizes = getattr(encoder, "chunk_size", ())
        if getattr(encoder, "causal", False) and isinstance(sizes, list | tuple) and len(sizes) > 1:
            raise TeacherError(
                f"a streaming encoder with the chunk sizes {', '.join(map(str, sizes))}",
                why="It draws one of them at random in every forward, in eval mode too.",
                do="Choose one: params.chunk_size=32,params.left_context_frames=128.",
            )

    def _heads(self, blank: int) -> tuple[Head, ...]:
        return (Head("ctc", self.ctc_path, blank),) if self.ctc_path else ()

    def describe(self) -> TeacherSpec:
        return self.spec

    def tokens(self) -> TokenTable:
        return self.table

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        value: torch.Tensor = torch.as_tensor(self.compute(audio))
        if len(value) < LEAST_FEATURES:
            raise ValueError(f"{len(audio)} samples are too short for one frame of the encoder")
        return nn.functional.pad(value, (0, 0, 0, self.tail), value=LOG_EPSILON)

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoder = getattr(self.model, "forward_encoder", None) or self.model.encoder
        enc, frames = encoder(features, lengths)[:2]
        if isinstance(enc, list):  # pruned_transducer_stateless6 gives the outputs of all its layers
            enc = enc[-1]
        return enc, frames.long().clamp(max=enc.shape[1])

    def encode_one(self, features: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        enc, frames = self.encode(features, length)
        return enc[:, : int(frames[0])]  # some encoders give one frame more than they call valid

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if not self.alone:  # icefall's training pads with log(1e-10), which its convolutions see
            padding = torch.arange(features.shape[1], device=lengths.device)[None] >= lengths[:, None]
            features = features.masked_fill(padding[..., None], LOG_EPSILON)
        enc, frames = self.encode_batch(features, lengths)
        output = {"enc": enc, "lengths": frames}
        if self.ctc_path:
            output["ctc"] = self.model.get_submodule(self.ctc_path.rpartition(".")[0])(enc)
        return output

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        return {"ctc": output["ctc"].float().log_softmax(-1)} if self.ctc_path else {}

    def labels(self, text: str) -> list[int]:
        """Tokenise a text; raises ``ValueError`` for one that has no tokens."""
        ids = [int(i) for i in self.encode_text(text)] if self.encode_text else self._tokeniser.labels(text)
        unknown = [self.table[i] for i in ids if i == self.table.blank or self.table[i] == "<unk>"]
        if unknown:
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        return ids


class IcefallTransducer(JoinerMethods, IcefallTeacher):
    """icefall model with ``decoder`` and ``joiner``, with or without ``ctc_output``."""

    def _heads(self, blank: int) -> tuple[Head, ...]:
        own = int(getattr(self.model.decoder, "blank_id", blank))
        if own != blank:
            raise TeacherError(f"the blank is {blank} in the tokens and {own} in the decoder")
        return (*super()._heads(blank), Head("rnnt", "joiner.output_linear", blank))

    @cached_property
    def joiner(self) -> JoinerAdapter:
        """Adapter of the joiner."""
        return IcefallJoiner(self.model, blank=self.table.blank)


class IcefallJoiner(AdapterBase):
    """Joiner adapter of icefall's decoders, with or without state, and its joiners of every age."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Tell whether the joiner has ``output_linear`` and named sides, and its owner a ``decoder``."""
        return (
            has_attributes(joint, "output_linear")
            and has_attributes(owner, "decoder")
            and takes_parameter(joint, "encoder_out")
            and takes_parameter(joint, "decoder_out")
        )

    def __init__(self, owner: Any, name: str = "joiner", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "output_linear")
        self._projects = has_attributes(self.joint, "encoder_proj")
        self.classes = int(self.joint.output_linear.out_features)
        self.width = int(self.joint.encoder_proj.in_features) if self._projects else 0

    def own_blank(self) -> int:
        return int(getattr(self.owner.decoder, "blank_id", 0))

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return self.joint.encoder_proj(enc) if self._projects else enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        output = self.owner.decoder(self.with_blank(labels, device))
        # A decoder with state gives (output, state).
        dec: torch.Tensor = (output[0] if isinstance(output, tuple) else output)[0]
        return self.joint.decoder_proj(dec) if has_attributes(self.joint, "decoder_proj") else dec

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        joiner, t, u = self.joint, len(enc), len(dec)
        if hasattr(joiner, "encoder_proj"):  # zipformer and pruned_transducer_stateless2 on
            output = joiner(enc[None, :, None], dec[None, None], project_input=False)
        elif hasattr(joiner, "inner_linear"):  # pruned_transducer_stateless, which takes expanded inputs
            nodes = (1, t, u, -1)
            output = joiner(enc[None, :, None].expand(nodes), dec[None, None].expand(nodes))
        elif len(inspect.signature(joiner.forward).parameters) > 2:  # transducer_stateless, packed output
            output = joiner(enc[None], dec[None], torch.tensor([t]), torch.tensor([u]))
        else:  # transducer
            output = joiner(enc[None], dec[None])
        logits: torch.Tensor = output.reshape(t, u, -1)
        return logits


JOINER = IcefallJoiner


def with_encoder_and_head(model: nn.Module) -> nn.Module:
    """Return the model itself if it has an encoder and a head, else a wrapper that has both."""
    if isinstance(getattr(model, "ctc_output", None), nn.Module) or hasattr(model, "joiner"):
        return model
    layers = getattr(model, "encoder_output_layer", None)
    if isinstance(layers, nn.Module):
        linear = _only_linear(layers)
        return Conformer(model, f"encoder_output_layer.{linear}") if linear is not None else model
    if isinstance(getattr(model, "tdnn", None), nn.Module):
        return Tdnn(model, "linear")
    return model


class WholeModel(nn.Module):
    """Wrapper of a model that runs encoder and head in one forward.

    ``encoder`` runs the whole model and takes the head's input; ``ctc_output`` is a copy of the head, which
    then runs once a batch where the model itself may run once an utterance.

    Args:
        model: the recipe's model.
        head: path of the Linear in front of its softmax.
    """

    layout = "BTV"

    def __init__(self, model: nn.Module, head: str) -> None:
        super().__init__()
        self.asr: Any = model
        self.ctc_output = nn.Sequential(copy_without_hooks(model.get_submodule(head)))
        self._head = head

    def encoder(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model on (N, T0, F) and (N,): the head's input (N, T, C) and valid frames (N,)."""
        with Tap(self.asr, {"in": self._head}, layouts={"in": self.layout}, side="input") as tap:
            output = self.call(x.clone(), lengths)  # some models scale their input in place
            hidden = tap.take("in")
        return hidden, self.frames(output, lengths)

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        """Run the model."""
        raise NotImplementedError

    def frames(self, output: Any, lengths: torch.Tensor) -> torch.Tensor:
        """Return (N,) valid frames of what ``call`` gave."""
        raise NotImplementedError


class Conformer(WholeModel):
    """Wrapper of a conformer.

    ``model(x, supervision)`` gives log-probabilities (N, T, V), encoder output (T, N, C) and padding (N, T).
    """

    layout = "TBV"

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        order = torch.arange(len(lengths))
        segments = {"sequence_idx": order, "start_frame": 0 * order, "num_frames": lengths.cpu()}
        return self.asr(x, segments)

    def frames(self, output: Any, lengths: torch.Tensor) -> torch.Tensor:
        padding: torch.Tensor = output[2]
        return (~padding).sum(1)


class Tdnn(WholeModel):
    """Wrapper of a TDNN.

    ``model(x)`` takes x (N, F, T0) and gives log-probabilities (N, T, V); its last convolution strides.
    """

    def call(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return self.asr(x.transpose(1, 2))

    def frames(self, output: Any, lengths: torch.Tensor) -> torch.Tensor:
        return (lengths - 1).div(self.asr.subsampling_factor, rounding_mode="floor") + 1


def _ctc_path(model: nn.Module) -> str:
    """Return the path of the only Linear of ``ctc_output`` or ``ctc_output_module``; empty for none."""
    for name in ("ctc_output", "ctc_output_module"):
        layers = getattr(model, name, None)
        if isinstance(layers, nn.Module) and (linear := _only_linear(layers)):
            return f"{name}.{linear}"
    return ""


def _only_linear(layers: nn.Module) -> str | None:
    """Return the path of the only Linear below a module; None for none or several."""
    found = [name for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    return found[0] if len(found) == 1 else None


def _read_checkpoints(exp: Path, options: Mapping[str, str]) -> tuple[dict[str, Any], State, str]:
    """Read the settings that a checkpoint holds, the weights asked for, and the names of their files."""
    trusted = options.get("pickle") == "trusted"
    if exp.is_file() or not {"epoch", "iter"} & set(options):
        file = exp if exp.is_file() else existing(exp / "pretrained.pt", "a checkpoint: say epoch=N")
        checkpoint = read_checkpoint(file, trusted=trusted)
        return _settings(checkpoint), dict(checkpoint.get("model", checkpoint)), str(file)
    option, pattern = ("iter", "checkpoint-*.pt") if "iter" in options else ("epoch", "epoch-*.pt")
    saved = {int(file.stem.rpartition("-")[2]): file for file in exp.glob(pattern)}
    number, count = int(options[option]), int(options.get("avg", 1))
    running_mean = count > 1 and options.get("use-averaged-model", "1") not in ("0", "no", "false", "False")
    # The running mean over a range of checkpoints is a difference, which needs the one before the range too.
    needed = count + running_mean
    wanted = sorted(n for n in saved if n <= number)[-needed:]
    if number not in saved or len(wanted) < needed:
        raise UsageError(
            f"{exp} has {len(wanted)} of the {needed} checkpoints up to {number} that avg={count} needs",
            where="--teacher",
            do=f"There are: {', '.join(saved[n].name for n in sorted(saved)) or 'none'}.",
        )
    source = ", ".join(saved[n].name for n in wanted)
    if running_mean:
        start, last = (read_checkpoint(saved[n], trusted=trusted) for n in (wanted[0], number))
        return _settings(last), between(start, last, source), source
    checkpoints = [read_checkpoint(saved[n], trusted=trusted) for n in wanted]
    return _settings(checkpoints[-1]), mean_of([c["model"] for c in checkpoints]), source


def _settings(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in checkpoint.items() if k not in STATES and "model" in checkpoint}


class _Params(dict[str, Any]):
    """Settings as attributes, as icefall's AttributeDict has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the recipe has no setting {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _build(options: Mapping[str, str], settings: Mapping[str, Any], tokens: TokenTable) -> nn.Module:
    """Call the function of ``model=FILE.py:NAME``; raises ``UsageError`` or ``TeacherError``."""
    file, _, name = options["model"].rpartition(":")
    path = existing(file or options["model"], "the file with the model's function: model=train.py:get_model")
    try:
        with _ignored_thread_counts():
            module = run_file(path.resolve())
    except TeacherError as e:
        if isinstance(e.__cause__, ModuleNotFoundError):
            raise UsageError(f"the recipe needs {e.__cause__.name!r}", where=str(path), do=RUN_WHERE) from e
        raise
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{path} has no function {name!r}", do=registry.suggest(name, known))
    with registry.needs("icefall", RUN_WHERE):
        model = factory(_params(module, options, settings, tokens)) if _takes_one(factory) else factory()
    if not isinstance(model, nn.Module):
        raise TeacherError(f"{name}() gave {type(model).__name__}, not a model", where=str(path))
    return model


@contextmanager
def _ignored_thread_counts() -> Iterator[None]:
    """Ignore torch's thread settings for a while.

    Importing a train.py sets one thread for the process, and fails where threads have run already.
    """
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
    """Tell whether a function has exactly one required positional parameter."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(factory).parameters.values()
    return sum(1 for p in parameters if p.default is p.empty and p.kind in kinds) == 1


def _params(
    module: Any, options: Mapping[str, str], settings: Mapping[str, Any], tokens: TokenTable
) -> _Params:
    """Collect the settings as decode.py does.

    In this order, later ones winning: the recipe's, its options' defaults, those the run was trained with,
    and those of ``params.NAME=``.
    """
    params = _Params(module.get_params() if hasattr(module, "get_params") else {})
    defaults: dict[str, Any] = {}
    if hasattr(module, "get_parser"):
        defaults = vars(module.get_parser().parse_args([]))
    classes = sum(1 for t in tokens.tokens if not (t.startswith("#") and t[1:].isdigit()))
    params.update({**defaults, "vocab_size": classes, "blank_id": tokens.blank})
    special = {"unk_id": "<unk>", "sos_id": "<sos/eos>", "eos_id": "<sos/eos>"}
    params.update({k: tokens.tokens.index(t) for k, t in special.items() if t in tokens.tokens})
    params.update(settings)
    for key, text in options.items():
        if key.startswith("params."):
            name, value = key.removeprefix("params."), text.replace(";", ",")
            if name not in params:
                raise UsageError(f"the recipe has no setting {name!r}", do=registry.suggest(name, params))
            kind = type(params[name])
            params[name] = value in ("1", "true", "True") if kind is bool else kind(value)
    return params


def _file_near(exp: Path, options: Mapping[str, str], option: str, name: str) -> Path | None:
    """Return the file of an option, or the only one of this name in exp or in data/lang* beside it."""
    if option in options:
        return existing(options[option], name)
    folder = exp if exp.is_dir() else exp.parent
    found = [f for f in (folder / name, *sorted(folder.parent.glob(f"data/lang*/{name}"))) if f.exists()]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} files called {name} near {exp}",
            where="--teacher",
            do=f"Name one with {option}=FILE.",
        )
    return found[0] if found else None


def _sentencepiece(path: Path) -> Callable[[str], list[int]]:
    with registry.needs("icefall", "pip install sentencepiece"):
        import sentencepiece
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return lambda text: [int(i) for i in processor.encode(text)]
