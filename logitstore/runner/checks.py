"""Gates before the first shard: what a teacher writes down, beside the references, before hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import NonFinite, NotLogits, TeacherError
from ..tokens.table import TokenTable
from ..tokens.transcript import Transcript, edit_distance, plain, rate, words
from .driver import TeacherDriver, TeacherOutput
from .stored_heads import require_factors, require_lattice_factors

SHOWN = 4  # utterances of the first batch that are printed
ENOUGH_WORDS = 10  # of references: fewer judge no teacher
ENOUGH_UTTERANCES = 3
ENOUGH_SECONDS = 1.0
GIVE_UP = 50  # utterances after which a teacher that could not be judged is let through
RIGHT_IDS = 0.2  # token errors below which the ids are right, whatever the words are
PAIRS = 10  # of repeated tokens, to name a renumbered table


class SkippedChecks:
    """Which gates are not to stop a dump.

    Args:
        reason: why not, in the user's words; empty where every gate stops it.
        note: called with the name of every gate that was passed over.
    """

    def __init__(self, reason: str = "", note: Callable[[str], None] = lambda gate: None) -> None:
        self._reason, self._note = reason, note
        self.messages: list[str] = []

    def refuse(self, gate: str, error: TeacherError) -> None:
        """Raise the error, or note that the gate was skipped."""
        if not self._reason:
            raise error
        self.messages.append(f"gate {gate!r} skipped ({self._reason}): {error.what}")
        self._note(gate)


class TranscriptCheck:
    """Judges the first utterances of a dump by what the teacher itself writes down.

    Args:
        table: the teacher's.
        max_wer: percent of words that may be wrong, upper and lower case and punctuation aside.
        skips: gates that are passed over.
    """

    def __init__(self, table: TokenTable, max_wer: float, skips: SkippedChecks) -> None:
        self._table, self._max, self._skips = table, max_wer, skips
        self._seen: list[tuple[TeacherOutput, Mapping[str, Transcript]]] = []
        self.done = False

    def add(self, transcribed: Sequence[tuple[TeacherOutput, Mapping[str, Transcript]]]) -> None:
        """Add a batch; once there is enough of it, judge. Raises ``TeacherError``."""
        if self.done:
            return
        # An utterance that holds NaN is named by the encoder, and judges nobody.
        self._seen.extend((s, h) for s, h in transcribed if not any(t.broken for t in h.values()))
        if not self._seen:
            return
        references = [s.loaded.utt.text for s, _ in self._seen if s.loaded.utt.text]
        enough = sum(len(words(r)) for r in references) >= ENOUGH_WORDS or not references
        if len(self._seen) < ENOUGH_UTTERANCES or not enough:
            self.done = len(self._seen) >= GIVE_UP
            return
        for stream in self._seen[0][1]:
            self._require_speech(stream)
            self._require_variety(stream)
            self._require_words(stream)
        self.done, self._seen = True, []

    def _require_speech(self, stream: str) -> None:
        judged = [(s, h[stream]) for s, h in self._seen if s.loaded.utt.text != ""]
        if sum(s.loaded.seconds for s, _ in judged) < ENOUGH_SECONDS or any(h.said for _, h in judged):
            return
        self._skips.refuse(
            "all blank",
            TeacherError(
                f"the {stream} branch is all blank: it writes nothing for any of {len(judged)} utterances",
                why="A student would learn to be silent.",
                do="Check the weights, the features and the blank's id; --skip-checks REASON if it is right.",
            ),
        )

    def _require_variety(self, stream: str) -> None:
        texts = {h[stream].said for _, h in self._seen}
        meant = {s.loaded.utt.text or round(s.loaded.seconds, 1) for s, _ in self._seen}
        if len(texts) > 1 or len(meant) == 1 or not next(iter(texts)):
            return
        text = self._seen[0][1][stream].text
        self._skips.refuse(
            "constant",
            TeacherError(
                f"the {stream} branch is constant: it writes {text!r} for all {len(self._seen)} utterances",
                why="Whatever is said, a student would learn to say this.",
                do="Check the weights and the features; --skip-checks REASON if it is right.",
            ),
        )

    def _require_words(self, stream: str) -> None:
        errors, length = self._tally(stream)
        if not length or 100 * errors / length <= self._max:
            return
        self._skips.refuse(
            "max-wer",
            TeacherError(
                f"{errors} errors in {length} words of the first utterances: a word error rate of "
                f"{100 * errors / length:.0f} %, more than {self._max:g} %",
                where=f"greedy decode of {stream}",
                why=self._suspect(stream),
                do="Compare the lines above; raise --max-wer, or --skip-checks REASON if it is right.",
            ),
        )

    def _tally(self, stream: str) -> tuple[int, int]:
        errors = length = 0
        for output, transcripts in self._seen:
            if output.loaded.utt.text:
                reference = words(plain(output.loaded.utt.text))
                errors += edit_distance(reference, words(plain(transcripts[stream].text)))
                length += len(reference)
        return errors, length

    def _suspect(self, stream: str) -> str:
        """What such a teacher's trouble looks like, where it looks like something known."""
        pairs = [(h[stream].reference or (), h[stream].tokens) for _, h in self._seen]
        counts = [h[stream].labels or (0, 0) for _, h in self._seen]
        wrong, of = sum(c[0] for c in counts), sum(c[1] for c in counts)
        if of and wrong <= RIGHT_IDS * of:
            return RETITLED
        return renumbered(pairs, self._table) or other_units(self._seen, stream) or UNKNOWN


RETITLED = (
    "It says the reference's own token ids, and the table gives them other texts: the table was re-numbered "
    "after the model was trained (a reduced or re-sorted dictionary)."
)
UNKNOWN = "Wrong weights, another token table, other features or another language look like this."


def renumbered(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], table: TokenTable) -> str:
    """A sentence if one numbering of the tokens explains the other; nothing otherwise.

    Utterances of as many tokens as their references are compared place by place.
    """
    seen: dict[int, Counter[int]] = {}
    for reference, tokens in pairs:
        if len(reference) == len(tokens):
            for r, h in zip(reference, tokens, strict=True):
                seen.setdefault(h, Counter())[r] += 1
    often = {h: c for h, c in seen.items() if c.total() > 1}
    total = sum(c.total() for c in often.values())
    best = {h: c.most_common(1)[0] for h, c in often.items()}
    if total < PAIRS or sum(n for _, n in best.values()) < 0.8 * total:
        return ""
    moved = [(h, r) for h, (r, _) in best.items() if h != r]
    if len(moved) < len(best) / 2:
        return ""
    h, r = moved[0]
    return (
        "It says the right tokens under other numbers: where the reference has "
        f"{table[r]!r} ({r}) it says {table[h]!r} ({h}), every time. The token table was re-numbered "
        "after the model was trained (a reduced or re-sorted dictionary): give the one it was trained with."
    )


def other_units(seen: Sequence[tuple[TeacherOutput, Mapping[str, Transcript]]], stream: str) -> str:
    """A sentence if the teacher says about a token a character, where the table holds longer pieces."""
    characters = tokens = labels = 0
    for output, transcripts in seen:
        reference = transcripts[stream].reference
        if output.loaded.utt.text and reference is not None:
            characters += len(output.loaded.utt.text)
            tokens += len(transcripts[stream].tokens)
            labels += len(reference)
    if not labels or tokens < 1.5 * labels or not 0.7 * characters < tokens < 1.3 * characters:
        return ""
    return (
        f"It says {tokens} tokens where the references are {characters} characters or {labels} of the "
        "table's tokens: these are the weights of a character model under another vocabulary."
    )


def lines(transcribed: Sequence[tuple[TeacherOutput, Mapping[str, Transcript]]]) -> list[str]:
    """The first utterances beside their references, and each branch's error rates over the batch."""
    found = []
    for output, transcripts in transcribed[:SHOWN]:
        text = output.loaded.utt.text
        found.append(f"{output.loaded.utt.id}")
        found.append(f"  reference  {'-' if text is None else text}")
        for stream, transcript in transcripts.items():
            found.append(f"  {stream:<9}  {transcript.text}")
    for stream in transcribed[0][1] if transcribed else ():
        found_here = [h[stream] for _, h in transcribed]
        parts = []
        for unit, errors in (
            ("word", [t.words for t in found_here]),
            ("token", [t.labels for t in found_here]),
        ):
            known = [e for e in errors if e is not None]
            if known:
                wrong, of = sum(e for e, _ in known), sum(n for _, n in known)
                parts.append(f"{wrong} of {of} {unit}s wrong ({100 * rate(wrong, of):.1f} %)")
        found.append(f"greedy {stream}, {len(found_here)} utterances: {'; '.join(parts) or 'no reference'}")
    return found


ALREADY_NORMALISED = 1e-3  # nats: |log Σ exp| of a row of log-probabilities


SAME_DISTRIBUTION = 1e-3


PADDING_LEAK = 1e-2


UNIFORM = 1e-3  # nats between the best and the worst class


CONSTANT = 1e-5  # in probability, over all frames of a batch


ENOUGH_FRAMES = 10


@dataclass(frozen=True)
class SelfCheck:
    """What the first batch showed: one sentence each."""

    findings: tuple[str, ...]


def self_check(
    driver: TeacherDriver, outputs: Sequence[TeacherOutput], skips: SkippedChecks | None = None
) -> SelfCheck:
    """Prove on what a first batch gave that what is tapped is what the model means.

    * no branch is broken: NaN throughout, uniform, or constant whatever it hears (``skips`` may let it pass);
      nor is a layer, but that its numbers may be anything;
    * rows are logits, not log-probabilities already, and not all the same;
    * log_softmax of them is what the model itself says, where it says anything (``log_probs``);
    * an utterance alone gives what it gives in a padded batch.

    Raises ``NotLogits``, ``NonFinite`` or ``TeacherError`` naming the utterance and the difference.
    """
    outputs = driver.one_forward(outputs)
    found: list[str] = []
    if driver.was_training:
        found.append("the model came in training mode and was put to eval")
    for stream in driver.streams:
        if not driver.kinds[stream].axes:
            continue
        _require_alive(driver, outputs, stream, skips or SkippedChecks())
        head = driver.described.get(stream)
        normalised = head is not None and head.normalised
        if normalised:
            found.append(f"the {stream} branch has no logits tensor (HAT): its log-probabilities are stored")
        for item in outputs if driver.kinds[stream].classes and not normalised else ():
            rows = _rows(driver, item, stream)
            if not len(rows) or not bool(rows.isfinite().all()):
                continue  # the encoder names these, utterance by utterance
            require_logits(rows, stream, item.loaded.utt.id)
    for stream in driver.heads:
        if stream == "rnnt":
            found.append(require_lattice_factors(driver, outputs))
        else:
            found.append(require_factors(driver, outputs, stream))
    if finding := _same_as_model(driver, outputs):
        found.append(finding)
    if len(outputs) > 1 and any(kind.axes for kind in driver.kinds.values()):
        found.append(_alone_as_together(driver, outputs))
    return SelfCheck(tuple(found))


def _rows(driver: TeacherDriver, item: TeacherOutput, stream: str) -> torch.Tensor:
    """(N, V) or (T, D) float32 rows of one utterance: all of them, or the lattice's first slice."""
    if stream == "rnnt":
        piece = next(driver.lattice(item), None)
        return torch.zeros(0, 1) if piece is None else piece.reshape(-1, piece.shape[-1]).float()
    if stream in item.rows:
        return item.rows[stream].float()
    return driver.decoded(item, stream)[0].float()


def require_logits(rows: torch.Tensor, stream: str, where: str) -> None:
    """Raise ``NotLogits`` for (N, V) rows that are log-probabilities already, or the same everywhere."""
    off = float(rows.logsumexp(-1).abs().max())
    if off < ALREADY_NORMALISED:
        raise NotLogits(
            f"the {stream} tap gives log-probabilities, not logits: |log Σ exp| ≤ {off:.1e} on every row",
            where=where,
            why="The log-normaliser is lost there, and a softmax may already be baked in.",
            do="Tap the Linear before the LogSoftmax (in Sequential(Dropout, Linear, LogSoftmax) it is .1).",
        )


def _require_alive(
    driver: TeacherDriver, outputs: Sequence[TeacherOutput], stream: str, skips: SkippedChecks
) -> None:
    """Refuse a branch that says nothing about what it hears, in the word for how it does so.

    A lattice is looked at along its frames before the first label, and a decoder at its first token: there
    only the audio can change it.
    """
    classes = driver.kinds[stream].classes
    frames, finite, spread, change = 0, False, 0.0, 0.0
    first: torch.Tensor | None = None
    for item in outputs:
        for rows in _by_frame(driver, item, stream):
            good = rows[rows.isfinite().all(-1)]
            frames += len(rows)
            if len(good):
                finite = True
                low, high = good.aminmax(dim=-1)
                spread = max(spread, float((high - low).max()))
                values = good.softmax(-1) if classes else good
                first = values[0] if first is None else first
                change = max(change, float((values - first).abs().max()))
    if not frames:
        return
    if not finite:
        error: TeacherError = NonFinite(
            f"the {stream} branch gives NaN or infinity on every one of {frames} frames",
            why="A student would learn nothing but NaN from it.",
            do="Check the weights, and whether the model needs full precision (NaN from float16 overflow).",
        )
        skips.refuse("NaN", error)
    elif classes and spread < UNIFORM:
        error = NotLogits(
            f"the {stream} branch is uniform: the same logit for every class, within {spread:.1e}",
            why="This model knows nothing: weights that were never loaded look like this.",
            do="Check that the checkpoint's names are the model's (load_state_dict(strict=True)).",
        )
        skips.refuse("uniform", error)
    elif change < CONSTANT and frames >= ENOUGH_FRAMES:
        error = TeacherError(
            f"the {stream} branch is constant: all {frames} frames give the same probabilities, "
            f"within {change:.1e}",
            why="It does not hear the audio: a student would learn one row by heart.",
            do="Check the features and the weights; --skip-checks REASON if it is right.",
        )
        skips.refuse("constant", error)


def _by_frame(driver: TeacherDriver, item: TeacherOutput, stream: str) -> Iterator[torch.Tensor]:
    """(N, V) float32 rows, one a frame; a lattice's before its first label, a decoder's first alone."""
    if stream in item.rows:
        yield item.rows[stream].float()
        return
    unlabelled = replace(item, labels={})
    if stream != "rnnt":
        yield driver.decoded(unlabelled, stream)[0][:1].float()
        return
    for piece in driver.lattice(unlabelled):
        yield piece.reshape(-1, piece.shape[-1]).float()


def _same_as_model(driver: TeacherDriver, outputs: Sequence[TeacherOutput]) -> str:
    says = getattr(driver.teacher, "log_probs", None)
    if says is None or "ctc" not in driver.streams:
        return ""
    with torch.inference_mode():
        own = says(outputs[0].batch_output).get("ctc")
    if own is None:
        return ""
    worst = 0.0
    for item in outputs:
        gap = (item.rows["ctc"].float().log_softmax(-1) - own[item.b, : item.T].float()).exp().sub(1)
        gap = gap * own[item.b, : item.T].float().exp()  # difference in probability
        worst = max(worst, float(gap.abs().max()) if gap.numel() else 0.0)
        if worst > SAME_DISTRIBUTION:
            raise TeacherError(
                f"softmax of the tapped logits differs from what the model itself says by {worst:.3g}",
                where=item.loaded.utt.id,
                why="The tapped module is not the one the model decides with (or dropout is live).",
                do="Tap the Linear that feeds the model's own log-softmax.",
            )
    return f"softmax of the tapped logits is the model's own, within {worst:.1e} in probability"


def _alone_as_together(driver: TeacherDriver, outputs: Sequence[TeacherOutput]) -> str:
    """The shortest utterance has the most padding: it shows a leak first."""
    item = min(outputs, key=lambda s: s.T)
    alone = driver.run([item.loaded])[0]
    where = item.loaded.utt.id
    if alone.T != item.T:
        raise TeacherError(f"{item.T} frames in a batch, {alone.T} alone", where=where)
    worst = 0.0
    for stream, kind in driver.kinds.items():
        if not kind.axes:
            continue
        a, b = _rows(driver, alone, stream), _rows(driver, item, stream)
        if kind.classes:
            a, b = a.softmax(-1), b.softmax(-1)
        elif bool(a.isfinite().all() & b.isfinite().all()):  # as shares of the largest number there is
            a, b = (x / b.abs().max().clamp(min=1e-30) for x in (a, b))
        else:
            continue  # the encoder names it
        worst = max(worst, float((a - b).abs().max()) if a.numel() else 0.0)
    if worst > PADDING_LEAK:
        what = "probabilities" if any(k.classes for k in driver.kinds.values()) else "numbers"
        raise TeacherError(
            f"alone and in a padded batch its {what} differ by {worst:.3g}",
            where=where,
            why="Padding leaks into valid frames (or dropout is live): targets would depend on the batch.",
            do="Mask the padding in forward(), or dump with --batch-seconds 0 (one utterance at a time).",
        )
    return f"an utterance alone and in a padded batch agree within {worst:.1e} in probability"
