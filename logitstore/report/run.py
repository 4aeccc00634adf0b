"""Making of a report: what is read, which utterances are drawn, which sections apply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

from .. import registry
from ..corpus.manifest import Utterance
from ..errors import MissingUtterance, UsageError
from ..pictures.html import foreign, visible
from ..store.diff import description_differences
from ..store.inspect import StoreSummary, inspect_store
from ..store.reader import Store, as_store
from .base import Report, ReportOptions, Section, number
from .compare import compare_stores, compare_student
from .measure import Measurements, measure, sampled, worst
from .page import page
from .sections.worst import MEASURES
from .student import StudentOutput

LISTED_IDS = 10  # ids that only one of two stores holds, listed at most
SUMMARISED = 100  # utterances that the table of streams is measured on


def report_store(store: Any, options: ReportOptions | None = None) -> str:
    """Return the report of a store as one HTML page.

    Args:
        store: an opened store, or its folder or URL.
        options: options of the report.

    Raises:
        NotAStore, FormatError, CorruptError: the store cannot be read. A single record that cannot be read is
            listed on the page.
        MissingUtterance: an id of the options that the store does not hold.
    """
    report = gather(as_store(store), options or ReportOptions())
    name = str(report.summary.teacher["name"])
    count = number(report.summary.utterances)
    lead = (
        f"The output of {visible(name)} for {count} utterances: what the store keeps of it, and what it lost."
    )
    return drawn_page(
        report,
        f"{name} · logitstore",
        foreign(report.summary.store.rstrip("/").rpartition("/")[2] or name),
        lead,
    )


def report_comparison(a: Any, b: Any, options: ReportOptions | None = None) -> str:
    """Return the report of what differs between two stores as one HTML page.

    Args:
        a: a store, opened or its folder or URL.
        b: the other store.
        options: options of the report.

    Raises:
        NotAStore, FormatError, CorruptError: one of them cannot be read.
        MissingUtterance: an id of the options that one of them does not hold.
    """
    a, b, options = as_store(a), as_store(b), options or ReportOptions()
    _require_ids(b, options)
    in_a, in_b = dict.fromkeys(a), dict.fromkeys(b)
    shared = [i for i in in_a if i in in_b]
    only_a, only_b = (len(in_a) - len(shared), len(in_b) - len(shared))
    picked = list(dict.fromkeys([*options.ids, *sampled(shared, options.sample, options.seed)]))
    compared = compare_stores(a, b, picked)
    shown = tuple(dict.fromkeys([*options.ids, *(one.id for one in compared)]))[: _most(options)]
    report = _gathered(a, options, picked, shown)
    report.other, report.compared = b, compared
    report.other_summary = inspect_store(b, sample=min(SUMMARISED, options.sample))
    report.differences = description_differences(a, b)
    first_a = islice((i for i in in_a if i not in in_b), LISTED_IDS)
    first_b = islice((i for i in in_b if i not in in_a), LISTED_IDS)
    report.only = ((only_a, list(first_a)), (only_b, list(first_b)))
    names = [visible(_short(s)) for s in (report.summary, report.other_summary)]
    heading = ["A: ", foreign(names[0]), ", B: ", foreign(names[1])]
    return drawn_page(report, f"{names[0]} and {names[1]} · logitstore", heading, "Two stores compared.")


def report_student(store: Any, student: Any, options: ReportOptions | None = None) -> str:
    """Return the report of a student's posteriors beside its targets as one HTML page.

    Args:
        store: the store of the targets, opened or its folder or URL.
        student: folder or file of the student's output; see :mod:`logitstore.report.student`.
        options: options of the report.

    Raises:
        UsageError: the output cannot be read, is empty, or does not fit the store's tokens.
        NotAStore, FormatError, CorruptError: the store cannot be read.
    """
    store, options = as_store(store), options or ReportOptions()
    output = StudentOutput(student)
    ids = [*options.ids, *sampled(list(output.ids(store)), options.sample, options.seed)]
    if not ids:
        raise UsageError(
            "no file is named by an id of the store",
            where=str(student),
            do="Name the arrays by the utterances' ids, percent-encoded as in URLs.",
        )
    picked = list(dict.fromkeys(ids))
    compared = compare_student(store, output, picked)
    shown = tuple(dict.fromkeys([*options.ids, *(one.id for one in compared)]))[: _most(options)]
    report = _gathered(store, options, picked, shown)
    report.student, report.compared = output, compared
    name = visible(_short(report.summary))
    lead = "A student's posteriors beside the targets that it learns from."
    return drawn_page(report, f"student of {name} · logitstore", ["Student of ", foreign(name)], lead)


def _most(options: ReportOptions) -> int:
    return max(options.utterances, len(options.ids))


def _short(summary: StoreSummary) -> str:
    """Return the last part of a store's location."""
    return summary.store.rstrip("/").rpartition("/")[2] or str(summary.teacher["name"])


def _require_ids(store: Store, options: ReportOptions) -> None:
    """Raise ``MissingUtterance`` unless a store holds the ids that were asked for."""
    if missing := [i for i in options.ids if i not in store]:
        raise MissingUtterance(f"no utterance {missing[0]!r}", where=str(store.place))


def gather(store: Store, options: ReportOptions) -> Report:
    """Read a store: its summary, a sample of its utterances, the worst of them."""
    _require_ids(store, options)
    ids = list(store)
    measured = measure(store, sampled(ids, options.sample, options.seed))
    return _gathered(store, options, measured, chosen(measured, options, ids))


def _gathered(
    store: Store, options: ReportOptions, measured: Measurements | Sequence[str], shown: tuple[str, ...]
) -> Report:
    """Return a report of some utterances, measured or to be measured."""
    _require_ids(store, options)
    return Report(
        store=store,
        options=options,
        summary=inspect_store(store, sample=min(SUMMARISED, options.sample)),
        measured=measured if isinstance(measured, Measurements) else measure(store, measured),
        shown=shown,
        skipped=list(skipped(store)),
        recordings=recordings(options, shown),
    )


def chosen(measured: Measurements, options: ReportOptions, ids: Sequence[str]) -> tuple[str, ...]:
    """Return the ids of the utterances to draw: those asked for, then the worst by each measure in turn."""
    if len(ids) <= options.utterances and not options.ids:
        return tuple(ids)
    order = dict.fromkeys(options.ids)
    most = max(options.utterances, len(order))
    lists = [[u.id for u, _ in worst(measured.utterances, m.value, most)] for m in MEASURES]
    for rank in zip_longest(*lists):
        for utt_id in rank:
            if utt_id is not None and len(order) < most:
                order[utt_id] = None
    for one in measured.utterances:
        if len(order) < most:
            order[one.id] = None
    return tuple(order)


def skipped(store: Store) -> Iterator[Mapping[str, Any]]:
    """Yield the utterances that could not be dumped."""
    for shard in store.shards:
        yield from store.entry(shard).skipped


def recordings(options: ReportOptions, shown: Sequence[str]) -> dict[str, Utterance]:
    """Return the manifest lines of the utterances that are drawn; commands of a manifest are not run."""
    if options.manifest is None:
        return {}
    wanted = set(shown)
    return {u.id: u for u in options.manifest if u.id in wanted and not u.pipe}


def drawn_page(report: Report, title: str, heading: Any, lead: Any) -> str:
    """Return the page of all sections that apply."""
    components = [registry.load("report_sections", name) for name in registry.names("report_sections")]
    sections: list[Section] = []
    for component in sorted(
        components, key=lambda c: (c.ORDER, c.__name__ if hasattr(c, "__name__") else "")
    ):
        section = component.draw(report)
        if section is not None:
            sections.append(section)
    details = next((s.name for s in sections if s.name in ("utterances", "comparison", "student")), "")
    links = [(details, report.anchor(i), foreign(i, 40)) for i in report.shown]
    return page(visible(title), heading, lead, sections, links)
