"""``huggingface:DIR``: a transformers model as ``save_pretrained`` wrote it, with its processor.

CTC: wav2vec2, HuBERT, WavLM and related models, and Parakeet. Transducers: Parakeet RNN-T and TDT and the
    Nemotron
models of the same interface. Attention decoders: Whisper, with ``language=en`` and ``task=transcribe``.
``huggingface:DIR,processor=OTHER`` takes the feature extractor and the tokenizer from another folder;
``target_lang=spa`` selects the language of models that keep an adapter and a token table for each one (MMS).
Nothing is downloaded and no code of the folder is run.
"""

from __future__ import annotations

import json
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
from ._one_by_one import EncoderTeacher, measured_shift
from ._options import existing, read_where
from .joiners import (
    AdapterBase,
    JoinerAdapter,
    JoinerMethods,
    has_attributes,
    takes_parameter,
)
from .protocol import Head, Teacher, TeacherSpec

CTC_HEADS = ("lm_head", "ctc_head")
# Models with an attention mask that keeps padding out of the frames of shorter utterances. In the others
# (group norm, a convolving adapter, convolutions between the layers) padding reaches in, so each utterance is
# encoded alone.
MASKED = ("wav2vec2", "wav2vec2-bert", "hubert", "wavlm", "unispeech", "unispeech-sat", "parakeet_ctc")
TRAINING_ONLY = ("masked_spec_embed",)  # weights that old checkpoints lack and inference does not use
LENGTH_METHODS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
UNUSED_TOKEN = "⟨unused {}⟩"
LINE_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})  # which tokens.txt cannot hold


def load(where: str) -> Teacher:
    """Load the model and its processor in float32.

    Raises ``UsageError`` for a wrong path, a prompt that the model cannot take, or where transformers is
    missing, and ``TeacherError`` for a model of another kind, or one that lacks its head, feature extractor
    or tokenizer.
    """
    from ._whisper import (
        PROMPT,
        WhisperTeacher,
        knows_languages,
    )  # a subclass of this file's HuggingFaceTeacher

    options = read_where(where, "model", ("processor", "target_lang", *PROMPT))
    path = existing(options["model"], "a folder that save_pretrained wrote")
    side = existing(options.get("processor", path), "a folder that holds the processor")
    with registry.needs("huggingface"):
        import transformers
    model, extractor, tokenizer = _from_pretrained(transformers, path, side, options.get("target_lang", ""))
    prompt = {name: options[name] for name in PROMPT if name in options}
    if model.config.model_type == "whisper":
        return WhisperTeacher(model.eval(), extractor, tokenizer, prompt, knows_languages(path))
    if prompt:
        raise UsageError(
            f"{', '.join(prompt)}: {type(model).__name__} takes no prompt",
            where=f"--teacher huggingface:{path}",
        )
    kind = HuggingFaceTransducer if hasattr(model, "joint") else HuggingFaceCTC
    return kind(model.eval(), extractor, tokenizer)


def _from_pretrained(transformers: Any, path: Path, side: Path, target_lang: str) -> tuple[Any, Any, Any]:
    """Load model, feature extractor and tokenizer; raises ``UsageError`` or ``TeacherError``.

    Args:
        transformers: the package.
        path: folder of the model.
        side: folder of the processor.
        target_lang: language of an MMS adapter; empty for none.
    """
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **local)
        factory = _model_class(transformers, config, str(path))
        model, report = factory.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, **local
        )
        extractor = transformers.AutoFeatureExtractor.from_pretrained(side, **local)
        language = {"target_lang": target_lang} if target_lang else {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(side, **language, **local)
        if target_lang:  # loads the language's head too, of its own size
            model.load_adapter(target_lang=target_lang, local_files_only=True)
    except ImportError as e:  # some processors need more packages than transformers
        raise UsageError(f"transformers needs more to load it: {str(e).strip()}", where=str(path)) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        adapters = sorted(f.name.split(".")[1] for f in path.glob("adapter.*"))
        advice = "The folder needs the model and its processor; processor=DIR names another folder."
        if adapters:
            advice = f"It has adapters: say target_lang={', target_lang='.join(adapters)}."
        raise TeacherError(f"transformers cannot load it: {e}", where=str(path), do=advice) from e
    missing = sorted(k for k in report["missing_keys"] if not k.endswith(TRAINING_ONLY))
    if missing:
        raise TeacherError(
            f"the checkpoint lacks {', '.join(missing[:4])}, which {type(model).__name__} has",
            where=str(path),
            why="transformers fills missing weights with random numbers: this head was never trained.",
            do="Give the fine-tuned model, not the pretrained one.",
        )
    return model, extractor, tokenizer


def _model_class(transformers: Any, config: Any, where: str) -> Any:
    """Return the transformers class for a config; raises ``TeacherError`` for an unknown kind of model."""
    for name in ("CTC", "RNNT", "TDT"):
        known = getattr(transformers, f"MODEL_FOR_{name}_MAPPING", {})
        if type(config) in known:
            return known[type(config)]
    if config.model_type == "whisper":
        return transformers.WhisperForConditionalGeneration
    raise TeacherError(
        f"a {config.model_type} model is neither CTC nor transducer nor Whisper",
        where=where,
        do="Give a ...ForCTC, ...ForRNNT, ...ForTDT or WhisperForConditionalGeneration model.",
    )


class HuggingFaceTeacher(EncoderTeacher):
    """Base of every transformers teacher: the processor's features, lengths and tokens.

    Args:
        model: a transformers model in eval mode.
        extractor: its feature extractor.
        tokenizer: its tokenizer.
    """

    _frame_shift: int

    def __init__(self, model: nn.Module, extractor: Any, tokenizer: Any) -> None:
        self.model: Any = model
        self.extractor, self.tokenizer = extractor, tokenizer
        self.input_name: str = extractor.model_input_names[0]
        self.rate = int(extractor.sampling_rate)
        self.alone = False
        methods = [n for n in LENGTH_METHODS if hasattr(model, n)]
        if not methods:
            raise TeacherError(f"{type(model).__name__} has no method that gives the length of its output")
        self._output_lengths = getattr(model, methods[0])

    @property
    def blank(self) -> int:
        """Id of the blank."""
        return _blank(self.model.config)

    def describe(self) -> TeacherSpec:
        raise NotImplementedError

    def spec_with(self, head: Head) -> TeacherSpec:
        """Return the description of a model with this one head."""
        settings = json.loads(self.extractor.to_json_string())
        features = {k: v for k, v in settings.items() if k not in ("processor_class", "mel_filters")}
        return TeacherSpec(type(self.model).__name__, self.rate, self._frame_shift, (head,), features)

    def tokens(self) -> TokenTable:
        head: Any = self.model.get_submodule(self.describe().heads[0].module)
        size = min(int(head.weight.shape[0]), int(self.model.config.vocab_size))
        by_id = {i: t for t, i in self.tokenizer.get_vocab().items() if i < size}
        tokens = (by_id.get(i) or UNUSED_TOKEN.format(i) for i in range(size))
        return TokenTable(tuple(t.translate(LINE_BREAKS) for t in tokens), self.blank)

    def labels(self, text: str) -> list[int]:
        """Tokenise a text; raises ``ValueError`` for one that has no tokens."""
        ids = [int(i) for i in self.tokenizer(text, add_special_tokens=False).input_ids]
        if self.tokenizer.unk_token_id in ids or self.blank in ids:
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        return ids

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        given = self.extractor(
            audio, sampling_rate=self.rate, return_attention_mask=True, return_tensors="pt"
        )
        length = int(given["attention_mask"][0].sum())
        value: torch.Tensor = given[self.input_name][0, :length].float()
        if length < 1 or int(self._output_lengths(torch.tensor([length]))[0]) < 1:
            raise ValueError(f"{len(audio)} samples are too short for one frame")
        return value[:, None] if value.dim() == 1 else value

    def model_inputs(self, features: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the model's keyword arguments for a padded batch: features or samples, and their mask."""
        mask = torch.arange(features.shape[1], device=lengths.device)[None] < lengths[:, None]
        takes_samples = self.input_name == "input_values"
        values = features[..., 0] if takes_samples else features
        return {self.input_name: values, "attention_mask": mask.long()}

    def valid_frames(self, lengths: torch.Tensor, frames: int) -> torch.Tensor:
        """Return (B,) output frames of inputs of these lengths, at most ``frames``."""
        valid: torch.Tensor = self._output_lengths(lengths).long().clamp(max=frames)
        return valid


class HuggingFaceCTC(HuggingFaceTeacher):
    """``...ForCTC`` model; the blank is the pad token."""

    def __init__(self, model: nn.Module, extractor: Any, tokenizer: Any) -> None:
        super().__init__(model, extractor, tokenizer)
        self.head = next((h for h in CTC_HEADS if hasattr(model, h)), "")
        if not self.head:
            raise TeacherError(f"{type(model).__name__} has neither {' nor '.join(CTC_HEADS)}")
        config: Any = self.model.config
        self.alone = (
            config.model_type not in MASKED
            or not getattr(extractor, "return_attention_mask", True)
            or getattr(config, "feat_extract_norm", "layer") == "group"
            or getattr(config, "add_adapter", False)
        )
        self._frame_shift = measured_shift(self, self.rate)

    def describe(self) -> TeacherSpec:
        return self.spec_with(Head("ctc", self.head, self.blank))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if self.alone:
            hidden, _ = self.encode_batch(features, lengths)
            logits = getattr(self.model, self.head)(hidden)
        else:
            logits = self.model(**self.model_inputs(features, lengths)).logits
        return {"logits": logits, "lengths": self.valid_frames(lengths, logits.shape[1])}

    def encode_one(self, features: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        encoder = self.model.encoder if hasattr(self.model, "encoder") else self.model.base_model
        hidden: torch.Tensor = encoder(**self.model_inputs(features, length)).last_hidden_state
        return hidden

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        return {"ctc": output["logits"].float().log_softmax(-1)}


class HuggingFaceTransducer(JoinerMethods, HuggingFaceTeacher):
    """``...ForRNNT`` or ``...ForTDT`` model; the durations of a TDT joint are left out of V."""

    def __init__(self, model: nn.Module, extractor: Any, tokenizer: Any) -> None:
        super().__init__(model, extractor, tokenizer)
        self._frame_shift = measured_shift(self, self.rate)

    def describe(self) -> TeacherSpec:
        return self.spec_with(Head("rnnt", self.joiner.head, self.blank))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        encoded = self.model.get_audio_features(**self.model_inputs(features, lengths))
        enc = encoded.pooler_output  # behind the encoder's projection, which is not a part of the joint
        return {"enc": enc, "lengths": self.valid_frames(lengths, enc.shape[1])}

    @cached_property
    def joiner(self) -> JoinerAdapter:
        """Adapter of the joint."""
        return HuggingFaceJoiner(self.model, blank=self.blank)


class HuggingFaceJoiner(AdapterBase):
    """Joiner adapter of a prediction network and its joint (Parakeet, Nemotron)."""

    encoder = "encoder_projector"

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """Tell whether the joint has a ``head`` and named sides, and its owner a ``decoder``."""
        parameters = ("encoder_hidden_states", "decoder_hidden_states")
        return (
            has_attributes(joint, "head")
            and has_attributes(owner, "decoder", "config")
            and all(takes_parameter(joint, name) for name in parameters)
        )

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "head")
        self.classes, self.width = int(owner.config.vocab_size), int(self.joint.head.in_features)

    def own_blank(self) -> int:
        return _blank(self.owner.config)

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        value: torch.Tensor = self.owner.decoder(self.with_blank(labels, device))[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(encoder_hidden_states=enc[:, None], decoder_hidden_states=dec[None])
        return logits[..., : self.classes]


JOINER = HuggingFaceJoiner


def _blank(config: Any) -> int:
    """Return ``blank_token_id`` of a config, or its pad token where it has none."""
    blank: int | None = getattr(config, "blank_token_id", None)
    return int(config.pad_token_id) if blank is None else blank
