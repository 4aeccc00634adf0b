"""Who am I among the processes: job i of N."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``count``; takes every ``count``-th thing, beginning with ``index``."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"part {self.index} of {self.count} does not exist", do="Parts count from 0.")

    def takes(self, number: int) -> bool:
        return number % self.count == self.index

    def split(self, inner: Part) -> Part:
        """The part of this part that ``inner`` takes."""
        return Part(self.index + self.count * inner.index, self.count * inner.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``i/N`` with i counted from 0."""
        m = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not m:
            raise UsageError(f"{text!r} is not a part like 0/4", do="Give index/count, counted from 0.")
        return cls(int(m[1]), int(m[2]))
