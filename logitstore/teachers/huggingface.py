"""``huggingface:DIR``: a transformers model as ``save_pretrained`` wrote it, with its processor.

CTC: wav2vec2, HuBERT, WavLM, their kin, and Parakeet. Transducers: Parakeet RNN-T and TDT and the Nemotron
models of the same interface. Attention decoders: Whisper, with ``language=en`` and ``task=transcribe``.
``huggingface:DIR,processor=OTHER`` takes the feature extractor and the tokenizer from elsewhere;
``target_lang=spa`` is for the models that keep an adapter and a table a language (MMS). Nothing is downloaded
and no code out of a folder is run.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import nn

from .. import registry
from ..errors import TeacherError, UsageError
from ._one_by_one import measured_shift, one_by_one
from ._options import existing, read_where
from ._transformers import HuggingFace
from ._whisper import PROMPT, Whisper, knows_languages
from .joiners import AdapterBase, JoinerAdapter, has, sides, takes
from .protocol import Head, Teacher, TeacherSpec

CTC_HEADS = ("lm_head", "ctc_head")
# Models whose padding provably stays out of the frames of shorter utterances. In the others (group norm, a
# convolving adapter, convolutions between the layers) it reaches in: they run utterance by utterance.
MASKED = ("wav2vec2", "wav2vec2-bert", "hubert", "wavlm", "unispeech", "unispeech-sat", "parakeet_ctc")
UNTRAINED = ("masked_spec_embed",)  # used in training alone: old checkpoints lack it


def load(where: str) -> Teacher:
    """Load the model and its processor in float32.

    Raises ``UsageError`` for a wrong path, a prompt that the model cannot take, or where transformers is
    missing, and ``TeacherError`` for a model that is none of those above, or that lacks its head, feature
    extractor or tokenizer.
    """
    asked = read_where(where, "model", ("processor", "target_lang", *PROMPT))
    path = existing(asked["model"], "a folder that save_pretrained wrote")
    side = existing(asked.get("processor", path), "a folder that holds the processor")
    with registry.needs("huggingface"):
        import transformers
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(path, **options)
        factory = _factory(transformers, config, str(path))
        model, report = factory.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
        extractor = transformers.AutoFeatureExtractor.from_pretrained(side, **options)
        tongue = {k: asked[k] for k in ("target_lang",) if k in asked}
        tokenizer = transformers.AutoTokenizer.from_pretrained(side, **tongue, **options)
        if tongue:
            model.load_adapter(**tongue, local_files_only=True)  # its head too, of that language's size
    except ImportError as e:  # some processors need more than transformers
        raise UsageError(f"transformers needs more to load it: {str(e).strip()}", where=str(path)) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        adapters = sorted(f.name.split(".")[1] for f in path.glob("adapter.*"))
        raise TeacherError(
            f"transformers cannot load it: {e}",
            where=str(path),
            do=f"It has adapters: say target_lang={', target_lang='.join(adapters)}."
            if adapters
            else "The folder needs the model and its processor; processor=DIR names another folder.",
        ) from e
    missing = sorted(k for k in report["missing_keys"] if not k.endswith(UNTRAINED))
    if missing:
        raise TeacherError(
            f"the checkpoint lacks {', '.join(missing[:4])}, which {type(model).__name__} has",
            where=str(path),
            why="transformers fills what is missing with random numbers: this head was never trained.",
            do="Give the fine-tuned model, not the pretrained one.",
        )
    prompt = {name: asked[name] for name in PROMPT if name in asked}
    if config.model_type == "whisper":
        return Whisper(model.eval(), extractor, tokenizer, prompt, knows_languages(path))
    if prompt:
        raise UsageError(
            f"{', '.join(prompt)}: {type(model).__name__} takes no prompt",
            where=f"--teacher huggingface:{path}",
        )
    kind = HuggingFaceTransducer if hasattr(model, "joint") else HuggingFaceCTC
    return kind(model.eval(), extractor, tokenizer)


def _factory(transformers: Any, config: Any, where: str) -> Any:
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


class HuggingFaceCTC(HuggingFace):
    """A ``...ForCTC`` model: the blank is the pad token, lengths come from the model's own helper."""

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
        return self._spec(Head("ctc", self.head, self.blank))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        if self.alone:
            hidden, _ = one_by_one(self._hidden, features, lengths)
            logits = getattr(self.model, self.head)(hidden)
        else:
            logits = self.model(**self._inputs(features, lengths)).logits
        return {"logits": logits, "lengths": self._frames(lengths).long().clamp(max=logits.shape[1])}

    def _hidden(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        encoder = self.model.encoder if hasattr(self.model, "encoder") else self.model.base_model
        hidden: torch.Tensor = encoder(**self._inputs(features, lengths)).last_hidden_state
        return hidden

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    def log_probs(self, output: Any) -> dict[str, torch.Tensor]:
        """What the model itself says, for the self-check."""
        return {"ctc": output["logits"].float().log_softmax(-1)}


class HuggingFaceTransducer(HuggingFace):
    """A ``...ForRNNT`` or ``...ForTDT`` model; the durations of a TDT joint are left out of V."""

    def __init__(self, model: nn.Module, extractor: Any, tokenizer: Any) -> None:
        super().__init__(model, extractor, tokenizer)
        self._frame_shift = measured_shift(self, self.rate)

    def describe(self) -> TeacherSpec:
        return self._spec(Head("rnnt", "joint.head", self.blank))

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        said = self.model.get_audio_features(**self._inputs(features, lengths))
        enc = said.pooler_output  # after the projection, which stands outside the joint
        return {"enc": enc, "lengths": self._frames(lengths).long().clamp(max=enc.shape[1])}

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    @cached_property
    def drive(self) -> JoinerAdapter:
        """Of its joint."""
        return HuggingFaceJoiner(self.model, blank=self.blank)

    def transducer(self, output: Any, b: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return sides(self.drive, output["enc"][b, : int(output["lengths"][b])], labels)

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        return self.drive.join(enc, dec)


class HuggingFaceJoiner(AdapterBase):
    """A prediction network and its joint (Parakeet, Nemotron)."""

    @staticmethod
    def fits(owner: nn.Module, joint: nn.Module) -> bool:
        """A ``joint`` with a ``head``, told its sides by their names, and a ``decoder``."""
        sides = ("encoder_hidden_states", "decoder_hidden_states")
        return has(joint, "head") and has(owner, "decoder", "config") and all(takes(joint, s) for s in sides)

    encoder = "encoder_projector"

    def __init__(self, owner: Any, name: str = "joint", blank: int | None = None) -> None:
        super().__init__(owner, name, blank, "head")
        self.classes, self.width = int(owner.config.vocab_size), int(self.joint.head.in_features)

    def own_blank(self) -> int:
        config = self.owner.config
        blank: int | None = getattr(config, "blank_token_id", None)
        return int(config.pad_token_id) if blank is None else blank

    def project(self, enc: torch.Tensor) -> torch.Tensor:
        return enc

    def predict(self, labels: list[int], device: torch.device) -> torch.Tensor:
        value: torch.Tensor = self.owner.decoder(self.begun(labels, device))[0]
        return value

    def join(self, enc: torch.Tensor, dec: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.joint(encoder_hidden_states=enc[:, None], decoder_hidden_states=dec[None])
        return logits[..., : self.classes]


JOINER = HuggingFaceJoiner
