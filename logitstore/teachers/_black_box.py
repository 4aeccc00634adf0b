"""A teacher that only says what was said: no model, no logits, a text for every recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..schema.spec import TeacherSpec
from ..tokens.table import TokenTable

NO_TOKENS = TokenTable(("<blk>",), 0)


class BlackBox:
    """Anything with ``describe`` and ``transcribe`` or ``wrote``, as a teacher of a ``text`` stream.

    Its frames are those of the shift that it describes: nothing but lengths is made of them.

    Args:
        box: keeps the protocol of ``logitstore.teachers.protocol.Transcriber``.
    """

    def __init__(self, box: Any) -> None:
        self.box = box
        self.model: nn.Module = nn.Module()
        self.hears = not hasattr(box, "wrote")  # otherwise recordings need not even be there

    def __getattr__(self, name: str) -> Any:
        if name in ("transcribe", "wrote"):
            return getattr(self.box, name)
        raise AttributeError(name)

    def describe(self) -> TeacherSpec:
        spec: TeacherSpec = self.box.describe()
        return spec

    def tokens(self) -> TokenTable:
        """Of a single token: no row of such a store has a class."""
        return NO_TOKENS

    def features(self, audio: NDArray[np.float32]) -> torch.Tensor:
        return torch.zeros(max(1, round(len(audio) / self.describe().frame_shift)), 1)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return lengths

    def lengths(self, output: torch.Tensor) -> torch.Tensor:
        return output
