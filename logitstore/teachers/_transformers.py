"""What every transformers teacher shares: the processor's features, lengths and tokens."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import TeacherError
from ..tokens.table import TokenTable
from .protocol import Head, TeacherSpec

LENGTHS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
PAD = "⟨unused {}⟩"
BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})  # tokens.txt cannot hold them


class HuggingFace:
    """What all of them share: features, lengths, tokens."""

    _frame_shift: int

    def __init__(self, model: nn.Module, extractor: Any, tokenizer: Any) -> None:
        self.model: Any = model
        self.extractor, self.tokenizer = extractor, tokenizer
        self.input_name: str = extractor.model_input_names[0]
        self.rate = int(extractor.sampling_rate)
        names = [n for n in LENGTHS if hasattr(model, n)]
        if not names:
            raise TeacherError(f"{type(model).__name__} has no helper that says how long its output is")
        self._frames = getattr(model, names[0])

    def _spec(self, head: Head) -> TeacherSpec:
        said = json.loads(self.extractor.to_json_string())
        features = {k: v for k, v in said.items() if k not in ("processor_class", "mel_filters")}
        return TeacherSpec(type(self.model).__name__, self.rate, self._frame_shift, (head,), features)

    def _out(self, length: int) -> int:
        return int(self._frames(torch.tensor([length]))[0])

    def tokens(self) -> TokenTable:
        head: Any = self.model.get_submodule(self.describe().heads[0].module)
        size = min(int(head.weight.shape[0]), int(self.model.config.vocab_size))
        by_id = {i: t for t, i in self.tokenizer.get_vocab().items() if i < size}
        tokens = (by_id.get(i) or PAD.format(i) for i in range(size))
        return TokenTable(tuple(t.translate(BREAKS) for t in tokens), self.blank)

    @property
    def blank(self) -> int:
        """Id of the blank."""
        config = self.model.config
        blank: int | None = getattr(config, "blank_token_id", None)
        return int(config.pad_token_id) if blank is None else blank

    def describe(self) -> TeacherSpec:
        raise NotImplementedError

    def labels(self, text: str) -> list[int]:
        """Token ids of a text; raises ``ValueError`` for one that has no tokens."""
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
        if length < 1 or self._out(length) < 1:
            raise ValueError(f"{len(audio)} samples are too short for one frame")
        return value[:, None] if value.dim() == 1 else value

    def _inputs(self, features: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = torch.arange(features.shape[1], device=lengths.device)[None] < lengths[:, None]
        raw = self.input_name == "input_values"
        return {self.input_name: features[..., 0] if raw else features, "attention_mask": mask.long()}
