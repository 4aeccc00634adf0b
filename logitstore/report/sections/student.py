"""The section of a student: its posteriors beside its targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...errors import LogitStoreError
from ...pictures.html import Content, Html, foreign, tag
from ...pictures.posteriors import classes_in_play
from ...targets.decode import best_classes, greedy_ctc
from ...targets.target import Target
from ..base import Report, Section, nats, number
from ..rows import kl, token_runs
from ..student import StudentOutput, frame_stream, target_of
from ..tracks import posteriorgram, stack
from ..utterance import IN_PLAY, aligned, decode_track, frame_table, heading, names_of, sound, time_axis
from .comparison import compared_table, divergence_track

ORDER = 40


def draw(report: Report) -> Section | None:
    """Return the table and the pictures of the utterances that the student has an output for."""
    if report.student is None:
        return None
    known = [one for one in report.compared if one.kl]
    mean = float(np.mean([max(one.kl.values()) for one in known])) if known else 0.0
    lead = (
        f"KL(target ‖ student) of {number(len(report.compared))} utterances: {nats(mean)} nats a frame in the mean; "
        "targets at the student's own frames, the furthest student first."
    )
    body = [compared_table(report, "target", "student"), list(_pictures(report, report.student))]
    return Section("Student", body, "student", lead)


def _pictures(report: Report, student: StudentOutput) -> Iterator[Html]:
    for utt_id in report.shown:
        try:
            yield _drawn(report, student, report.store[utt_id])
        except LogitStoreError as error:
            text = tag("p", foreign(str(error), 500), class_="warning")
            yield tag("article", tag("h3", foreign(utt_id, 200)), text, id=report.anchor(utt_id))


def _drawn(report: Report, student: StudentOutput, target: Target) -> Html:
    """Return the target and the student's posteriors below each other, with the divergence of every frame."""
    store = report.store
    spec, names, axis = frame_stream(store), names_of(store), time_axis(target)
    theirs = student.log_probs(target.id, spec.classes)
    ours = target_of(target, spec.name, len(theirs))
    each = kl(ours, theirs)
    shown = classes_in_play(np.maximum(np.exp(ours), np.exp(theirs)), spec.blank, IN_PLAY)
    labels = target.labels.tolist() if target.U else greedy_ctc(best_classes(target[spec.name]), spec.blank)
    tracks: list[Content] = [sound(report, target, axis)]
    for name, logp in (("Target", ours), ("Student", theirs)):
        spikes = token_runs(logp.argmax(axis=1).tolist(), spec.blank)
        tracks.append(decode_track(f"{name}: best path", spikes, len(logp), names, labels))
        note = f"{len(logp)} student frames for {target.T} of the teacher" if name == "Target" else None
        tracks.append(
            posteriorgram(
                f"{name}: posteriors", np.exp(logp), shown, names, spikes, note=note, described=name
            )
        )
    tracks.append(divergence_track("KL(target ‖ student)", each))
    text = store.tokens.text(greedy_ctc(theirs.argmax(axis=1), spec.blank))
    teacher = store.tokens.text(greedy_ctc(best_classes(target[spec.name]), spec.blank))
    reference = target.text if target.text is not None else teacher
    against = "reference" if target.text is not None else "teacher"
    blocks = [aligned("teacher", reference, teacher, against), aligned("student", reference, text, against)]
    return tag(
        "article",
        heading(report, target, f"KL {nats(float(each.mean()))} nats a frame"),
        tag("div", blocks, class_="texts"),
        stack(axis, tracks, f"Target and student of utterance {report.anchor(target.id).partition('-')[2]}"),
        frame_table(store, target, spec, axis),
        id=report.anchor(target.id),
        class_="utterance",
    )
