"""The input of the sections of a report, and their result.

A section is a module of :mod:`logitstore.report.sections`, or any object that is registered as a component of
``report_sections``: it has ``ORDER``, a number that sections are sorted by, and ``draw(report)``, which returns a
:class:`Section`, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..corpus.manifest import Manifest, Utterance
from ..errors import UsageError
from ..pictures.html import Content, Html, foreign, tag
from ..store.inspect import StoreSummary
from ..store.reader import Store
from .compare import ComparedUtterance
from .measure import Measured, Measurements
from .student import StudentOutput

WORST = 20  # utterances of a list


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        sample: utterances that are measured at most; larger stores are sampled by ``seed``.
        seed: seed of the sample.
        utterances: utterances that are drawn in detail at most: the worst of the sample.
        ids: ids of utterances that are drawn in any case, first.
        rate: (p, q), p student frames for q teacher frames: targets at that rate are drawn too.
        audio: utterances that the page contains the recording of.
        manifest: manifest that recordings are found by; None for a report without spectrograms.
        command: the command that makes the report, as its arguments; empty for none.
    """

    sample: int = 500
    seed: int = 0
    utterances: int = 20
    ids: tuple[str, ...] = ()
    rate: tuple[int, int] | None = None
    audio: int = 0
    manifest: Manifest | None = None
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sample < 1 or self.utterances < 0 or self.audio < 0:
            raise UsageError(
                f"sample={self.sample}, utterances={self.utterances}, audio={self.audio}",
                do="Give a sample of 1 or more, and no negative numbers.",
            )
        if self.rate is not None and min(self.rate) < 1:
            raise UsageError(
                f"rate={self.rate}", do="Give student frames and teacher frames, such as (1, 2)."
            )


@dataclass(frozen=True)
class Section:
    """One section of a page.

    Attributes:
        title: heading.
        body: content.
        name: anchor of the section: lower-case letters and hyphens.
        lead: a sentence below the heading.
    """

    title: str
    body: Content
    name: str
    lead: Content = None


@dataclass
class Report:
    """Everything that sections are drawn from.

    Attributes:
        store: the store.
        options: options of the report.
        summary: description, size and statistics of the store.
        measured: measurements of the sampled utterances.
        shown: ids of the utterances that are drawn in detail, in order.
        skipped: utterances that could not be dumped: ``id``, ``reason`` and ``what`` of each.
        recordings: manifest lines of the utterances shown, by id.
        other: a second store to compare with (B); None in a report of one store.
        other_summary: its description, size and statistics.
        differences: (field, value in A, value in B) where the descriptions of the two stores differ.
        only: numbers of ids that only A and only B hold, and the first of each.
        student: a student's output; None without.
        compared: differences of the sampled utterances, the largest first, with ``other`` or ``student``.
    """

    store: Store
    options: ReportOptions
    summary: StoreSummary
    measured: Measurements
    shown: tuple[str, ...]
    skipped: list[Mapping[str, Any]]
    recordings: Mapping[str, Utterance] = field(default_factory=dict)
    other: Store | None = None
    other_summary: StoreSummary | None = None
    differences: list[tuple[str, Any, Any]] = field(default_factory=list)
    only: tuple[tuple[int, list[str]], tuple[int, list[str]]] = ((0, []), (0, []))
    student: StudentOutput | None = None
    compared: list[ComparedUtterance] = field(default_factory=list)
    _numbers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = {utt_id: number for number, utt_id in enumerate(self.shown, 1)}
        self._by_id = {one.id: one for one in self.measured.utterances}

    def anchor(self, utt_id: str) -> str:
        """Return the anchor of an utterance that is drawn in detail; empty for others."""
        number = self._numbers.get(utt_id)
        return "" if number is None else f"utterance-{number}"

    def link(self, utt_id: str) -> Html:
        """Return an id, as a link to its picture where there is one."""
        anchor = self.anchor(utt_id)
        shown = foreign(utt_id, 60)
        return tag("a", shown, href=f"#{anchor}") if anchor else tag("span", shown)

    def of(self, utt_id: str) -> Measured | None:
        """Return the measurements of an utterance; None where it was not sampled."""
        return self._by_id.get(utt_id)

    def token(self, index: int) -> str:
        """Return the token of a class."""
        return self.store.tokens.tokens[index]

    @property
    def alone(self) -> bool:
        """True if the report is of one store, without a second one and without a student."""
        return self.other is None and self.student is None

    @property
    def whole(self) -> bool:
        """True if every utterance of the store was measured."""
        return len(self.measured.utterances) + len(self.measured.unreadable) >= self.summary.utterances

    @property
    def extent(self) -> str:
        """A clause that says which utterances numbers are measured on."""
        count = len(self.measured.utterances)
        if self.whole:
            return f"all {number(count)} utterances"
        return (
            f"{number(count)} of {number(self.summary.utterances)} utterances, drawn at random "
            f"(seed {self.options.seed})"
        )


def number(value: float) -> str:
    """Return a count with thin spaces between its thousands."""
    return f"{value:,.0f}".replace(",", "\u2009")


def nats(value: float) -> str:
    """Return an amount of nats with two significant digits."""
    if value == 0:
        return "0"
    return (
        f"{value:#.2g}".rstrip(".")
        if 1e-3 <= abs(value) < 100
        else f"{value:.0f}"
        if 100 <= value < 1e5
        else f"{value:.1e}".replace("e-0", "e-")
    )


def percent(value: float) -> str:
    """Return a share as a percentage with three significant digits at most."""
    if 0.99 <= value < 1:
        return f"{min(100 * value, 99.99):.2f}\u202f%"  # never 100 % of what is not all
    digits = 0 if value in (0, 1) else 1 if value >= 0.0995 else 2
    return f"{100 * value:.{digits}f}\u202f%"


def bar(text: Content, share: float) -> Html:
    """Return a number over a bar of a length from 0 to 1."""
    length = float(np.clip(np.nan_to_num(share), 0, 1))
    return tag("span", text, class_="bar", style=f"--share:{100 * length:.0f}%")
