"""What the teacher said about one utterance, encoded: named arrays and what goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """One utterance as a storage keeps it.

    Attributes:
        id: the utterance.
        meta: JSON: ``T``, ``U``, ``seconds``, ``text``, ...
        arrays: by column name; ``(n, *column.shape)``.
    """

    id: str
    meta: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
