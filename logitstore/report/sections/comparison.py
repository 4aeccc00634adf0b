"""The sections of a comparison of two stores: what differs, and the most different utterances as pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...errors import StoreError
from ...pictures.html import Content, Html, foreign, tag
from ...pictures.posteriors import classes_in_play
from ...schema.spec import StreamSpec
from ...store.reader import Store
from ...targets.decode import best_classes
from ...targets.target import Target
from ..base import Report, Section, nats, number, percent
from ..compare import row_divergence, text_of
from ..measure import is_frames
from ..rows import token_runs
from ..tracks import curve, posteriorgram, stack
from ..utterance import IN_PLAY, aligned, decode_track, frame_table, heading, names_of, sound, time_axis

ORDER = 40
LISTED = 300


def draw(report: Report) -> Section | None:
    """Return the differences and the pictures."""
    if report.other is None:
        return None
    body = [
        _fields(report),
        _ids(report),
        compared_table(report, "A", "B"),
        list(_pictures(report, report.other)),
    ]
    count = len(report.compared)
    lead = f"{number(count)} utterances that both stores hold, compared row by row; the most different first."
    return Section("What differs", body, "comparison", lead)


def _fields(report: Report) -> Html:
    """Return the fields of the descriptions that differ."""
    if not report.differences:
        return tag("p", "The descriptions of the two stores are the same.")
    head = tag("thead", tag("tr", [tag("th", title, scope="col") for title in ("field", "A", "B")]))
    lines = [
        tag(
            "tr",
            tag("th", foreign(name, 80), scope="row"),
            [tag("td", tag("code", foreign(str(value), 90))) for value in (a, b)],
        )
        for name, a, b in report.differences
    ]
    return tag("div", tag("table", head, tag("tbody", lines)), class_="wide")


def _ids(report: Report) -> Iterator[Html]:
    """Yield the ids that only one store holds."""
    for name, (count, first) in zip("AB", report.only, strict=True):
        if count:
            listed = [[", " if i else None, foreign(utt_id, 60)] for i, utt_id in enumerate(first)]
            yield tag(
                "p",
                f"{number(count)} utterances are only in {name}: ",
                listed,
                "…" if count > len(first) else "",
            )


def compared_table(report: Report, a: str, b: str) -> Html:
    """Return the table of compared utterances.

    Args:
        report: the report.
        a: name of the first side.
        b: name of the second side.
    """
    streams = list(dict.fromkeys(name for one in report.compared for name in one.kl))
    head = ["id", *(f"{name}: KL({a} ‖ {b})" for name in streams), "largest of a row", "words that differ"]
    head += [f"word error of {a}", f"of {b}", "note"]
    last = len(head) - 1
    titles = [tag("th", t, scope="col", class_="n" if 0 < i < last else None) for i, t in enumerate(head)]
    lines = []
    for one in report.compared[:LISTED]:
        values: list[tuple[float | None, str]] = [
            (value, "–" if value is None else nats(value)) for value in map(one.kl.get, streams)
        ]
        values.append((one.peak, nats(one.peak)))
        values.append((one.edits, "–" if one.edits is None else str(one.edits)))
        values += [(rate, "–" if rate is None else percent(rate)) for rate in one.rates]
        cells = [tag("td", text, class_="n", data_v=None if v is None else f"{v:.6g}") for v, text in values]
        note = tag("td", foreign(one.note, 120))
        lines.append(tag("tr", tag("th", report.link(one.id), scope="row"), cells, note))
    table = tag("table", tag("thead", tag("tr", titles)), tag("tbody", lines), class_="sortable")
    return tag(
        "div", table, class_="wide tall", tabindex="0", role="region", aria_label="Compared utterances"
    )


def _pictures(report: Report, other: Store) -> Iterator[Html]:
    """Yield the pictures of every utterance that is shown."""
    for utt_id in report.shown:
        try:
            yield _drawn(report, other, report.store[utt_id], other[utt_id])
        except StoreError as error:
            text = tag("p", foreign(str(error), 500), class_="warning")
            yield tag("article", tag("h3", foreign(utt_id, 200)), text, id=report.anchor(utt_id))


def _drawn(report: Report, other: Store, a: Target, b: Target) -> Html:
    """Return one utterance of both stores below each other, with the divergence of every frame."""
    axis = time_axis(a)
    theirs = {s.name: s for s in other.spec.streams}
    tracks: list[Content] = [sound(report, a, axis)]
    extra = []
    for spec in report.store.spec.streams:
        if not is_frames(spec) or spec.name not in theirs:
            continue
        tracks += list(_stream(report.store, other, a, b, spec))
        each = row_divergence(a, b, spec) if report.store.tokens == other.tokens else None
        if each is not None:
            extra.append((f"KL of {spec.name}", each))
            tracks.append(divergence_track(f"KL(A ‖ B) of {spec.name}", each))
    first = next((s for s in report.store.spec.streams if is_frames(s)), None)
    return tag(
        "article",
        heading(report, a),
        _texts(report.store, other, a, b),
        stack(axis, tracks, f"Pictures of utterance {report.anchor(a.id).partition('-')[2]} in both stores"),
        None if first is None else frame_table(report.store, a, first, axis, extra),
        id=report.anchor(a.id),
        class_="utterance",
    )


def divergence_track(title: str, each: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Html:
    """Return the track of the divergence of every frame, on a scale of its own."""
    top = max(float(each.max(initial=0.0)), 1e-9)
    name = f"{title} of each frame: mean {nats(float(each.mean()))} nats, {nats(top)} at most"
    return curve(title, each, top, name, kind="loss", scale=(f"{nats(top)} nats", "0"))


def _stream(a: Store, b: Store, ours: Target, theirs: Target, spec: StreamSpec) -> Iterator[Html]:
    """Yield decode and posteriorgram of a stream in both stores, over the same classes where tables agree."""
    shown: list[int] = []
    probabilities = [np.exp(t[spec.name].at(1.0).dense()) for t in (ours, theirs)]
    if a.tokens == b.tokens:
        both = probabilities if len(probabilities[0]) == len(probabilities[1]) else probabilities[:1]
        shown = classes_in_play(np.maximum.reduce(both), spec.blank, IN_PLAY)
    for name, store, target, probability in (
        ("A", a, ours, probabilities[0]),
        ("B", b, theirs, probabilities[1]),
    ):
        blank = store.spec.stream(spec.name).blank
        spikes = token_runs(best_classes(target[spec.name]).tolist(), blank)
        classes = shown or classes_in_play(probability, blank, IN_PLAY)
        names = names_of(store)
        labels = target.labels.tolist() if target.U else None
        yield decode_track(f"{name}: {spec.name} best path", spikes, target.T, names, labels)
        encoding = store.spec.stream(spec.name).encoding
        yield posteriorgram(
            f"{name}: {spec.name} posteriors",
            probability,
            classes,
            names,
            spikes,
            note=foreign(encoding, 60),
            described=f"{name}: posteriorgram",
        )


def _texts(a: Store, b: Store, ours: Target, theirs: Target) -> Html:
    """Return the texts of both stores against the reference, else the second against the first."""
    first, second = text_of(a, ours), text_of(b, theirs)
    if ours.text is not None:
        blocks = [
            aligned(n, ours.text, text) for n, text in (("A", first), ("B", second)) if text is not None
        ]
    else:
        blocks = [
            aligned("A", None, first or ""),
            aligned("B against A", first or "", second or "", "text of A"),
        ]
    return tag("div", blocks, class_="texts")
