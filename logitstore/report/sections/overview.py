"""The first section: the store, its teacher, its streams and their sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...pictures.amounts import size
from ...pictures.html import Content, Html, foreign, tag
from ...store.inspect import StoreSummary, StreamSummary
from ..base import Report, Section, nats, number, percent

ORDER = 10


def draw(report: Report) -> Section:
    """Return key figures, the streams as a table, and where the store comes from."""
    rates = [one.wer for one in report.measured.utterances if one.wer is not None]
    body = [*_store(report.summary, rates), _warnings(report), _origin(report.summary)]
    if report.other_summary is None:
        return Section("Overview", body, "overview")
    rates_of_b = [one.rates[1] for one in report.compared if one.rates[1] is not None]
    a = [
        tag("h3", "A: ", tag("code", foreign(report.summary.store, 100))),
        *_store(report.summary, rates),
        _warnings(report),
        _origin(report.summary),
    ]
    b = [
        tag("h3", "B: ", tag("code", foreign(report.other_summary.store, 100))),
        *_store(report.other_summary, rates_of_b),
        _origin(report.other_summary),
    ]
    return Section("Overview", [a, b], "overview")


def _store(s: StoreSummary, rates: Sequence[float]) -> list[Html]:
    """Return the key figures of a store and the table of its streams."""
    return [
        tag("dl", _figures(s, rates), class_="figures"),
        tag("div", _streams(s.streams), class_="wide"),
        *_losses(s.streams),
    ]


def _losses(streams: dict[str, StreamSummary]) -> Iterator[Html]:
    """Yield a sentence for each stream that holds what it loses at other temperatures."""
    for name, stream in streams.items():
        if stream.lost is None or not stream.lost.at:
            continue
        means = [f"{nats(mean)} at τ = {t}" for t, (mean, _, _) in stream.lost.at.items()]
        text: list[Content] = [foreign(name), " loses ", ", ".join(means)]
        if stream.lost.changed is not None:
            text.append(
                f"; the most probable class of {percent(stream.lost.changed)} of the rows is another one"
            )
        yield tag("p", text, ".", class_="quiet")


def _figures(s: StoreSummary, rates: Sequence[float]) -> Iterator[Html]:
    """Yield the key figures of a store; ``rates`` are word error rates of its utterances."""
    yield _figure("utterances", number(s.utterances))
    yield _figure("audio", f"{s.hours:.1f} h" if s.hours >= 1 else f"{60 * s.hours:.1f} min")
    if s.hours:
        yield _figure("per 1\u2009000 h", size((s.bytes - s.bytes_once) / s.hours * 1000))
    yield _figure("bytes a frame", f"{s.bytes_per_frame:.1f}")
    if rates:
        yield _figure("mean word error", percent(float(np.mean(rates))))
    for name, stream in s.streams.items():
        if stream.lost is not None:
            yield _figure(f"{name}: nats lost a row", nats(stream.lost.mean))


def _figure(name: str, value: Content) -> Html:
    return tag("div", tag("dt", name), tag("dd", value))


def _warnings(report: Report) -> Iterator[Html]:
    """Yield what a reader of the page must know before the numbers."""
    s = report.summary
    for check in s.gates:
        text = [
            tag("b", "A check of the teacher was skipped. "),
            foreign(str(check.get("gate", ""))),
            ": ",
            foreign(str(check.get("reason", ""))),
        ]
        yield tag("p", text, class_="warning")
    for change in s.allowed:
        fields = (foreign(str(change.get(key, "")), 80) for key in ("field", "was", "now"))
        name, was, now = fields
        text = [tag("b", "A difference between two dumps was allowed. "), name, ": ", was, " → ", now]
        yield tag("p", text, class_="warning")
    if report.measured.unreadable:
        lines = [
            tag("li", report.link(i), ": ", foreign(why, 300)) for i, why in report.measured.unreadable[:20]
        ]
        count = len(report.measured.unreadable)
        text = [tag("b", f"{count} sampled utterances cannot be read. "), "Run logitstore verify."]
        yield tag("div", tag("p", text), tag("ul", lines), class_="warning")


def _streams(streams: dict[str, StreamSummary]) -> Html:
    """Return the table of the streams."""
    head = ["stream", "rows", "encoding", "bytes a row", "of float16", "entropy", "blank", "top 1", "kept"]
    head += ["nats lost", "lost, p99", "errors"]
    titles = [tag("th", title, scope="col", class_="n" if i > 2 else None) for i, title in enumerate(head)]
    lines = []
    for name, s in streams.items():
        encoding = s.encoding if s.form in ("", "full") else f"{s.encoding}/{s.form}"
        rate = None if s.error_rate is None else f"{percent(s.error_rate)} of {s.error_unit}s"
        cells = [
            _or_dash(s.bytes_per_row, "{:.1f}"),
            _share(s.of_dense_fp16),
            _or_dash(s.entropy, "{:.3f}"),
            _share(s.blank_share),
            _share(s.top1_share),
            _share(s.kept_mass),
            "–" if s.lost is None else nats(s.lost.mean),
            "–" if s.lost is None else nats(s.lost.p99),
            rate or "–",
        ]
        first = [
            tag("th", foreign(name), scope="row"),
            tag("td", s.shape.replace("V", str(s.classes))),
            tag("td", tag("code", foreign(encoding or "–", 60))),
        ]
        lines.append(tag("tr", first, [tag("td", cell, class_="n") for cell in cells]))
    return tag("table", tag("thead", tag("tr", titles)), tag("tbody", lines))


def _or_dash(value: float | None, how: str) -> str:
    return "–" if value is None else how.format(value)


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _origin(s: StoreSummary) -> Html:
    """Return where the store comes from, as a list of terms."""
    return tag("dl", [[tag("dt", term), tag("dd", text)] for term, text in _terms(s)], class_="terms")


def _terms(s: StoreSummary) -> Iterator[tuple[str, Content]]:
    """Yield (term, description)."""
    teacher, tokens = s.teacher, s.tokens
    shards = "shard" if s.shards == 1 else "shards"
    weights = str(teacher["weights"] or "not recorded")
    heads = [
        [", " if i else None, tag("code", foreign(str(h["module"]))), f" ({h['stream']})"]
        for i, h in enumerate(teacher["heads"])
    ]
    milliseconds = 1000 * teacher["frame_shift"] / teacher["sample_rate"]
    yield "Teacher", [foreign(str(teacher["name"])), ", weights ", _digest(weights)]
    yield "Tapped at", heads or "nothing: written by a loop of its own"
    yield (
        "Frames",
        f"{number(s.frames)}, one every {milliseconds:g} ms of audio at {teacher['sample_rate']} Hz",
    )
    yield "Tokens", [f"{tokens['size']}, blank {tokens['blank']}, ", _digest(str(tokens["sha256"]))]
    yield (
        "Files",
        f"{size(s.bytes)} in {number(s.shards)} {shards} ({s.storage}), {size(s.bytes_once)} of it once; "
        f"format {s.format}",
    )
    checks = "none was skipped" if not s.gates else f"{len(s.gates)} skipped, see above"
    yield "Checks", f"of the teacher on its first batch: {checks}"
    yield (
        "Made with",
        [[", " if i else None, foreign(f"{k} {v}", 60)] for i, (k, v) in enumerate(s.made_with.items())],
    )
    yield "Store", tag("code", foreign(s.store, 200))


def _digest(text: str) -> Html:
    """Return the beginning of a digest; the whole of it under the pointer."""
    return tag("code", foreign(text, 20), title=text)
