"""``speechbrain:DIR``: an inference folder, ``hyperparams.yaml`` and the ``.ckpt`` files it names, or the
``results/…`` folder of a training, with its ``hyperparams.yaml`` and ``save/CKPT+…``.

The model is one that ``EncoderASR`` or ``EncoderDecoderASR`` reads: with a CTC layer, a transducer searcher,
the searcher of an attention decoder (RNN or transformer), or several of them. Options: ``hparams=FILE``
(another yaml of that folder), ``ctc=PATH`` (the CTC layer below ``modules``), ``blank=N`` and
``batch=together``. The yaml of a SpeechBrain folder runs code: load only folders that you trust. Nothing is
downloaded.

Of a training, the checkpoint that its evaluation would take is loaded: least WER, PER or CER, most ACC, else
the newest. ``min=KEY``, ``max=KEY``, ``ckpt=last``, ``ckpt=CKPT+…`` and ``avg=N`` choose otherwise. A
training's yaml names the encoder's modules but not the order of their calls; ``chain=a+b+c`` gives it where
the names do not tell. ``tokenizer=FILE`` names the tokenizer. ``describe()`` says which checkpoint and chain
were taken.

SpeechBrain passes lengths relative to the longest recording of a batch and rounds them, and its convolutions
see padding, so the logits of a recording depend on the other recordings of its batch. Therefore each
utterance is encoded alone unless ``batch=together``, which is faster on a GPU.
"""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Mapping
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
from ._one_by_one import EncoderTeacher, measured_shift, read_alone
from ._options import existing, read_where
from .joiners import AdapterBase, JoinerAdapter, JoinerMethods, has_attributes, with_joiner_head
from .protocol import Head, Teacher, TeacherSpec, copy_without_hooks
from .tap import Tap, find_module

OPTIONS = ("hparams", "ctc", "blank", "batch")
TRAINING_OPTIONS = ("chain", "ckpt", "min", "max", "avg", "tokenizer")
UNUSED_TOKEN = "⟨unused {}⟩"
SEARCHER = ("decode_network_lst", "tjoint", "classifier_network")  # attributes of a transducer searcher

# Of a training's yaml: modules of the public recipes' encoders in the order of their calls. Names of one step
# are alternatives.
STEPS = (
    ("wav2vec2", "compute_features"),
    ("normalize",),
    ("CNN",),
    ("enc", "Transformer", "model"),
    ("back_end_ffn",),
    ("proj_enc", "enc_lin"),
)
SOURCES, NORMALISERS, ENCODERS = STEPS[0], STEPS[1], (*STEPS[3], "wav2vec2")
CTC_LAYERS = ("ctc_lin", "proj_ctc", "output")  # with a transducer, output is the joint's
NOT_IN_ENCODER = (
    *("emb", "dec", "dec_lin", "proj_dec", "Tjoint", "transducer_lin", "output", "seq_lin", "lm_model"),
)
LEAST, MOST = ("WER", "PER", "CER"), ("ACC",)  # scores by which recipes keep and evaluate their checkpoints
LENGTH_PARAMETERS = ("lengths", "wav_lens", "wav_len")
TRAINING_OBJECTS = ("train_logger", "__set_seed")


def load(where: str) -> Teacher:
    """Build the modules that the yaml names and load their checkpoints.

    Raises ``UsageError`` for a wrong path or option or where SpeechBrain is missing, and ``TeacherError``
    where the folder lacks a checkpoint, an encoder or a tokenizer, or has neither a CTC layer nor a searcher.
    """
    options = read_where(where, "model", (*OPTIONS, *TRAINING_OPTIONS))
    folder = existing(options["model"], "a SpeechBrain inference folder").resolve()
    file = existing(folder / options.get("hparams", "hyperparams.yaml"), "its hyperparams file")
    alone = read_alone(options)
    with registry.needs("speechbrain"):
        import speechbrain  # noqa: F401 - fails where torchaudio does not fit torch
        from hyperpyyaml import load_hyperpyyaml
    text = file.read_text(encoding="utf-8")
    checkpoint: dict[str, str] = {}
    try:
        if _is_training(folder):
            hparams, checkpoint, loaded = _read_training(folder, text, options)
        elif given := [o for o in TRAINING_OPTIONS if o in options]:
            raise UsageError(f"{given[0]}= is for a training's folder, and {folder} has no save/CKPT+*")
        else:
            hparams = load_hyperpyyaml(text)
            _load_pretrained(hparams, folder)
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
    batch = "alone" if alone else "together"
    settings = {"hyperparams": sha256(text.encode()), "batch": batch, **checkpoint}
    blank = int(options["blank"]) if "blank" in options else None
    kind = SpeechBrainTeacher if _transducer_searcher(hparams) is None else SpeechBrainTransducer
    teacher = kind(hparams, settings, ctc=options.get("ctc", ""), blank=blank)
    _require_filled_heads(teacher, loaded, str(file))
    return teacher


def _require_filled_heads(teacher: SpeechBrainTeacher, loaded: list[nn.Module], where: str) -> None:
    """Raise ``TeacherError`` for a head with weights from no checkpoint."""
    filled = {id(p) for module in loaded for p in module.parameters()}
    for head in teacher.describe().heads:
        if any(id(p) not in filled for p in find_module(teacher.model, head.module).parameters()):
            raise TeacherError(
                f"no checkpoint fills the {head.stream} head",
                where=where,
                why="Its weights would be random.",
                do="Put the layer into a module that the pretrainer loads.",
            )


def _load_pretrained(hparams: dict[str, Any], folder: Path) -> None:
    """Load the checkpoints in the folder, whatever host or path the yaml names; raises ``TeacherError``."""
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
        filename = str(pretrainer.paths.get(name, f"{name}.ckpt")).rpartition("/")[2]
        file = next((f for f in (folder / filename, folder / f"{name}.ckpt") if f.exists()), None)
        if file is None:
            raise TeacherError(f"{filename} is missing", where=str(folder), do="Copy it into the folder.")
        pretrainer.paths[name] = str(file)
    with tempfile.TemporaryDirectory() as links:
        pretrainer.set_collect_in(links)
        pretrainer.collect_files()
        pretrainer.load_collected()


class SpeechBrainTeacher(EncoderTeacher):
    """Modules of a yaml with a CTC layer, an attention decoder, or both.

    Args:
        hparams: objects of the yaml, their checkpoints loaded.
        settings: contents of ``describe().features``; ``batch`` says how utterances are encoded.
        ctc: path of the CTC layer below ``modules``; empty to find the one called ``ctc_lin``.
        blank: id of the blank; None to read it from the yaml.
    """

    def __init__(
        self, hparams: dict[str, Any], settings: dict[str, Any], *, ctc: str = "", blank: int | None = None
    ) -> None:
        self.hparams, self.settings = hparams, settings
        self.alone = settings.get("batch") != "together"
        modules = {k: m for k, m in hparams["modules"].items() if isinstance(m, nn.Module)}
        self.model: Any = nn.ModuleDict(modules)
        self.rate = int(hparams.get("sample_rate", 16000))
        self.ctc_path = ctc or _find_ctc(self.model)
        self.searcher = _transducer_searcher(hparams)
        self.blank = self._own_blank() if blank is None else blank
        self._add_joiner()
        self.attention = _attention_searcher(hparams)
        if self.attention is not None:
            parts = ("emb", "dec") if hasattr(self.attention, "dec") else ("model",)
            self.model["attention"] = nn.ModuleList(getattr(self.attention, n) for n in parts)
            self.model["seq_lin"] = self.attention.fc
        if self.ctc_path:
            # The layer may run inside the encoder, once a recording. The copy runs once a batch.
            self.model["ctc_head"] = copy_without_hooks(find_module(self.model, self.ctc_path))
        if not self.ctc_path and self.searcher is None and self.attention is None:
            linears = [n for n, m in self.model.named_modules() if isinstance(m, nn.Linear)]
            raise TeacherError(
                "neither a layer called ctc_lin nor a TransducerBeamSearcher nor an attention searcher",
                do=f"Say ctc=PATH. Linear layers: {', '.join(linears[-8:]) or 'none'}.",
            )
        self.model.eval().requires_grad_(False)
        self._frame_shift = 1
        self._frame_shift = measured_shift(self, self.rate)

    def _add_joiner(self) -> None:
        """Add the joiner's modules to the model, where there is one."""

    def _own_blank(self) -> int:
        if self.searcher is not None:
            return int(self.searcher.blank_id)
        arguments = getattr(self.hparams.get("decoding_function"), "keywords", {})
        return int(arguments.get("blank_id", self.hparams.get("blank_index", 0)))

    def describe(self) -> TeacherSpec:
        heads = [Head("ctc", "ctc_head", self.blank)] if self.ctc_path else []
        if self.attention is not None:
            path = "seq_lin.w" if hasattr(self.attention.fc, "w") else "seq_lin"
            heads.append(Head("seq2seq", path, self.blank, end=int(self.attention.eos_index)))
        parts = (getattr(m, "parts", {"": m}).values() for m in self.hparams["modules"].values())
        name = "SpeechBrain " + " + ".join(type(m).__name__ for some in parts for m in some)
        if "checkpoint" in self.settings:
            name += f" ({self.settings['checkpoint']}, {self.settings['chosen']})"
        return TeacherSpec(name, self.rate, self._frame_shift, tuple(heads), self.settings)

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
        size = linear.out_features
        if len(pieces) > size:
            raise TeacherError(f"{len(pieces)} tokens, but the layer gives {size} classes")
        return TokenTable(tuple(pieces.get(i, UNUSED_TOKEN.format(i)) for i in range(size)), self.blank)

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Return the samples as (samples, 1): the yaml's feature layers are a part of the encoder."""
        if len(audio) < 2 * self._frame_shift:
            raise ValueError(f"{len(audio)} samples are too short for two frames of {self._frame_shift}")
        return torch.from_numpy(audio)[:, None]

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        waves = features[..., 0]
        for module in self.model.modules():
            if hasattr(
                module, "glob_mean"
            ):  # statistics that are no buffers, so model.to() leaves them behind
                module.to(waves.device)
        if self.alone:
            one = torch.ones(1, device=waves.device)
            rows = [self._run_encoder(w[None, :n], one) for w, n in zip(waves, lengths.tolist(), strict=True)]
            out, hidden = (nn.utils.rnn.pad_sequence([r[i][0] for r in rows], True) for i in (0, 1))
            frames = torch.tensor([r[0].shape[1] for r in rows], device=waves.device)
        else:
            relative = lengths / lengths.max()
            out, hidden = self._run_encoder(waves, relative)
            frames = torch.round(relative * out.shape[1]).long().clamp(max=out.shape[1])
        if self.ctc_path:
            self.model["ctc_head"](hidden)
        return {"enc": out, "lengths": frames}

    def _run_encoder(self, waves: torch.Tensor, relative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the encoder's output and the CTC layer's input, each (B, T, D)."""
        if not self.ctc_path:
            out = self._encoder_output(waves, relative)
            return out, out
        with Tap(self.model, {"hidden": self.ctc_path}, side="input") as tap:
            out = self._encoder_output(waves, relative)
            inside = self.ctc_path.startswith("encoder.")
            return out, tap.take("hidden") if inside else out

    def _encoder_output(self, waves: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
        out = self.model["encoder"](waves, relative)
        if self.hparams.get("transformer_beam_search"):
            out = self.model["transformer"].encode(out, relative)
        enc: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return enc

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        """Return the encoder's own output where the CTC layer and a softmax are its last layers."""
        linear: Any = self.model["ctc_head"] if self.ctc_path else None
        if linear is None or output["enc"].shape[-1] != linear.out_features:
            return {}
        return {"ctc": output["enc"].float().log_softmax(-1)}

    def labels(self, text: str) -> list[int]:
        """Tokenise a text; raises ``ValueError`` for one that has no tokens."""
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
        """Run the decoder as in training: ``bos``, then all labels but the last."""
        enc = output["enc"][b : b + 1, : int(output["lengths"][b])]
        ids = torch.tensor([[int(self.attention.bos_index), *labels[:-1]]], device=enc.device)
        if hasattr(self.attention, "dec"):
            one = torch.ones(1, device=enc.device)
            hidden, _ = self.attention.dec(self.attention.emb(ids), enc, one)
        else:
            hidden, _ = self.attention.model.decode(ids, enc)
        self.model["seq_lin"](hidden)


class SpeechBrainTransducer(JoinerMethods, SpeechBrainTeacher):
    """Modules of a yaml with a transducer searcher, with or without a CTC layer."""

    def _add_joiner(self) -> None:
        self.model.update(dict(self.joiner.model.named_children()))

    @cached_property
    def joiner(self) -> JoinerAdapter:
        """Adapter of the searcher's joint."""
        return SpeechBrainJoiner(self.searcher, blank=self.blank)

    def describe(self) -> TeacherSpec:
        return with_joiner_head(super().describe(), self.joiner)


class SpeechBrainJoiner(AdapterBase):
    """Joiner adapter of a transducer searcher: its lists of modules, the classifier up to the last Linear."""

    encoder, side = "", "input"

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Tell whether the joiner is the ``tjoint`` of a searcher."""
        return joint is getattr(owner, "tjoint", None) and has_attributes(owner, *SEARCHER)

    def __init__(self, owner: Any, name: str = "tjoint", blank: int | None = None) -> None:
        layers = list(owner.classifier_network)
        linears = [i for i, m in enumerate(layers) if isinstance(getattr(m, "w", m), nn.Linear)]
        if not linears:
            raise TeacherError("its classifier_network has no Linear layer")
        last = layers[linears[-1]]
        super().__init__(owner, name, blank, "")
        self.prediction = nn.ModuleList(owner.decode_network_lst)
        self.classifier = nn.ModuleList(layers[: linears[-1] + 1])
        parts = {"prediction": self.prediction, "tjoint": owner.tjoint, "classifier": self.classifier}
        self.model: nn.Module = nn.ModuleDict(parts)
        for container in (self.model, self.prediction, self.classifier):
            container.training = owner.training  # train() would change the recipe's modules inside too
        self.head = f"classifier.{linears[-1]}{'.w' if hasattr(last, 'w') else ''}"
        self.classes = int(getattr(last, "w", last).out_features)

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        value: Any = self.with_blank(labels, device)
        for layer in self.prediction:
            value = layer(value)
            value = value[0] if isinstance(value, tuple) else value  # an RNN gives its state too
        predicted: torch.Tensor = value[0]
        return predicted

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        joint: torch.Tensor = self.joint(enc[None, :, None], dec[None, None])
        for layer in self.classifier:
            joint = layer(joint)
        return joint[0]


JOINER = SpeechBrainJoiner


def _transducer_searcher(hparams: Mapping[str, Any]) -> Any:
    """Return the transducer searcher of a yaml, or None; by its attributes, as its class has moved before."""
    for value in [*hparams["modules"].values(), *hparams.values()]:
        if all(hasattr(value, name) for name in SEARCHER):
            return value
    return None


def _attention_searcher(hparams: Mapping[str, Any]) -> Any:
    """Return an attention decoder's searcher, or None: RNNs have emb, dec, fc; transformers model, fc."""
    for value in [*hparams["modules"].values(), *hparams.values()]:
        rnn = all(isinstance(getattr(value, n, None), nn.Module) for n in ("emb", "dec", "fc"))
        transformer = hasattr(getattr(value, "model", None), "decode") and hasattr(value, "fc")
        if hasattr(value, "eos_index") and (rnn or transformer):
            return value
    return None


def _find_ctc(model: nn.Module) -> str:
    """Return the path of the layer ``ctc_lin``, or of the Linear it wraps; empty where there is none."""
    found = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "ctc_lin"]
    if not found:
        return ""
    return f"{found[0]}.w" if hasattr(model.get_submodule(found[0]), "w") else found[0]


class Chain(nn.Module):
    """Modules of a training's encoder, one after the other; lengths go to those that take them."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: torch.Tensor, relative: torch.Tensor) -> torch.Tensor:
        """Run the modules on (B, samples) and (B,) lengths relative to the longest: (B, T, D)."""
        for part in self.parts.values():
            call: Any = getattr(part, "encode", part)  # a Transformer's forward wants tokens too
            parameters = inspect.signature(part.forward if call is part else call).parameters
            lengths = {name: relative for name in LENGTH_PARAMETERS if name in parameters}
            output: Any = call(x, **lengths)
            x = output[0] if isinstance(output, tuple) else output
        return x


def _is_training(folder: Path) -> bool:
    """Tell whether a folder, or its ``save``, holds checkpoints of a training."""
    return any(folder.glob("CKPT+*/CKPT.yaml")) or any(folder.glob("save/CKPT+*/CKPT.yaml"))


def _read_training(
    folder: Path, text: str, options: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str], list[nn.Module]]:
    """Read a training's folder without making its brain, opening a data set or writing anything.

    Returns the objects that a teacher needs, their checkpoint loaded; the checkpoint and chain that were
    chosen; and the modules that the checkpoint fills. Raises ``TeacherError`` where a part of the chain would
    have random weights, and ``UsageError`` where an option has to name the chain, the checkpoint or the
    tokenizer.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the constructor of a wav2vec2 would download it
    from hyperpyyaml import load_hyperpyyaml

    text, overrides = _without_training(text, folder)
    hparams = load_hyperpyyaml(text, overrides, overrides_must_match=False)
    modules = hparams.get("modules")
    checkpointer: Any = hparams.get("checkpointer")
    if not isinstance(modules, dict) or not hasattr(checkpointer, "keywords"):
        raise TeacherError(
            "it has no modules or no checkpointer: is it the yaml of a training?", where=str(folder)
        )
    searcher = _transducer_searcher(hparams)
    chain = _chain(hparams, options.get("chain", ""), str(folder))
    ctc_layers = [n for n in CTC_LAYERS if n in modules and not (n == "output" and searcher)]
    ctc = modules[ctc_layers[0]] if ctc_layers else None
    save = folder / "save" if any(folder.glob("save/CKPT+*")) else folder
    recoverables = checkpointer.keywords.get("recoverables", {})
    filled, chosen = _load_checkpoint(save, recoverables, options, hparams)
    needed = {**chain, **({"the CTC layer": ctc} if ctc is not None else {})}
    if searcher is not None:
        needed |= {f"the decoder's {type(m).__name__}": m for m in searcher.decode_network_lst}
        needed |= {"the joint's output": searcher.classifier_network[0]}
    _require_filled(needed, filled, chosen["checkpoint"], str(folder))
    chosen["chain"] = " + ".join(chain)
    found = {"encoder": Chain(chain), **({"ctc_lin": ctc} if ctc is not None else {})}
    keep = {k: hparams[k] for k in ("sample_rate", "blank_index") if k in hparams}
    tokenizer = _tokenizer(folder, save / chosen["checkpoint"], options)
    return {**keep, "modules": found, "searcher": searcher, "tokenizer": tokenizer}, chosen, filled


def _require_filled(
    needed: Mapping[str, nn.Module], filled: list[nn.Module], checkpoint: str, where: str
) -> None:
    """Raise ``TeacherError`` for a needed module with weights that no file of the checkpoint holds."""
    have = {id(m) for f in filled for m in f.modules()}
    for name, module in needed.items():
        trained = any(True for _ in module.parameters()) or getattr(module, "norm_type", "") == "global"
        if trained and id(module) not in have:
            raise TeacherError(
                f"no file of {checkpoint} fills {name}",
                where=where,
                why="Its weights would be random, or those of another model.",
                do="Give an inference folder: a hyperparams.yaml with a pretrainer that loads every part.",
            )


def _without_training(text: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the yaml with its output folder's new path, and overrides that remove training's objects."""
    overrides: dict[str, Any] = {n: None for n in TRAINING_OBJECTS if re.search(rf"^{n}:", text, re.M)}
    overrides |= dict.fromkeys(re.findall(r"^(\w+): *!PLACEHOLDER", text, re.M), "unused")
    was = re.search(r"^output_folder: *(.+?) *(?:#.*)?$", text, re.M)
    if was and was[1].startswith("!"):
        overrides["output_folder"] = str(folder)
    elif was:  # a training writes its yaml with all references resolved
        there = str(folder).replace("\\", r"\\")
        text = re.sub(rf"(?<![\w./-]){re.escape(was[1])}(?=[/\s'\"\]}},]|$)", there, text)
    # A Checkpointer makes its folder when it is constructed; its arguments are enough here.
    return text.replace("!new:speechbrain.utils.checkpoints.Checkpointer", "!name:dict"), overrides


def _chain(hparams: dict[str, Any], given: str, where: str) -> dict[str, nn.Module]:
    """Return the encoder's modules in the order of their calls; raises ``UsageError`` where nothing tells it.

    The order is in the recipe's ``compute_forward``, not in the yaml. The public recipes call the same
    modules by the same names in one order, ``STEPS``.

    Args:
        hparams: objects of the yaml.
        given: option ``chain``; empty to go by the names.
        where: folder, for the error.
    """
    modules = hparams["modules"]
    known = {k: m for k, m in [*hparams.items(), *modules.items()] if isinstance(m, nn.Module)}
    if given:
        names = given.split("+")
        if missing := [n for n in names if n not in known]:
            raise UsageError(f"chain= names {missing[0]!r}", do=registry.suggest(missing[0], known))
        return {n: known[n] for n in names}
    names = []
    for step in STEPS:
        if step == NORMALISERS and "compute_features" not in names:
            continue
        # Features and their normaliser may stand outside of modules.
        found = [n for n in step if n in known and (n in modules or n in SOURCES + NORMALISERS)]
        names += [n for n in found if not isinstance(known[n], nn.ModuleList)][:1]
    unknown = [
        name
        for name, module in modules.items()
        if name not in (*names, *CTC_LAYERS, *NOT_IN_ENCODER)
        and isinstance(module, nn.Module)
        and any(True for _ in module.parameters())
    ]
    if unknown or not any(n in ENCODERS for n in names) or names[0] not in SOURCES:
        raise UsageError(
            f"its modules {', '.join(modules)} do not tell the order in which they are called",
            where=where,
            why="That order is in the recipe's compute_forward."
            + (f" Nothing says where {', '.join(unknown)} belongs." if unknown else ""),
            do="Give it, up to the input of CTC layer or joint: chain=compute_features+normalize+enc.",
        )
    return {n: known[n] for n in names}


def _load_checkpoint(
    save: Path, recoverables: Mapping[str, Any], options: Mapping[str, str], hparams: Mapping[str, Any]
) -> tuple[list[nn.Module], dict[str, str]]:
    """Load the recoverable modules by SpeechBrain's own checkpointer, as the recipe's evaluation does.

    Returns the modules that the checkpoint fills, and its name and why it was chosen.
    """
    from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints

    modules = {n: m for n, m in recoverables.items() if isinstance(m, nn.Module)}
    checkpointer = Checkpointer(save, modules, allow_partial_load=True)
    saved = checkpointer.list_checkpoints()
    score = _score({key for c in saved for key in c.meta}, options)
    if options.get("ckpt", "last") != "last":
        ranked = [c for c in saved if c.path.name == options["ckpt"]]
    else:
        ranked = checkpointer.find_checkpoints(**({f"{score[0]}_key": score[1]} if score else {}))
    if not ranked:
        there = (f"{c.path.name} ({', '.join(sorted(c.meta))})" for c in sorted(saved, key=lambda c: c.path))
        raise UsageError(f"no such checkpoint in {save}", do=f"There are: {'; '.join(there)}.")
    best = ranked[0]
    checkpointer.load_checkpoint(best)
    if score:
        reason = f"{score[0]} {score[1]}: {best.meta[score[1]]:g}"
    else:
        reason = "as said" if "ckpt" in options else "newest"
    chosen = {"checkpoint": best.path.name, "chosen": reason}
    several = ranked[: int(options.get("avg", hparams.get("avg_checkpoints") or 1))]
    if len(several) > 1 and "model" in modules and "ckpt" not in options:
        mean = average_checkpoints(several, recoverable_name="model")
        modules["model"].load_state_dict(mean, strict=True)
        chosen["averaged"] = ", ".join(c.path.name for c in several)
    return [m for n, m in modules.items() if n in best.paramfiles], chosen


def _score(keys: set[str], options: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the score that ranks checkpoints, e.g. ("min", "WER"); None for the newest or a named one."""
    if "ckpt" in options:
        return None
    given = [(side, options[side]) for side in ("min", "max") if side in options]
    usual = [*(("min", k) for k in LEAST if k in keys), *(("max", k) for k in MOST if k in keys)]
    return next(iter([*given, *usual]), None)


def _tokenizer(folder: Path, checkpoint: Path, options: Mapping[str, str]) -> Any:
    """Load the folder's tokenizer: a label encoder's file or a SentencePiece model; raises ``UsageError``."""
    if "tokenizer" in options:
        found = [existing(options["tokenizer"], "the tokenizer")]
    else:
        places = [
            checkpoint / "tokenizer.ckpt",
            folder / "save" / "tokenizer.ckpt",
            folder / "tokenizer.ckpt",
        ]
        places += [folder / "save" / "label_encoder.txt", folder / "label_encoder.txt"]
        found = [p for p in places if p.exists()][:1]
        found = found or sorted({*folder.glob("*.model"), *folder.glob("save/*.model")})
    if len(found) != 1:
        raise UsageError(
            f"{folder} holds {len(found)} tokenizers",
            where="--teacher",
            do="Name one with tokenizer=FILE: a SentencePiece .model, or a label_encoder.txt.",
        )
    if b" => " in found[0].read_bytes():
        from speechbrain.dataio.encoder import CTCTextEncoder

        encoder: Any = CTCTextEncoder()
        encoder.load(str(found[0]))
        return encoder
    with registry.needs("speechbrain", "pip install sentencepiece"):
        import sentencepiece
    return sentencepiece.SentencePieceProcessor(model_file=str(found[0]))
