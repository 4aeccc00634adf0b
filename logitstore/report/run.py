"""Making of a report: what is read, which utterances are drawn, which sections apply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from .. import registry
from ..corpus.manifest import Utterance
from ..errors import MissingUtterance
from ..pictures.html import foreign, visible
from ..store.inspect import inspect_store
from ..store.reader import Store, as_store
from .base import Report, ReportOptions, Section, number
from .measure import Measurements, measure, sampled, worst
from .page import page
from .sections.worst import MEASURES

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


def gather(store: Store, options: ReportOptions) -> Report:
    """Read a store: its summary, a sample of its utterances, the worst of them."""
    if missing := [i for i in options.ids if i not in store]:
        raise MissingUtterance(f"no utterance {missing[0]!r}", where=str(store.place))
    ids = list(store)
    summary = inspect_store(store, sample=min(SUMMARISED, options.sample))
    measured = measure(store, sampled(ids, options.sample, options.seed))
    shown = chosen(measured, options, ids)
    return Report(
        store=store,
        options=options,
        summary=summary,
        measured=measured,
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
