"""Gates before the first shard: what a teacher writes down, beside the references, before hours are spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ..errors import TeacherError
from ..tokens.table import TokenTable
from ..tokens.transcript import Transcript, edit_distance, plain, rate, words
from .driver import Spoken

SHOWN = 4  # utterances of the first batch that are printed
ENOUGH_WORDS = 10  # of references: fewer judge no teacher
ENOUGH_UTTERANCES = 3
ENOUGH_SECONDS = 1.0
GIVE_UP = 50  # utterances after which a teacher that could not be judged is let through
RIGHT_IDS = 0.2  # token errors below which the ids are right, whatever the words are
PAIRS = 10  # of repeated tokens, to name a renumbered table


class Skips:
    """Which gates are not to stop a dump.

    Args:
        reason: why not, in the user's words; empty where every gate stops it.
        note: called with the name of every gate that was passed over.
    """

    def __init__(self, reason: str = "", note: Callable[[str], None] = lambda gate: None) -> None:
        self._reason, self._note = reason, note
        self.said: list[str] = []

    def refuse(self, gate: str, error: TeacherError) -> None:
        """Raise the error, or note that the gate was skipped."""
        if not self._reason:
            raise error
        self.said.append(f"gate {gate!r} skipped ({self._reason}): {error.what}")
        self._note(gate)


class Gate:
    """Judges the first utterances of a dump by what the teacher itself writes down.

    Args:
        table: the teacher's.
        max_wer: percent of words that may be wrong, upper and lower case and punctuation aside.
        skips: gates that are passed over.
    """

    def __init__(self, table: TokenTable, max_wer: float, skips: Skips) -> None:
        self._table, self._max, self._skips = table, max_wer, skips
        self._seen: list[tuple[Spoken, Mapping[str, Transcript]]] = []
        self.open = False

    def see(self, heard: Sequence[tuple[Spoken, Mapping[str, Transcript]]]) -> None:
        """Add a batch; once there is enough of it, judge. Raises ``TeacherError``."""
        if self.open:
            return
        # An utterance that holds NaN is named by the encoder, and judges nobody.
        self._seen.extend((s, h) for s, h in heard if not any(t.broken for t in h.values()))
        if not self._seen:
            return
        references = [s.loaded.utt.text for s, _ in self._seen if s.loaded.utt.text]
        enough = sum(len(words(r)) for r in references) >= ENOUGH_WORDS or not references
        if len(self._seen) < ENOUGH_UTTERANCES or not enough:
            self.open = len(self._seen) >= GIVE_UP
            return
        for stream in self._seen[0][1]:
            self._require_speech(stream)
            self._require_variety(stream)
            self._require_words(stream)
        self.open, self._seen = True, []

    def _require_speech(self, stream: str) -> None:
        spoken = [(s, h[stream]) for s, h in self._seen if s.loaded.utt.text != ""]
        if sum(s.loaded.seconds for s, _ in spoken) < ENOUGH_SECONDS or any(h.said for _, h in spoken):
            return
        self._skips.refuse(
            "all blank",
            TeacherError(
                f"the {stream} branch is all blank: it writes nothing for any of {len(spoken)} utterances",
                why="A student would learn to be silent.",
                do="Check the weights, the features and the blank's id; --skip-gate REASON if it is right.",
            ),
        )

    def _require_variety(self, stream: str) -> None:
        said = {h[stream].said for _, h in self._seen}
        meant = {s.loaded.utt.text or round(s.loaded.seconds, 1) for s, _ in self._seen}
        if len(said) > 1 or len(meant) == 1 or not next(iter(said)):
            return
        text = self._seen[0][1][stream].text
        self._skips.refuse(
            "constant",
            TeacherError(
                f"the {stream} branch is constant: it writes {text!r} for all {len(self._seen)} utterances",
                why="Whatever is said, a student would learn to say this.",
                do="Check the weights and the features; --skip-gate REASON if it is right.",
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
                do="Compare the lines above; raise --max-wer, or --skip-gate REASON if it is right.",
            ),
        )

    def _tally(self, stream: str) -> tuple[int, int]:
        errors = length = 0
        for spoken, heard in self._seen:
            if spoken.loaded.utt.text:
                reference = words(plain(spoken.loaded.utt.text))
                errors += edit_distance(reference, words(plain(heard[stream].text)))
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
    for reference, said in pairs:
        if len(reference) == len(said):
            for r, h in zip(reference, said, strict=True):
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


def other_units(seen: Sequence[tuple[Spoken, Mapping[str, Transcript]]], stream: str) -> str:
    """A sentence if the teacher says about a token a character, where the table holds longer pieces."""
    characters = tokens = labels = 0
    for spoken, heard in seen:
        reference = heard[stream].reference
        if spoken.loaded.utt.text and reference is not None:
            characters += len(spoken.loaded.utt.text)
            tokens += len(heard[stream].tokens)
            labels += len(reference)
    if not labels or tokens < 1.5 * labels or not 0.7 * characters < tokens < 1.3 * characters:
        return ""
    return (
        f"It says {tokens} tokens where the references are {characters} characters or {labels} of the "
        "table's tokens: these are the weights of a character model under another vocabulary."
    )


def lines(heard: Sequence[tuple[Spoken, Mapping[str, Transcript]]]) -> list[str]:
    """The first utterances beside their references, and each branch's error rates over the batch."""
    found = []
    for spoken, transcripts in heard[:SHOWN]:
        text = spoken.loaded.utt.text
        found.append(f"{spoken.loaded.utt.id}")
        found.append(f"  reference  {'-' if text is None else text}")
        for stream, transcript in transcripts.items():
            found.append(f"  {stream:<9}  {transcript.text}")
    for stream in heard[0][1] if heard else ():
        said = [h[stream] for _, h in heard]
        parts = []
        for unit, errors in (("word", [t.words for t in said]), ("token", [t.labels for t in said])):
            known = [e for e in errors if e is not None]
            if known:
                wrong, of = sum(e for e, _ in known), sum(n for _, n in known)
                parts.append(f"{wrong} of {of} {unit}s wrong ({100 * rate(wrong, of):.1f} %)")
        found.append(f"greedy {stream}, {len(said)} utterances: {'; '.join(parts) or 'no reference'}")
    return found
