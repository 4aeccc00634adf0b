"""Whisper (Radford et al. 2022) as transformers has it: 30 s in, and a decoder that is told what to do.

The encoder always sees 30 s, silence behind the recording; only frames of the recording are kept. The decoder
begins with a prompt, ``<|startoftranscript|><|en|><|transcribe|><|notimestamps|>``, which is no part of what
is stored. A text begins with a space, as Whisper's own do (``space=0`` for a model fine-tuned without).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import TeacherError, UsageError
from ..registry import suggest
from ..schema.spec import Head, TeacherSpec
from ._transformers import HuggingFace

PROMPT = ("language", "task", "space")
TASKS = ("transcribe", "translate")
MULTILINGUAL = 51865  # classes from which Whisper's own tables know more than English
SILENT = ("<|nospeech|>", "<|nocaptions|>")  # the nearest that it has to a blank
HEAD = "proj_out"


def knows_languages(folder: Path) -> bool | None:
    """What a folder's generation_config.json says of its languages; transformers 5 forgets it."""
    try:
        said = json.loads((folder / "generation_config.json").read_text("utf-8")).get("is_multilingual")
    except (OSError, ValueError):
        return None
    return said if isinstance(said, bool) else None


class Whisper(HuggingFace):
    """A ``WhisperForConditionalGeneration``.

    Args:
        model: in eval mode.
        extractor: a WhisperFeatureExtractor.
        tokenizer: its tokenizer.
        asked: ``language``, ``task`` and ``space``, as far as they are given.
        many: whether it knows more languages than English; None to tell by the size of its table.
    """

    def __init__(
        self,
        model: nn.Module,
        extractor: Any,
        tokenizer: Any,
        asked: Mapping[str, str] | None = None,
        many: bool | None = None,
    ) -> None:
        self.model, self.extractor, self.tokenizer = model, extractor, tokenizer
        self.rate = int(extractor.sampling_rate)
        self._frame_shift = 2 * int(
            extractor.hop_length
        )  # the encoder's second convolution takes every other
        self._ids: dict[str, int] = tokenizer.get_vocab()
        asked = dict(asked or {})
        if asked.get("space", "1") not in ("0", "1"):
            raise UsageError(f"space={asked['space']} is neither 0 nor 1", where="--teacher")
        self._space = " " * int(asked.get("space", "1"))
        self._end = int(model.config.eos_token_id)  # type: ignore[union-attr,arg-type]
        self._many = self.model.config.vocab_size >= MULTILINGUAL if many is None else many
        self.prompt = self._prompt(asked.get("language", ""), asked.get("task", ""))
        self.most_labels = int(self.model.config.max_target_positions) - len(self.prompt)

    @property
    def blank(self) -> int:
        """Id of the token for no speech; a decoder has no blank."""
        return next((self._ids[t] for t in SILENT if t in self._ids), int(self.model.config.pad_token_id))

    def _prompt(self, language: str, task: str) -> list[int]:
        """Ids of what the decoder is told first; raises ``UsageError`` for what the model does not know."""
        if self._many and not language:
            raise UsageError(
                "a Whisper of many languages, and no language",
                where="--teacher",
                why="Without it the decoder is told something that it never saw in training.",
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
                    f"its tokenizer has no {word}",
                    where="--teacher",
                    do=f"Languages are codes. {suggest(language, known)}"[:300],
                )
        return [self._ids[word] for word in words]

    def describe(self) -> TeacherSpec:
        names = self.tokenizer.convert_ids_to_tokens(self.prompt)
        spec = self._spec(Head("seq2seq", HEAD, self.blank, end=self._end))
        return TeacherSpec(
            spec.name, spec.sample_rate, spec.frame_shift, spec.heads, {**spec.features, "prompt": names}
        )

    def labels(self, text: str) -> list[int]:
        """Token ids of a text, its first space included; raises ``ValueError`` for one that does not fit."""
        said = text.strip()
        ids = [int(i) for i in self.tokenizer(self._space + said, add_special_tokens=False).input_ids]
        ids = ids if said else []
        if self._end in ids or self.blank in ids:
            raise ValueError(f"{text!r} does not tokenise: it becomes {ids}")
        if len(ids) > self.most_labels:
            raise ValueError(
                f"{len(ids)} tokens, where the decoder holds {self.most_labels}: cut the recording"
            )
        return ids

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        """(3000, F + 1) log-mel of 30 s as the processor makes it; the last column is 1 on the recording."""
        if len(audio) > self.extractor.n_samples:
            raise ValueError(
                f"Whisper hears {self.extractor.n_samples / self.rate:g} s at once: cut the recording into "
                "shorter utterances, with offset and duration in the manifest"
            )
        mel = self.extractor(audio, sampling_rate=self.rate, return_tensors="pt").input_features[0].float()
        valid = -(-len(audio) // int(self.extractor.hop_length))
        return torch.cat([mel.T, (torch.arange(mel.shape[1]) < valid)[:, None].float()], 1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        mel, valid = features[..., :-1], features[..., -1].sum(1).long()
        encoded = self.model.get_encoder()(mel.transpose(1, 2)).last_hidden_state
        return {"encoded": encoded, "lengths": ((valid + 1) // 2).clamp(1, encoded.shape[1])}

    def lengths(self, output: Any) -> torch.Tensor:
        lengths: torch.Tensor = output["lengths"]
        return lengths

    def padded_frames(self, output: Any) -> int:
        """Frames of 30 s, whatever the recordings are."""
        return int(output["encoded"].shape[1])

    def decode(self, output: Any, b: int, labels: list[int]) -> torch.Tensor:
        """(1, P - 1 + U, V) logits after a prompt of P tokens and under all labels but the last."""
        ids = torch.tensor([[*self.prompt, *labels[:-1]]], device=output["encoded"].device)
        if ids.shape[1] > self.model.config.max_target_positions:
            raise TeacherError(
                f"{len(labels)} labels, where the decoder holds {self.most_labels} and its end",
                do="Cut the recording into shorter utterances.",
            )
        encoded = output["encoded"][b : b + 1]
        said = self.model.get_decoder()(input_ids=ids, encoder_hidden_states=encoded, use_cache=False)
        logits: torch.Tensor = self.model.get_output_embeddings()(said.last_hidden_state)
        return logits
