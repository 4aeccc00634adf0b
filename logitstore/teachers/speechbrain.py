"""``speechbrain:DIR``: an inference folder, ``hyperparams.yaml`` and the ``.ckpt`` files it names, or the
``results/…`` folder of a training, with its ``hyperparams.yaml`` and ``save/CKPT+…``.

As ``EncoderASR`` and ``EncoderDecoderASR`` read it, with a CTC layer, a transducer searcher or one of an
attention decoder (RNN or transformer), or several of them.
Options: ``hparams=FILE`` (another yaml of that folder), ``ctc=PATH`` (the CTC layer below ``modules``),
``blank=N`` and ``batch=together``. The yaml of a SpeechBrain folder runs code: load only what you trust.
Nothing is downloaded.

Of a training the checkpoint that its evaluation would take: least WER, PER or CER, most ACC, else the newest;
``min=KEY``, ``max=KEY``, ``ckpt=last`` or ``ckpt=CKPT+…``, ``avg=N`` say otherwise. ``chain=a+b+c`` says in
what order the encoder's modules are called where their names do not tell, ``tokenizer=FILE`` where the pieces
are. ``describe()`` says what was taken.

SpeechBrain passes lengths relative to the longest recording of a batch and rounds them, and its convolutions
see padding, so what it says about a recording depends on the recordings beside it. Therefore each utterance
is encoded alone, unless ``batch=together``, which is faster on a GPU.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import registry
from ..errors import TeacherError, UsageError
from ..schema.checksums import sha256
from ..tokens.table import TokenTable
from ._one_by_one import measured_shift, read_alone
from ._options import existing, read_where
from ._speechbrain_training import is_training, read
from .joiners import JoinerAdapter, has, sides
from .protocol import Head, Teacher, TeacherSpec, twin
from .tap import Tap, find_module

OPTIONS = ("hparams", "ctc", "blank", "batch", "chain", "ckpt", "min", "max", "avg", "tokenizer")
TRAINED = OPTIONS[4:]  # of a training's folder alone
PAD = "⟨unused {}⟩"


def load(where: str) -> Teacher:
    """Build what the yaml names and fill it from the folder's checkpoints.

    Raises ``UsageError`` for a wrong path or option or where SpeechBrain is missing, and ``TeacherError``
    where the folder lacks a checkpoint, an encoder or a tokenizer, or has neither CTC layer nor transducer.
    """
    asked = read_where(where, "model", OPTIONS)
    folder = existing(asked["model"], "a SpeechBrain inference folder").resolve()
    file = existing(folder / asked.get("hparams", "hyperparams.yaml"), "its hyperparams file")
    alone = read_alone(asked)
    with registry.needs("speechbrain"):
        import speechbrain  # noqa: F401 - with a torchaudio that does not fit, this is what fails
        from hyperpyyaml import load_hyperpyyaml
    text = file.read_text(encoding="utf-8")
    took: dict[str, str] = {}
    try:
        if is_training(folder):
            hparams, took, loaded = read(folder, text, asked)
        elif given := [o for o in TRAINED if o in asked]:
            raise UsageError(f"{given[0]}= is for a training's folder, and {folder} has no save/CKPT+*")
        else:
            hparams = load_hyperpyyaml(text)
            _fill(hparams, folder)
            loaded = [m for m in hparams["pretrainer"].loadables.values() if isinstance(m, nn.Module)]
    except (TeacherError, UsageError):
        raise
    except ModuleNotFoundError as e:
        raise UsageError(f"it needs the Python package {e.name!r}", where=str(file)) from e
    except Exception as e:
        raise TeacherError(f"loading it failed with {type(e).__name__}: {e}", where=str(file)) from e
    if not isinstance(hparams.get("modules"), dict) or "encoder" not in hparams["modules"]:
        raise TeacherError(
            "its modules have no encoder",
            where=str(file),
            do="Use an inference yaml like those of EncoderASR: modules: {encoder: ...}.",
        )
    settings = {"hyperparams": sha256(text.encode()), "batch": "alone" if alone else "together", **took}
    blank = int(asked["blank"]) if "blank" in asked else None
    kind = SpeechBrainTeacher if _searcher(hparams) is None else SpeechBrainTransducer
    teacher = kind(hparams, settings, ctc=asked.get("ctc", ""), blank=blank)
    filled = {id(p) for m in loaded for p in m.parameters()}
    for head in teacher.describe().heads:
        if any(id(p) not in filled for p in find_module(teacher.model, head.module).parameters()):
            raise TeacherError(
                f"no checkpoint fills the {head.stream} head",
                where=str(file),
                why="Its weights would be random.",
                do="Put the layer into a module that the pretrainer loads.",
            )
    return teacher


def _fill(hparams: dict[str, Any], folder: Path) -> None:
    """Load the checkpoints that lie in the folder, whatever host or path the yaml gives them."""
    pretrainer = hparams.get("pretrainer")
    if pretrainer is None:
        raise TeacherError(
            "its yaml has no pretrainer",
            where=str(folder),
            why="The weights would be random.",
            do="Use an inference yaml, which says which checkpoint fills which module.",
        )
    for name in pretrainer.loadables:
        if not pretrainer.is_loadable(name):
            continue
        named = str(pretrainer.paths.get(name, f"{name}.ckpt")).rpartition("/")[2]
        file = next((f for f in (folder / named, folder / f"{name}.ckpt") if f.exists()), None)
        if file is None:
            raise TeacherError(f"{named} is missing", where=str(folder), do="Copy it into the folder.")
        pretrainer.paths[name] = str(file)
    with tempfile.TemporaryDirectory() as links:
        pretrainer.set_collect_in(links)
        pretrainer.collect_files()
        pretrainer.load_collected()


class SpeechBrainTeacher:
    """Modules that a yaml names, with a CTC layer, an attention decoder, or both.

    Args:
        hparams: what ``load_hyperpyyaml`` gave, checkpoints loaded.
        settings: what goes into ``describe().features``; ``batch`` is read.
        ctc: path of the CTC layer below ``modules``; found by its name, ``ctc_lin``, where empty.
        blank: id of the blank; taken from the yaml where None.
    """

    def __init__(
        self, hparams: dict[str, Any], settings: dict[str, Any], *, ctc: str = "", blank: int | None = None
    ) -> None:
        self.hparams, self.settings = hparams, settings
        modules = {k: m for k, m in hparams["modules"].items() if isinstance(m, nn.Module)}
        self.model: Any = nn.ModuleDict(modules)
        self.rate = int(hparams.get("sample_rate", 16000))
        self.ctc_path = ctc or _find_ctc(self.model)
        self.searcher = _searcher(hparams)
        self._add_transducer()
        self.attention = _attention(hparams)
        if self.attention is not None:
            parts = ("emb", "dec") if hasattr(self.attention, "dec") else ("model",)
            self.model["attention"] = nn.ModuleList(getattr(self.attention, n) for n in parts)
            self.model["seq_lin"] = self.attention.fc
        if self.ctc_path:
            # The layer runs inside the encoder, once a recording; its twin says the answer once a batch.
            self.model["ctc_head"] = twin(find_module(self.model, self.ctc_path))
        if not self.ctc_path and self.searcher is None and self.attention is None:
            linears = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear)]
            raise TeacherError(
                "neither a layer called ctc_lin nor a TransducerBeamSearcher nor an attention searcher",
                do=f"Say ctc=PATH. Linear layers: {', '.join(linears[-8:]) or 'none'}.",
            )
        self.blank = self._find_blank() if blank is None else blank
        self.model.eval().requires_grad_(False)
        self._frame_shift = 1
        self._frame_shift = measured_shift(self, self.rate)

    def _add_transducer(self) -> None:
        pass

    def _find_blank(self) -> int:
        if self.searcher is not None:
            return int(self.searcher.blank_id)
        given = getattr(self.hparams.get("decoding_function"), "keywords", {})
        return int(given.get("blank_id", self.hparams.get("blank_index", 0)))

    def describe(self) -> TeacherSpec:
        heads = [Head("ctc", "ctc_head", self.blank)] if self.ctc_path else []
        if self.attention is not None:
            path = "seq_lin.w" if hasattr(self.attention.fc, "w") else "seq_lin"
            heads.append(Head("seq2seq", path, self.blank, end=int(self.attention.eos_index)))
        parts = (getattr(m, "parts", {"": m}).values() for m in self.hparams["modules"].values())
        name = " + ".join(type(m).__name__ for some in parts for m in some)
        if "checkpoint" in self.settings:
            name += f" ({self.settings['checkpoint']}, {self.settings['chosen']})"
        return TeacherSpec(f"SpeechBrain {name}", self.rate, self._frame_shift, tuple(heads), self.settings)

    def tokens(self) -> TokenTable:
        tokenizer: Any = self.hparams.get("tokenizer")
        if hasattr(tokenizer, "id_to_piece"):
            pieces = {i: tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())}
            # SpeechBrain gives the blank the id of the unknown piece.
            pieces[self.blank] = "<blank>"
        elif hasattr(tokenizer, "ind2lab"):
            pieces = {i: str(t) for i, t in tokenizer.ind2lab.items()}
        else:
            raise TeacherError(
                f"its tokenizer is {type(tokenizer).__name__}, not SentencePiece or CTCTextEncoder",
                do="Name it tokenizer in the yaml.",
            )
        linear: Any = find_module(self.model, self.describe().heads[0].module)
        if len(pieces) > linear.out_features:
            raise TeacherError(f"{len(pieces)} tokens, but the layer gives {linear.out_features} classes")
        return TokenTable(tuple(pieces.get(i, PAD.format(i)) for i in range(linear.out_features)), self.blank)

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """(samples, 1): the yaml's own feature layers are part of the encoder."""
        if len(audio) < 2 * self._frame_shift:
            raise ValueError(f"{len(audio)} samples are too short for two frames of {self._frame_shift}")
        return torch.from_numpy(audio)[:, None]

    def _encode(self, waves: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
        out = self.model["encoder"](waves, relative)
        if self.hparams.get("transformer_beam_search"):
            out = self.model["transformer"].encode(out, relative)
        said: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return said

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        waves = features[..., 0]
        for module in self.model.modules():
            if hasattr(module, "glob_mean"):  # statistics that are no buffers: moving the model leaves them
                module.to(waves.device)
        if self.settings.get("batch") == "together":
            relative = lengths / lengths.max()
            out, hidden = self._heard(waves, relative)
            frames = torch.round(relative * out.shape[1]).long().clamp(max=out.shape[1])
        else:
            one = torch.ones(1, device=waves.device)
            rows = [self._heard(w[None, :n], one) for w, n in zip(waves, lengths.tolist(), strict=True)]
            out, hidden = (nn.utils.rnn.pad_sequence([r[i][0] for r in rows], True) for i in (0, 1))
            frames = torch.tensor([r[0].shape[1] for r in rows], device=waves.device)
        if self.ctc_path:
            self.model["ctc_head"](hidden)
        return {"out": out, "lengths": frames}

    def _heard(self, waves: torch.Tensor, relative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder gives, and what goes into the CTC layer."""
        if not self.ctc_path:
            out = self._encode(waves, relative)
            return out, out
        with Tap(self.model, {"hidden": self.ctc_path}, side="input") as tap:
            out = self._encode(waves, relative)
            inside = self.ctc_path.startswith("encoder.")
            return out, tap.take("hidden") if inside else out

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        """What the encoder itself says, where the CTC layer is its last but for a softmax."""
        linear: Any = self.model["ctc_head"] if self.ctc_path else None
        if linear is None or output["out"].shape[-1] != linear.out_features:
            return {}
        return {"ctc": output["out"].float().log_softmax(-1)}

    def labels(self, text: str) -> list[int]:
        """Token ids of a text; raises ``ValueError`` for one that has no tokens."""
        tokenizer = self.hparams["tokenizer"]
        if hasattr(tokenizer, "encode_as_ids"):
            ids = tokenizer.encode_as_ids(text)
        else:
            try:
                ids = [int(i) for i in tokenizer.encode_sequence(list(text))]
            except KeyError as e:
                raise ValueError(f"{text!r} does not tokenise: {e}") from e
        if self.blank in ids:
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        return list(ids)

    def decode(self, output: Any, b: int, labels: list[int]) -> None:
        """Teacher forcing as in training: ``bos``, then all labels but the last."""
        enc = output["out"][b : b + 1, : int(output["lengths"][b])]
        ids = torch.tensor([[int(self.attention.bos_index), *labels[:-1]]], device=enc.device)
        if hasattr(self.attention, "dec"):
            said, _ = self.attention.dec(self.attention.emb(ids), enc, torch.ones(1, device=enc.device))
        else:
            said, _ = self.attention.model.decode(ids, enc)
        self.model["seq_lin"](said)


class SpeechBrainTransducer(SpeechBrainTeacher):
    """Modules that a yaml names, with a transducer searcher and perhaps a CTC layer."""

    def _add_transducer(self) -> None:
        self._drive = SpeechBrainJoiner(self.searcher)
        self.model.update(dict(self._drive.model.named_children()))

    def describe(self) -> TeacherSpec:
        spec = super().describe()
        return replace(spec, heads=(*spec.heads, Head("rnnt", self._drive.head, self.blank)))

    @cached_property
    def drive(self) -> JoinerAdapter:
        """Of its searcher."""
        return SpeechBrainJoiner(self.searcher, blank=self.blank)

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return sides(self.drive, output["out"][b, : int(output["lengths"][b])], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return self.drive.join(enc, dec)


def _searcher(hparams: dict[str, Any]) -> Any:
    """The transducer searcher, wherever a yaml keeps it; duck-typed, as its class has moved before."""
    for value in [*hparams["modules"].values(), *hparams.values()]:
        if all(hasattr(value, n) for n in ("decode_network_lst", "tjoint", "classifier_network")):
            return value
    return None


def _attention(hparams: dict[str, Any]) -> Any:
    """The searcher of an attention decoder: of an RNN with emb, dec and fc, of a transformer with model."""
    for value in [*hparams["modules"].values(), *hparams.values()]:
        rnn = all(isinstance(getattr(value, n, None), nn.Module) for n in ("emb", "dec", "fc"))
        transformer = hasattr(getattr(value, "model", None), "decode") and hasattr(value, "fc")
        if hasattr(value, "eos_index") and (rnn or transformer):
            return value
    return None


def _find_ctc(model: nn.Module) -> str:
    """Path of the one layer called ``ctc_lin``, or of the Linear that it wraps; empty where there is none."""
    found = [n for n, _ in model.named_modules() if n.rpartition(".")[2] == "ctc_lin"]
    if not found:
        return ""
    return f"{found[0]}.w" if hasattr(model.get_submodule(found[0]), "w") else found[0]


class SpeechBrainJoiner:
    """The lists of a searcher; of its classifier what stands before the softmax."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """A searcher, by what it has: its class has moved before."""
        return joint is getattr(owner, "tjoint", None) and has(
            owner, "decode_network_lst", "classifier_network"
        )

    normalised, encoder, side, width = False, "", "input", 0

    def __init__(self, owner: Any, name: str = "tjoint", blank: int | None = None) -> None:
        layers = list(owner.classifier_network)
        linear = [i for i, m in enumerate(layers) if isinstance(getattr(m, "w", m), nn.Linear)]
        if not linear:
            raise TeacherError("its classifier_network has no Linear layer")
        last = layers[linear[-1]]
        self.prediction = nn.ModuleList(owner.decode_network_lst)
        self.classifier = nn.ModuleList(layers[: linear[-1] + 1])
        parts = {"prediction": self.prediction, "tjoint": owner.tjoint, "classifier": self.classifier}
        self.model: nn.Module = nn.ModuleDict(parts)
        for container in (self.model, self.prediction, self.classifier):
            container.training = owner.training  # not train(): what they hold is the recipe's
        self.head = f"classifier.{linear[-1]}{'.w' if hasattr(last, 'w') else ''}"
        self.classes = int(getattr(last, "w", last).out_features)
        self.blank = int(owner.blank_id) if blank is None else blank
        self._join: Any = owner.tjoint

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        said: Any = torch.tensor([[self.blank, *labels]], device=device)
        for layer in self.prediction:
            said = layer(said)
            said = said[0] if isinstance(said, tuple) else said
        value: torch.Tensor = said[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        joint: torch.Tensor = self._join(enc[None, :, None], dec[None, None])
        for layer in self.classifier:
            joint = layer(joint)
        return joint[0]


JOINER = SpeechBrainJoiner
