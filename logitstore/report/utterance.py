"""One utterance of a report: its texts, then tracks on one time axis, then its frames as a table."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.audio import load_audio
from ..corpus.manifest import Utterance
from ..errors import LogitStoreError
from ..pictures.html import Content, Html, foreign, tag
from ..pictures.posteriors import classes_in_play
from ..schema.lattice import Form
from ..schema.spec import StreamSpec
from ..store.reader import Store
from ..targets.decode import best_classes, decode
from ..targets.frames import Method
from ..targets.resample import resample_stream
from ..targets.target import Target
from ..tokens.transcript import edit_distance, words
from .alignment import align, edits
from .base import Report, nats, percent
from .measure import LARGEST, Decodes, frames_off, is_frames, losses_of, seconds_of
from .rows import RowStatistics, lattice_of, served_lattice, statistics, token_runs
from .spectrogram import LEVELS, spectrogram
from .tracks import (
    PlacedToken,
    TimeAxis,
    curve,
    heat,
    lattice_track,
    posteriorgram,
    stack,
    tokens,
    track,
)

IN_PLAY = 30  # classes of a posteriorgram
FOLDED = 0.99  # blank probability from which frames in a row are one line of the table
SHOWN_WORDS = 400
LONGEST_WORD = 60  # characters of a word that are shown


def drawn(report: Report, utt_id: str) -> Html:
    """Return everything about one utterance.

    Raises:
        StoreError: its record cannot be read.
    """
    store = report.store
    target = store[utt_id]
    decodes = Decodes(store, target)
    parts: list[Content] = [
        heading(report, target),
        texts(target.text, decodes.transcripts()),
        player(report, utt_id),
    ]
    axis = time_axis(target)
    frame_streams = [s for s in store.spec.streams if is_frames(s)]
    tracks: list[Content] = [sound(report, target, axis)]
    for spec in frame_streams:
        tracks += list(frame_tracks(report, target, spec))
    for spec in store.spec.streams:
        if spec.kind == "rnnt" and not is_frames(spec):
            tracks.append(_lattice(store, target, spec))
            tracks.append(_lattice_at_rate(report, target, spec))
        elif spec.kind == "hidden":
            tracks.append(_layer(target, spec))
    parts.append(stack(axis, tracks, f"Pictures of utterance {report.anchor(utt_id).partition('-')[2]}"))
    parts += [frame_table(store, target, spec, axis) for spec in frame_streams[:1]]
    parts += [_labels(store, target, spec) for spec in store.spec.streams if spec.kind == "seq2seq"]
    return tag("article", parts, id=report.anchor(utt_id), class_="utterance")


def _layer(target: Target, spec: StreamSpec) -> Html:
    """Return the track of a layer: the root mean square of each frame's numbers."""
    rms = np.sqrt(np.square(target.vectors(spec.name), dtype=np.float64).mean(axis=1))
    name = f"Root mean square of the {spec.width} numbers of each frame of {spec.name}"
    return curve(f"{spec.name} root mean square", rms, float(rms.max(initial=1e-9)), name)


def _labels(store: Store, target: Target, spec: StreamSpec) -> list[Html]:
    """Return the pictures of an attention decoder, over the labels that it was given, and its rows as a table."""
    rows = target[spec.name]
    if not len(rows):
        return []
    names, axis = names_of(store), TimeAxis(len(rows), None)
    probability = np.exp(rows.at(1.0).dense())
    best = [(u, int(c)) for u, c in enumerate(best_classes(rows))]
    labels = target.driven.get(spec.name, target.labels).tolist()
    shown = classes_in_play(probability, spec.blank, IN_PLAY)
    of_rows = statistics(rows, spec.blank)
    top = max(0.5, float(of_rows.entropy.max()))
    note = "label by label, under teacher forcing"
    tracks = [
        decode_track(f"{spec.name} decode", best, len(rows), names, labels),
        posteriorgram(f"{spec.name} posteriors", probability, shown, names, best, note=note),
        curve(
            "entropy", of_rows.entropy, top, "Entropy of each label in nats", scale=(f"{top:.1f} nats", "0")
        ),
    ]
    pictures = stack(axis, tracks, f"Pictures of {spec.name} over the labels")
    return [pictures, frame_table(store, target, spec, axis)]


def heading(report: Report, target: Target, *more: Content) -> Html:
    """Return the id, lengths and losses of an utterance."""
    seconds, off = seconds_of(target), frames_off(target)
    facts: list[Content] = [] if seconds is None else [f"{seconds:.2f} s"]
    facts.append(f"{target.T} frames")
    if target.U:
        facts.append(f"{target.U} labels")
    if off is not None and abs(off) > 1.5:
        facts.append(f"{off:+.1f} frames against the audio")
    for stream, (mean, most) in losses_of(target).items():
        facts.append([foreign(stream), f" loses {nats(mean)} nats a row, {nats(most)} at most"])
    listed = tag("ul", [tag("li", fact) for fact in [*facts, *more]], class_="facts")
    return tag("header", tag("h3", foreign(target.id, 200)), listed)


def time_axis(target: Target) -> TimeAxis:
    """Return the time axis of an utterance; seconds a frame from its length where the teacher's are not known."""
    seconds = seconds_of(target)
    if target.clock is not None:
        return TimeAxis(target.T, float(target.clock.shift))
    return TimeAxis(target.T, seconds / target.T if seconds else None)


# --- texts


def texts(reference: str | None, transcripts: dict[str, str], against: str = "reference") -> Html | None:
    """Return the transcript of every stream, aligned with the reference, errors marked.

    Args:
        reference: reference text; None where there is none.
        transcripts: text by stream.
        against: name of the reference.
    """
    if not transcripts:
        if not reference:
            return None
        return tag("p", foreign(reference), class_="plain")
    blocks = [aligned(name, reference, text, against) for name, text in transcripts.items()]
    return tag("div", blocks, class_="texts")


def aligned(name: str, reference: str | None, text: str, against: str = "reference") -> Html:
    """Return one transcript, word by word over the words of the reference that it differs from."""
    if reference is None:
        return tag("div", tag("h4", foreign(name)), tag("p", foreign(text) if text else "–", class_="words"))
    said = words(reference)
    pairs = align(said, words(text))
    wrong = edits(pairs)
    rate = f"{wrong} of {len(said)} words" if wrong else "no errors"
    line = [_pair(a, b) for a, b in pairs[:SHOWN_WORDS]]
    rest = tag("span", f"and {len(pairs) - SHOWN_WORDS} more words") if len(pairs) > SHOWN_WORDS else None
    count = tag("span", rate, class_="wrong" if wrong else "right", title=f"edits against the {against}")
    return tag("div", tag("h4", foreign(name), " ", count), tag("p", line, rest, class_="words"))


def _pair(a: str | None, b: str | None) -> Html:
    """Return one word of an alignment; an error has the reference's word below it."""
    if a == b:
        return tag("span", foreign(b or "", LONGEST_WORD), " ")
    if a is None:
        return tag("span", tag("ins", foreign(b or "", LONGEST_WORD), title="inserted"), " ")
    if b is None:
        return tag("span", tag("del", foreign(a, LONGEST_WORD), title="missing"), " ")
    return tag(
        "span",
        tag("b", foreign(b, LONGEST_WORD)),
        tag("s", foreign(a, LONGEST_WORD)),
        " ",
        class_="sub",
        title="in place of",
    )


# --- sound


def sound(report: Report, target: Target, axis: TimeAxis) -> Html | None:
    """Return the track of the spectrogram; None where the recording is not found."""
    if target.id not in report.recordings or axis.seconds is None:
        return None
    rate = int(report.summary.teacher["sample_rate"])
    if not 1000 <= rate <= 384_000:
        return None
    try:
        audio = load_audio(report.recordings[target.id], rate)
    except (LogitStoreError, OSError) as error:
        return tag("p", "The recording cannot be read: ", foreign(str(error), 200), class_="quiet")
    values = spectrogram(audio, rate, axis.seconds)
    name = f"Spectrogram of {len(audio) / rate:.2f} s of audio, 30 Hz to {min(rate / 2, 8000) / 1000:g} kHz"
    plot = heat(values, "sound", name, levels=LEVELS)
    top = f"{min(rate / 2, 8000) / 1000:g} kHz"
    return track("Sound", plot, labels=[top, "mel"], note="log-mel energy", kind="sound")


def player(report: Report, utt_id: str) -> Html | None:
    """Return an audio player that contains the recording, for the first utterances of a page."""
    if utt_id not in report.shown[: report.options.audio] or utt_id not in report.recordings:
        return None
    try:
        return _player(report.recordings[utt_id])
    except (LogitStoreError, OSError, RuntimeError):
        return None


def _player(recording: Utterance) -> Html:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, load_audio(recording, 16000), 16000, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(file.getvalue()).decode()
    label = "Recording of this utterance"
    return tag("audio", controls=True, preload="none", src=f"data:audio/flac;base64,{data}", aria_label=label)


# --- frames


def frame_tracks(report: Report, target: Target, spec: StreamSpec) -> Iterator[Html]:
    """Yield the tracks of a stream of frames: decode, posteriorgram, blank, entropy, mass left out; then the
    target at the student's rate with a decode of its own."""
    store, rows = report.store, target[spec.name]
    probability = np.exp(rows.at(1.0).dense())
    of_rows = statistics(rows, spec.blank)
    best = best_classes(rows)
    spikes = token_runs(best.tolist(), spec.blank)
    shown = classes_in_play(probability, spec.blank, IN_PLAY)
    names = names_of(store)
    labels = target.labels.tolist() if target.U else None
    if spec.kind == "ctc":
        yield decode_track(f"{spec.name} best path", spikes, target.T, names, labels)
    else:
        spikes = []  # means over label positions have no best path
    yield posteriorgram(
        f"{spec.name} posteriors", probability, shown, names, spikes, note="square root of the probability"
    )
    yield from curves(of_rows, spec)
    if report.options.rate is not None and spec.kind == "ctc":
        yield from _served(report, target, spec, report.options.rate, shown, [c for _, c in spikes])


def names_of(store: Store) -> Callable[[int], str]:
    """Return a function from a class to its token."""
    table = store.tokens.tokens
    return lambda index: table[index]


def decode_track(
    title: str,
    spikes: Sequence[tuple[int, int]],
    frames: int,
    names: Callable[[int], str],
    reference: Sequence[int] | None,
    *,
    note: str = "",
) -> Html:
    """Return the track of a decode, compared with reference tokens where there are some."""
    if reference is None:
        placed = [PlacedToken(t, names(c)) for t, c in spikes]
        return tokens(title, placed, frames, note=note or f"{len(spikes)} tokens")
    placed, number, last = [], 0, -0.5
    pairs = align(list(reference), [c for _, c in spikes])
    for wanted, found in pairs:
        if found is None:
            following = spikes[number][0] if number < len(spikes) else frames
            at = (last + following) / 2
            placed.append(PlacedToken(at, names(wanted if wanted is not None else 0), "del"))
            continue
        t = spikes[number][0]
        number, last = number + 1, t
        if wanted is None:
            placed.append(PlacedToken(t, names(found), "ins"))
        elif wanted != found:
            placed.append(PlacedToken(t, names(found), "sub", names(wanted)))
        else:
            placed.append(PlacedToken(t, names(found)))
    count = edits(pairs)
    said = f"{len(spikes)} tokens, " + (f"{count} errors" if count != 1 else "1 error")
    return tokens(title, placed, frames, note=f"{said}; {note}" if note else said)


def curves(of_rows: RowStatistics, spec: StreamSpec) -> Iterator[Html]:
    """Yield the curves of blank, entropy and mass left out."""
    blank, entropy, tail = of_rows.blank, of_rows.entropy, of_rows.tails[:, 0]
    share = percent(float((blank > 0.5).mean()))
    yield curve("blank", blank, 1.0, f"Probability of the blank in each frame, above one half in {share}")
    top = max(0.5, float(entropy.max()))
    mean = nats(float(entropy.mean()))
    yield curve(
        "entropy", entropy, top, f"Entropy of each frame in nats, mean {mean}", scale=(f"{top:.1f} nats", "0")
    )
    if (tail > 1e-9).any():
        logs = np.log10(np.maximum(tail, 1e-8)) / 8 + 1
        name = f"Mass left out of each frame, from 1e-8 to 1, mean {nats(float(tail.mean()))}"
        yield curve("left out", logs, 1.0, name, kind="loss", scale=("1", "1e-8"))


def _served(
    report: Report,
    target: Target,
    spec: StreamSpec,
    rate: tuple[int, int],
    shown: Sequence[int],
    stored: list[int],
) -> Iterator[Html]:
    """Yield the target at a student's rate: a decode of its own, compared with that of the stored rows."""
    student = -(-target.T * rate[0] // rate[1])
    method = Method.of(spec.name, None)
    try:
        served = resample_stream(target, spec.name, student, method, 1.0)
    except LogitStoreError as error:
        yield tag("p", f"No target at {rate[0]}:{rate[1]}: ", foreign(str(error), 200), class_="quiet")
        return
    logp = served.rows.dense()
    spikes = token_runs(logp.argmax(axis=1).tolist(), spec.blank)
    names = names_of(report.store)
    at = f"{rate[0]}:{rate[1]}"
    yield posteriorgram(
        f"{spec.name} target at {at}",
        np.exp(logp),
        shown,
        names,
        spikes,
        note=f"{student} student frames, {method}",
        described=f"Target at {at}",
    )
    yield decode_track("its decode", spikes, student, names, stored, note="against the stored rows")


def _lattice(store: Store, target: Target, spec: StreamSpec) -> Html | None:
    """Return the track of a lattice; a sentence where it cannot be drawn."""
    lattice = lattice_of(target, spec)
    if lattice is None:
        return tag("p", f"The lattice of {spec.name} is too large to be drawn.", class_="quiet")
    labels = [store.tokens.tokens[i] for i in target.driven.get(spec.name, target.labels)]
    notes = ["occupancy" if not lattice.computed else "occupancy from the stored rows"]
    if lattice.begin is not None:
        notes.append("line: most probable alignment")
    if not lattice.kept.all():
        share = percent(float(lattice.kept.mean()))
        notes.append(f"{share} of the nodes stored")
    return lattice_track(f"{spec.name} lattice", lattice, labels, note="; ".join(notes))


def _lattice_at_rate(report: Report, target: Target, spec: StreamSpec) -> Html | None:
    """Return the lattice at the student's rate; None without a rate, and for forms that are no target there."""
    rate, form = report.options.rate, Form.parse(spec.form)
    small = len(target[spec.name]) * spec.classes <= LARGEST
    if rate is None or form.name in ("path", "sample") or not small:
        return None
    student, method = -(-target.T * rate[0] // rate[1]), Method.of(spec.name, None)
    try:
        served = resample_stream(target, spec.name, student, method, 1.0)
    except LogitStoreError as error:
        return tag("p", f"No lattice at {rate[0]}:{rate[1]}: ", foreign(str(error), 200), class_="quiet")
    lattice, tokens = served_lattice(target, spec, served)
    wrong = edit_distance(decode(target, spec.name, spec.blank), tokens)
    labels = [report.store.tokens.tokens[i] for i in target.driven.get(spec.name, target.labels)]
    errors = "1 error" if wrong == 1 else f"{wrong} errors"
    note = (
        f"{student} student frames, {method}; decode: {len(tokens)} tokens, {errors} against the stored rows"
    )
    return lattice_track(f"{spec.name} target at {rate[0]}:{rate[1]}", lattice, labels, note=note)


def frame_table(
    store: Store,
    target: Target,
    spec: StreamSpec,
    axis: TimeAxis,
    extra: Sequence[tuple[str, NDArray[Any]]] = (),
) -> Html:
    """Return every frame's best classes as a folded table, runs of certain blanks as one line.

    The page's script shows these numbers under the pointer.

    Args:
        store: the store.
        target: the utterance.
        spec: a stream of frames.
        axis: the time axis.
        extra: further (title, (T,) numbers) columns.
    """
    rows = target[spec.name]
    at, of_rows, names = rows.at(1.0), statistics(rows, spec.blank), names_of(store)
    count = min(2, at.logp.shape[1])
    order = np.argsort(-at.logp, axis=1, kind="stable")[:, :count]
    ids = order if at.ids is None else np.take_along_axis(at.ids, order, axis=1)
    best = np.exp(np.take_along_axis(at.logp, order, axis=1))
    place = "frame" if len(rows) == target.T and spec.stream_kind.frames else "label"
    head = [
        place,
        *([] if axis.shift is None else ["seconds"]),
        *("best" if not i else "next" for i in range(count)),
        "entropy",
        "left out",
    ]
    head += [title for title, _ in extra]
    lines = []
    t = 0
    while t < len(rows):
        end = t + 1
        if of_rows.blank[t] >= FOLDED:
            while end < len(rows) and of_rows.blank[end] >= FOLDED:
                end += 1
        cells: list[Content] = [f"{t}" if end == t + 1 else f"{t}–{end - 1}"]
        cells += [] if axis.shift is None else [f"{(t + 0.5) * axis.shift:.2f}"]
        cells += [[foreign(names(int(ids[t, i])), 20), f" {best[t, i]:.3f}"] for i in range(count)]
        cells += [nats(float(of_rows.entropy[t])), nats(float(of_rows.tails[t, 0]))]
        cells += [nats(float(values[t:end].max())) for _, values in extra]
        lines.append(tag("tr", [tag("td", cell) for cell in cells], data_f=t))
        t = end
    titles = tag("thead", tag("tr", [tag("th", title, scope="col") for title in head]))
    table = tag("table", titles, tag("tbody", lines), class_="frames")
    wide = tag("div", table, class_="wide tall")
    return tag("details", tag("summary", f"{place.capitalize()}s of {spec.name} as a table"), wide)
