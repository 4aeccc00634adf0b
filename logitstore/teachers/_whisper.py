"""Whisper (Radford et al. 2022) as transformers has it: 30 s of audio in, and a decoder that takes a prompt.

The encoder always sees 30 s with silence behind the recording; only the recording's frames are kept. The
decoder starts from a prompt, ``<|startoftranscript|><|en|><|transcribe|><|notimestamps|>``; the prompt's rows
are not stored. Texts begin with a space, as Whisper's own do (``space=0`` for a model that was fine-tuned
without it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import TeacherError, UsageError
from ..registry import suggest
from ..schema.spec import Head, TeacherSpec
from .huggingface import HuggingFaceTeacher

PROMPT = ("language", "task", "space")
TASKS = ("transcribe", "translate")
MULTILINGUAL = 51865  # number of classes from which Whisper's own models know more than English
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # stands in for the blank, which a decoder has not
HEAD = "proj_out"


def knows_languages(folder: Path) -> bool | None:
    """Read from generation_config.json whether a model is multilingual; None where the file does not say.

    transformers 5 drops the entry when it loads the model.
    """
    try:
        value = json.loads((folder / "generation_config.json").read_text("utf-8")).get("is_multilingual")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, bool) else None


class WhisperTeacher(HuggingFaceTeacher):
    """A ``WhisperForConditionalGeneration``.

    Args:
        model: the model in eval mode.
        extractor: a WhisperFeatureExtractor.
        tokenizer: the model's tokenizer.
        options: ``language``, ``task`` and ``space``, as far as they are given.
        multilingual: true for a model of several languages; None to tell by the number of its classes.
    """

    def __init__(
        self,
        model: nn.Module,
        extractor: Any,
        tokenizer: Any,
        options: Mapping[str, str] | None = None,
        multilingual: bool | None = None,
    ) -> None:
        self.model, self.extractor, self.tokenizer = model, extractor, tokenizer
        self.rate = int(extractor.sampling_rate)
        # The encoder's second convolution has stride 2.
        self._frame_shift = 2 * int(extractor.hop_length)
        self._ids: dict[str, int] = tokenizer.get_vocab()
        options = dict(options or {})
        if options.get("space", "1") not in ("0", "1"):
            raise UsageError(f"space={options['space']} is neither 0 nor 1", where="--teacher")
        self._space = " " * int(options.get("space", "1"))
        self._end = int(model.config.eos_token_id)  # type: ignore[union-attr,arg-type]
        if multilingual is None:
            multilingual = self.model.config.vocab_size >= MULTILINGUAL
        self._multilingual = multilingual
        self.prompt = self._prompt_ids(options.get("language", ""), options.get("task", ""))
        self.most_labels = int(self.model.config.max_target_positions) - len(self.prompt)

    @property
    def blank(self) -> int:
        """Id of the token for no speech, in place of a blank."""
        return next((self._ids[t] for t in NO_SPEECH if t in self._ids), int(self.model.config.pad_token_id))

    def _prompt_ids(self, language: str, task: str) -> list[int]:
        """Return the prompt's token ids; raises ``UsageError`` for an unknown language or task."""
        if self._multilingual and not language:
            raise UsageError(
                "a multilingual Whisper needs a language",
                where="--teacher",
                why="Without one the decoder starts from a prompt that it never saw in training.",
                do="Say which: huggingface:DIR,language=en,task=transcribe.",
            )
        if language and not task:
            task = "transcribe"
        if task and task not in TASKS:
            raise UsageError(f"task={task}", where="--teacher", do=suggest(task, TASKS))
        words = ["<|startoftranscript|>", *(f"<|{x}|>" for x in (language, task) if x), "<|notimestamps|>"]
        for word in words:
            if word not in self._ids:
                known = sorted(t[2:-2] for t in self._ids if len(t) < 8 and t[:2] + t[-2:] == "<||>")
                raise UsageError(
                    f"the tokenizer has no {word}",
                    where="--teacher",
                    do=f"Languages are codes. {suggest(language, known)}"[:300],
                )
        return [self._ids[word] for word in words]

    def describe(self) -> TeacherSpec:
        spec = self.spec_with(Head("seq2seq", HEAD, self.blank, end=self._end))
        prompt = self.tokenizer.convert_ids_to_tokens(self.prompt)
        return replace(spec, features={**spec.features, "prompt": prompt})

    def labels(self, text: str) -> list[int]:
        """Tokenise a text with a space in front; raises ``ValueError`` for one that does not fit."""
        stripped = text.strip()
        ids: list[int] = []
        if stripped:
            given = self.tokenizer(self._space + stripped, add_special_tokens=False)
            ids = [int(i) for i in given.input_ids]
        if self._end in ids or self.blank in ids:
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        if len(ids) > self.most_labels:
            raise ValueError(
                f"{len(ids)} tokens, where the decoder holds {self.most_labels}: cut the recording"
            )
        return ids

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """Compute (3000, F + 1) log-mel of 30 s; the last column is 1 on the recording's own frames."""
        if len(audio) > self.extractor.n_samples:
            raise ValueError(
                f"Whisper takes {self.extractor.n_samples / self.rate:g} s at once: cut the recording into "
                "shorter utterances, with offset and duration in the manifest"
            )
        mel = self.extractor(audio, sampling_rate=self.rate, return_tensors="pt").input_features[0].float()
        valid = -(-len(audio) // int(self.extractor.hop_length))
        return torch.cat([mel.T, (torch.arange(mel.shape[1]) < valid)[:, None].float()], 1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        mel, valid = features[..., :-1], features[..., -1].sum(1).long()
        encoded = self.model.get_encoder()(mel.transpose(1, 2)).last_hidden_state
        return {"encoded": encoded, "lengths": ((valid + 1) // 2).clamp(1, encoded.shape[1])}

    def padded_frames(self, output: Any) -> int:
        """Return the encoder's frames of 30 s, however long the recordings are."""
        return int(output["encoded"].shape[1])

    def decode(self, output: Any, b: int, labels: list[int]) -> torch.Tensor:
        """Run the decoder on the prompt of P tokens and all labels but the last: (1, P - 1 + U, V) logits."""
        ids = torch.tensor([[*self.prompt, *labels[:-1]]], device=output["encoded"].device)
        if ids.shape[1] > self.model.config.max_target_positions:
            raise TeacherError(
                f"{len(labels)} labels, where the decoder holds {self.most_labels} and its end",
                do="Cut the recording into shorter utterances.",
            )
        encoded = output["encoded"][b : b + 1]
        decoded = self.model.get_decoder()(input_ids=ids, encoder_hidden_states=encoded, use_cache=False)
        logits: torch.Tensor = self.model.get_output_embeddings()(decoded.last_hidden_state)
        return logits
