"""Checks before the first shard: transcripts against references, tapped logits against the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import NonFinite, NotLogits, TeacherError
from ..teachers.protocol import Teacher
from ..tokens.table import TokenTable
from ..tokens.tokenise import Tokeniser
from ..tokens.transcript import Transcript, edit_distance, plain, rate, words
from .driver import TeacherDriver, TeacherOutput
from .stored_heads import require_factors, require_lattice_factors

Transcribed = tuple[TeacherOutput, Mapping[str, Transcript]]  # an utterance and its transcripts by stream

# The check of transcripts
SHOWN = 4  # utterances of the first batch that are printed
ENOUGH_WORDS = 10  # words of references without which transcripts are not judged
ENOUGH_UTTERANCES = 3
ENOUGH_SECONDS = 1.0
GIVE_UP = 50  # utterances after which a dump goes on although its transcripts could not be judged
RIGHT_IDS = 0.2  # token error rate below which the ids are right, whatever the words are
ALIGNED_TOKENS = 10  # tokens of repeated ids that are needed to recognise a re-numbered table
CONSISTENT = 0.8  # share of them that one renumbering must explain

# The self-check
ALREADY_NORMALISED = 1e-3  # nats: |log Σ exp| of a row of log-probabilities
SAME_DISTRIBUTION = 1e-3  # probability by which tapped logits may differ from the model's own output
SHORTEST_FRAMES = 8  # teacher frames of the shortest input that the padding check tries
PADDING_LEAK = 1e-2  # probability by which an utterance alone may differ from the same one in a batch
UNIFORM = 1e-3  # logit between the best and the worst class of a row
CONSTANT = 1e-5  # probability by which the rows of a batch differ
ENOUGH_FRAMES = 10

SKIP = "Skip the check with a reason (skip_checks, --skip-checks REASON) if it is right."
RETITLED = (
    "The teacher gives the reference's own token ids, and the table gives these ids other texts: the table "
    "was re-numbered after the model was trained (a reduced or re-sorted dictionary)."
)
UNKNOWN = "Wrong weights, another token table, other features or another language give such transcripts."


class SkippedChecks:
    """Decision whether a failed check stops a dump.

    Args:
        reason: the user's reason to skip failed checks; empty where every failed check stops the dump.
        note: called with the name of every failed check that was skipped.

    Attributes:
        messages: one sentence for each skipped check.
    """

    def __init__(self, reason: str = "", note: Callable[[str], None] = lambda check: None) -> None:
        self._reason, self._note = reason, note
        self.messages: list[str] = []

    def refuse(self, check: str, error: TeacherError) -> None:
        """Raise the error, or note that the check of this name was skipped."""
        if not self._reason:
            raise error
        self.messages.append(f"check {check!r} skipped ({self._reason}): {error.what}")
        self._note(check)


class TranscriptCheck:
    """Check of a dump's first utterances by the teacher's own greedy transcripts.

    Args:
        teacher: the teacher.
        table: its token table.
        max_wer: highest word error rate in percent; case and punctuation do not count.
        skips: decision about failed checks.

    Attributes:
        done: true once the transcripts have been judged, or cannot be.
    """

    def __init__(self, teacher: Teacher, table: TokenTable, max_wer: float, skips: SkippedChecks) -> None:
        self._table, self._max_wer, self._skips = table, max_wer, skips
        self._gives_text = callable(getattr(teacher, "text", None))
        self._seen: list[Transcribed] = []
        self.done = False

    def add(self, transcribed: Sequence[Transcribed]) -> None:
        """Add a batch, and judge once there is enough; raises ``TeacherError``."""
        if self.done:
            return
        # The encoder names an utterance that holds NaN; its transcript says nothing about the others.
        self._seen.extend((o, found) for o, found in transcribed if not any(t.broken for t in found.values()))
        if not self._seen:
            return
        references = [o.loaded.utt.text for o, _ in self._seen if o.loaded.utt.text]
        enough_words = sum(len(words(r)) for r in references) >= ENOUGH_WORDS or not references
        if len(self._seen) < ENOUGH_UTTERANCES or not enough_words:
            self.done = len(self._seen) >= GIVE_UP
            return
        for stream in self._seen[0][1]:
            self._require_speech(stream)
            self._require_variety(stream)
            self._require_words(stream)
        self.done, self._seen = True, []

    def _require_speech(self, stream: str) -> None:
        """Refuse a stream with no transcript but empty ones, where the recordings hold speech."""
        with_speech = [(o, found[stream]) for o, found in self._seen if o.loaded.utt.text != ""]
        seconds = sum(o.loaded.seconds for o, _ in with_speech)
        if seconds < ENOUGH_SECONDS or any(t.tokens_or_text for _, t in with_speech):
            return
        self._skips.refuse(
            "all blank",
            TeacherError(
                f"the {stream} branch is all blank: all {len(with_speech)} transcripts are empty",
                why="A student would learn to give nothing but blanks.",
                do=f"Check the weights, the features and the blank's id. {SKIP}",
            ),
        )

    def _require_variety(self, stream: str) -> None:
        """Refuse a stream that has one transcript for different recordings."""
        transcripts = {found[stream].tokens_or_text for _, found in self._seen}
        recordings = {o.loaded.utt.text or round(o.loaded.seconds, 1) for o, _ in self._seen}
        if len(transcripts) > 1 or len(recordings) == 1 or not next(iter(transcripts)):
            return
        text = self._seen[0][1][stream].text
        self._skips.refuse(
            "constant",
            TeacherError(
                f"the {stream} branch is constant: it writes {text!r} for all {len(self._seen)} utterances",
                why="A student would learn this one transcript whatever the audio is.",
                do=f"Check the weights and the features. {SKIP}",
            ),
        )

    def _require_words(self, stream: str) -> None:
        """Refuse a stream with too high a word error rate, unless its token ids are right."""
        errors, length = self._word_errors(stream)
        if not length or 100 * errors / length <= self._max_wer or self._are_tokens_right(stream):
            return
        self._skips.refuse(
            "max-wer",
            TeacherError(
                f"{errors} errors in {length} words of the first utterances: a word error rate of "
                f"{100 * errors / length:.0f} %, more than {self._max_wer:g} %",
                where=f"greedy decode of {stream}",
                why=self._likely_cause(stream),
                do=f"Compare the lines above; raise max_wer (--max-wer). {SKIP}",
            ),
        )

    def _word_errors(self, stream: str) -> tuple[int, int]:
        """Count errors and words over all references, without case and punctuation."""
        errors = length = 0
        for output, transcripts in self._seen:
            if output.loaded.utt.text:
                reference = words(plain(output.loaded.utt.text))
                errors += edit_distance(reference, words(plain(transcripts[stream].text)))
                length += len(reference)
        return errors, length

    def _token_errors(self, stream: str) -> tuple[int, int]:
        """Count errors and tokens over all references with token ids."""
        counts = [found[stream].labels or (0, 0) for _, found in self._seen]
        return sum(wrong for wrong, _ in counts), sum(length for _, length in counts)

    def _are_tokens_right(self, stream: str) -> bool:
        """Tell whether the token ids are right and the tokens only spell no text (phonemes, codes).

        The words do not count then. Where the table's tokens do spell the references, wrong words beside
        right ids mean that the ids have lost their texts, unless the teacher gives texts itself.
        """
        wrong, length = self._token_errors(stream)
        if not length or 100 * wrong / length > self._max_wer:
            return False
        return self._gives_text or not self._table_spells_references()

    def _table_spells_references(self) -> bool:
        """Tell whether most references can be written in tokens of the table."""
        tokeniser = Tokeniser(self._table)
        texts = [output.loaded.utt.text for output, _ in self._seen if output.loaded.utt.text]
        spelt = 0
        for text in texts:
            try:
                tokeniser.labels(text)
            except ValueError:
                continue
            spelt += 1
        return 2 * spelt > len(texts)

    def _likely_cause(self, stream: str) -> str:
        """Describe a known mistake that fits these transcripts, or say that none does."""
        wrong, length = self._token_errors(stream)
        if length and wrong <= RIGHT_IDS * length:
            return RETITLED
        pairs = [(found[stream].reference or (), found[stream].tokens) for _, found in self._seen]
        return renumbered(pairs, self._table) or other_units(self._seen, stream) or UNKNOWN


def renumbered(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], table: TokenTable) -> str:
    """Describe a renumbering that turns hypotheses into references; empty where none does.

    Only hypotheses as long as their references are compared, place by place.

    Args:
        pairs: token ids of reference and hypothesis.
        table: token table, for the message.
    """
    # By id of the hypothesis, the ids of the reference at the same places.
    references: dict[int, Counter[int]] = {}
    for reference, hypothesis in pairs:
        if len(reference) == len(hypothesis):
            for expected, given in zip(reference, hypothesis, strict=True):
                references.setdefault(given, Counter())[expected] += 1
    repeated = {given: counts for given, counts in references.items() if counts.total() > 1}
    total = sum(counts.total() for counts in repeated.values())
    likeliest = {given: counts.most_common(1)[0] for given, counts in repeated.items()}
    explained = sum(count for _, count in likeliest.values())
    if total < ALIGNED_TOKENS or explained < CONSISTENT * total:
        return ""
    moved = [(given, expected) for given, (expected, _) in likeliest.items() if given != expected]
    if len(moved) < len(likeliest) / 2:
        return ""
    given, expected = moved[0]
    return (
        "The teacher gives the right tokens under other numbers: where the reference has "
        f"{table[expected]!r} ({expected}) it gives {table[given]!r} ({given}), every time. The token table "
        "was re-numbered after the model was trained (a reduced or re-sorted dictionary): give the table "
        "that the model was trained with."
    )


def other_units(seen: Sequence[Transcribed], stream: str) -> str:
    """Describe a teacher that gives about one token for each character, beside a table of longer pieces."""
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
        f"The teacher gives {tokens} tokens where the references have {characters} characters or {labels} of "
        "the table's tokens: these are the weights of a character model under another vocabulary."
    )


def lines(transcribed: Sequence[Transcribed]) -> list[str]:
    """Write the first utterances beside their references, and each stream's error rates over the batch."""
    found = []
    for output, transcripts in transcribed[:SHOWN]:
        text = output.loaded.utt.text
        found.append(f"{output.loaded.utt.id}")
        found.append(f"  reference  {'-' if text is None else text}")
        for stream, transcript in transcripts.items():
            found.append(f"  {stream:<9}  {transcript.text}")
    for stream in transcribed[0][1] if transcribed else ():
        of_stream = [transcripts[stream] for _, transcripts in transcribed]
        rates = [
            _error_rate("word", [t.words for t in of_stream]),
            _error_rate("token", [t.labels for t in of_stream]),
        ]
        known = "; ".join(r for r in rates if r) or "no reference"
        found.append(f"greedy {stream}, {len(of_stream)} utterances: {known}")
    return found


def _error_rate(unit: str, errors: Sequence[tuple[int, int] | None]) -> str:
    """Write the error rate of all (errors, length) that are known; empty where none is."""
    known = [e for e in errors if e is not None]
    if not known:
        return ""
    wrong, length = sum(e for e, _ in known), sum(n for _, n in known)
    return f"{wrong} of {length} {unit}s wrong ({100 * rate(wrong, length):.1f} %)"


@dataclass(frozen=True)
class SelfCheck:
    """Result of the self-check.

    Attributes:
        findings: one sentence for each result.
    """

    findings: tuple[str, ...]


def self_check(
    driver: TeacherDriver,
    outputs: Sequence[TeacherOutput],
    skips: SkippedChecks | None = None,
    *,
    batched: bool = True,
) -> SelfCheck:
    """Check on the first batch that the tapped tensors are the model's logits.

    * No branch is broken: NaN throughout, uniform, or constant whatever the audio is (``skips`` may let these
      pass). Hidden layers are checked for NaN and for being constant.
    * Rows are logits, not log-probabilities.
    * Their log_softmax is the model's own output, where the teacher gives it (``log_probs``).
    * Utterances alone give the same as in a padded batch, whatever remainder of the stride their lengths
      leave; not where utterances run one at a time (``batched`` False).
    * A stored head gives the model's own logits from its input.

    Raises ``NotLogits``, ``NonFinite`` or ``TeacherError`` naming the utterance and the difference.
    """
    outputs = driver.one_forward(outputs)
    found: list[str] = []
    if driver.was_training:
        found.append("the model came in training mode and was put to eval")
    for stream in driver.streams:
        if not driver.kinds[stream].axes:
            continue
        _require_working_branch(driver, outputs, stream, skips or SkippedChecks())
        head = driver.described.get(stream)
        normalised = head is not None and head.normalised
        if normalised:
            found.append(f"the {stream} branch has no logits tensor (HAT): its log-probabilities are stored")
        for item in outputs if driver.kinds[stream].classes and not normalised else ():
            rows = _rows(driver, item, stream)
            # The encoder names utterances with NaN one by one.
            if len(rows) and bool(rows.isfinite().all()):
                require_logits(rows, stream, item.loaded.utt.id)
    for stream in driver.heads:
        if stream == "rnnt":
            found.append(require_lattice_factors(driver, outputs))
        else:
            found.append(require_factors(driver, outputs, stream))
    if finding := _compare_with_model(driver, outputs):
        found.append(finding)
    if batched and any(kind.axes for kind in driver.kinds.values()):
        found.append(_compare_alone_with_batch(driver, outputs))
    return SelfCheck(tuple(found))


def require_logits(rows: torch.Tensor, stream: str, where: str) -> None:
    """Raise ``NotLogits`` for (N, V) rows that are log-probabilities."""
    off = float(rows.logsumexp(-1).abs().max())
    if off < ALREADY_NORMALISED:
        raise NotLogits(
            f"the {stream} tap gives log-probabilities, not logits: |log Σ exp| ≤ {off:.1e} on every row",
            where=where,
            why="The log-normaliser is lost there, and a temperature may already be baked in.",
            do="Tap the Linear before the LogSoftmax (in Sequential(Dropout, Linear, LogSoftmax) it is .1).",
        )


def _rows(driver: TeacherDriver, item: TeacherOutput, stream: str) -> torch.Tensor:
    """Return (N, V) or (T, D) float32 rows of one utterance: all of them, or a lattice's first slice."""
    if stream == "rnnt":
        piece = next(driver.lattice(item), None)
        return torch.zeros(0, 1) if piece is None else piece.reshape(-1, piece.shape[-1]).float()
    if stream in item.rows:
        return item.rows[stream].float()
    return driver.decoded(item, stream)[0].float()


def _rows_by_audio(driver: TeacherDriver, item: TeacherOutput, stream: str) -> Iterator[torch.Tensor]:
    """Yield (N, V) float32 rows that only the audio can change.

    These are all frames; of a lattice, the frames before the first label; of a decoder, the first token's
    row.
    """
    if stream in item.rows:
        yield item.rows[stream].float()
        return
    unlabelled = replace(item, labels={})
    if stream != "rnnt":
        yield driver.decoded(unlabelled, stream)[0][:1].float()
        return
    for piece in driver.lattice(unlabelled):
        yield piece.reshape(-1, piece.shape[-1]).float()


@dataclass
class _Variation:
    """Variation of a branch's rows over a batch.

    Attributes:
        frames: number of rows.
        finite: true if any row is finite.
        spread: largest difference of two classes in one row.
        change: largest difference of any row from the first one, in probability (of a layer, in its own
            unit).
    """

    frames: int = 0
    finite: bool = False
    spread: float = 0.0
    change: float = 0.0


def _variation(driver: TeacherDriver, outputs: Sequence[TeacherOutput], stream: str) -> _Variation:
    found = _Variation()
    first: torch.Tensor | None = None
    for item in outputs:
        for rows in _rows_by_audio(driver, item, stream):
            found.frames += len(rows)
            good = rows[rows.isfinite().all(-1)]
            if not len(good):
                continue
            found.finite = True
            low, high = good.aminmax(dim=-1)
            found.spread = max(found.spread, float((high - low).max()))
            values = good.softmax(-1) if driver.kinds[stream].classes else good
            first = values[0] if first is None else first
            found.change = max(found.change, float((values - first).abs().max()))
    return found


def _require_working_branch(
    driver: TeacherDriver, outputs: Sequence[TeacherOutput], stream: str, skips: SkippedChecks
) -> None:
    """Refuse a branch of NaN, uniform rows, or rows that do not change with the audio."""
    found = _variation(driver, outputs, stream)
    if not found.frames:
        return
    error: TeacherError
    if not found.finite:
        error = NonFinite(
            f"the {stream} branch gives NaN or infinity on every one of {found.frames} frames",
            why="A student would learn nothing but NaN from it.",
            do="Check the weights, and whether the model needs full precision (NaN from float16 overflow).",
        )
        skips.refuse("NaN", error)
    elif driver.kinds[stream].classes and found.spread < UNIFORM:
        error = NotLogits(
            f"the {stream} branch is uniform: the same logit for every class, within {found.spread:.1e}",
            why="Weights that were never loaded give such rows.",
            do="Check that the checkpoint's names are the model's (load_state_dict(strict=True)).",
        )
        skips.refuse("uniform", error)
    elif found.change < CONSTANT and found.frames >= ENOUGH_FRAMES:
        error = TeacherError(
            f"the {stream} branch is constant: all {found.frames} frames give the same probabilities, "
            f"within {found.change:.1e}",
            why="It does not depend on the audio, so a student would learn one row by heart.",
            do=f"Check the features and the weights. {SKIP}",
        )
        skips.refuse("constant", error)


def _compare_with_model(driver: TeacherDriver, outputs: Sequence[TeacherOutput]) -> str:
    """Compare the tapped CTC logits with the teacher's ``log_probs``; empty where it has none."""
    log_probs = getattr(driver.teacher, "log_probs", None)
    if log_probs is None or "ctc" not in driver.streams:
        return ""
    with torch.inference_mode():
        own = log_probs(outputs[0].batch_output).get("ctc")
    if own is None:
        return ""
    worst = 0.0
    for item in outputs:
        expected = own[item.b, : item.T].float()
        ratio = (item.rows["ctc"].float().log_softmax(-1) - expected).exp()
        difference = (ratio - 1) * expected.exp()  # in probability
        worst = max(worst, float(difference.abs().max()) if difference.numel() else 0.0)
        if worst > SAME_DISTRIBUTION:
            raise TeacherError(
                f"softmax of the tapped logits differs from the model's own output by {worst:.3g}",
                where=item.loaded.utt.id,
                why="The tapped module is not the one the model decides with (or dropout is active).",
                do="Tap the Linear that feeds the model's own log-softmax.",
            )
    return f"softmax of the tapped logits is the model's own, within {worst:.1e} in probability"


def _compare_alone_with_batch(driver: TeacherDriver, outputs: Sequence[TeacherOutput]) -> str:
    """Compare utterances alone and in a padded batch; return the largest difference, raise on a large one.

    A batch is sorted by length, so its own padding may be next to none. One utterance is therefore shortened to
    several lengths, so that every remainder of the encoder's stride occurs, and run beside its whole self; the
    batch's shortest utterance is compared as well.
    """
    shortest = min(outputs, key=lambda o: o.T)
    worst, where = _difference(driver, driver.run([shortest.loaded])[0], shortest), shortest.loaded.utt.id
    middle = sorted(outputs, key=lambda o: o.T)[len(outputs) // 2]
    variants = [
        replace(middle.loaded, features=middle.loaded.features[:n]) for n in _shortened_lengths(middle)
    ]
    pairs: list[tuple[TeacherOutput, TeacherOutput]] = []
    try:
        together = driver.run([middle.loaded, *variants])[1:] if variants else []
        pairs = [
            (driver.run([variant])[0], padded) for variant, padded in zip(variants, together, strict=True)
        ]
    except (ValueError, RuntimeError, AssertionError, IndexError):
        pass  # inputs of one fixed length, as Whisper's, cannot be shortened and have no padding to leak
    for alone, padded in pairs:
        found = _difference(driver, alone, padded)
        if found > worst:
            worst = found
            where = f"{middle.loaded.utt.id}, its first {len(alone.loaded.features)} feature frames"
    _require_same(driver, worst, where)
    shortened = f"{1 + len(pairs)} utterances, shortened to every remainder of the stride,"
    tried = shortened if pairs else "an utterance"
    return f"{tried} alone and in a padded batch agree within {worst:.1e} in probability"


def compare_again(driver: TeacherDriver, outputs: Sequence[TeacherOutput]) -> None:
    """Run the utterance of a batch with the most padding alone, and compare; raises ``TeacherError``.

    Some leaks need an utterance of a certain length, or a certain neighbour, so that a dump repeats the comparison
    now and then.
    """
    if len(outputs) < 2:
        return
    shortest = min(outputs, key=lambda o: len(o.loaded.features))
    if len(shortest.loaded.features) == max(len(o.loaded.features) for o in outputs):
        return
    try:
        _require_same(
            driver, _difference(driver, driver.run([shortest.loaded])[0], shortest), shortest.loaded.utt.id
        )
    except TeacherError as e:
        e.add_note(
            "Records that were sealed before may depend on their batches too: repair the teacher, and dump into a "
            "new store."
        )
        raise


def _require_same(driver: TeacherDriver, difference: float, where: str) -> None:
    """Raise ``TeacherError`` where an utterance alone differs too much from the same one in a batch."""
    if difference > PADDING_LEAK:
        unit = "probabilities" if any(k.classes for k in driver.kinds.values()) else "numbers"
        raise TeacherError(
            f"alone and in a padded batch its {unit} differ by {difference:.3g}",
            where=where,
            why="Padding reaches valid frames (or dropout is active): targets would depend on the batch.",
            do="Mask the padding in forward(), or run one utterance at a time (batch_seconds=0, "
            "--batch-seconds 0).",
        )


def _shortened_lengths(output: TeacherOutput) -> list[int]:
    """Return lengths, in feature frames, that try the remainders of the stride, and a half and a third."""
    whole = len(output.loaded.features)
    stride = whole / max(output.T, 1)
    cuts = {max(1, round(stride * eighth / 8)) for eighth in range(1, 9)}
    lengths = {whole - cut for cut in cuts} | {whole // 2, whole // 3}
    return sorted(n for n in lengths if n >= SHORTEST_FRAMES * stride)


def _difference(driver: TeacherDriver, alone: TeacherOutput, padded: TeacherOutput) -> float:
    """Return the largest difference of an utterance alone and in a batch; raises ``TeacherError`` for other T."""
    if alone.T != padded.T:
        raise TeacherError(
            f"{padded.T} frames in a batch, {alone.T} alone",
            where=padded.loaded.utt.id,
            why="Valid lengths must not depend on the other utterances of a batch.",
            do="Return the encoder's own lengths from lengths(), computed from each utterance's input length.",
        )
    worst = 0.0
    for stream, kind in driver.kinds.items():
        if not kind.axes:
            continue
        a, b = _rows(driver, alone, stream), _rows(driver, padded, stream)
        if kind.classes:
            a, b = a.softmax(-1), b.softmax(-1)
        elif bool(a.isfinite().all() & b.isfinite().all()):  # relative to the largest number of a layer
            a, b = (x / b.abs().max().clamp(min=1e-30) for x in (a, b))
        else:
            continue  # the encoder raises an error that names this utterance
        worst = max(worst, float((a - b).abs().max()) if a.numel() else 0.0)
    return worst
