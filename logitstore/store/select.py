"""Conditions on records, e.g. ``wer <= 0.1 and seconds < 20``.

Names are keys of the record metadata (SPEC S3, S8): ``id``, ``T``, ``U``, ``seconds``, ``text``, ... ``wer``,
``ter``, ``score`` and ``hyp`` belong to the store's first stream with transcripts, ``rnnt.wer`` to the stream
named. ``hours`` is the audio of all records chosen so far and of this one. A comparison with a value that a
record does not have is false. :mod:`logitstore.schema.expression` evaluates conditions within fixed bounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..registry import suggest
from ..schema.expression import ARITHMETIC, COMPARISONS, Grammar, Operation, SafeExpression

HYPOTHESIS_NAMES = ("wer", "ter", "score", "hyp")
NAMES = ("id", "T", "U", "seconds", "hours", "text", "labels_from", *HYPOTHESIS_NAMES)


def _none_if_missing(operation: Operation) -> Operation:
    return lambda a, b: None if a is None or b is None else operation(a, b)


GRAMMAR = Grammar(
    arithmetic={symbol: _none_if_missing(ARITHMETIC[symbol]) for symbol in ("+", "-", "*", "/")},
    comparisons={
        symbol: operation if symbol in ("==", "!=") else _none_if_missing(operation)
        for symbol, operation in COMPARISONS.items()
    },
    logic=True,
    dotted_names=True,
    numbers_only=True,
    negate=lambda a: None if a is None else -a,
)


class Where:
    """A condition that is evaluated for one record after the other.

    Args:
        text: the condition; empty to choose every record.
        streams: names of the store's streams that have transcripts, in order.

    Attributes:
        records: number of records that the condition was evaluated for.
        chosen: number of records that meet it.
        seconds: audio of these.

    Raises:
        UsageError: the text is not a condition, or it uses a name that records do not have.
    """

    def __init__(self, text: str, streams: Sequence[str]) -> None:
        self._text, self._streams = text, tuple(streams)
        self._first = next(iter(streams), "")
        self.seconds = 0.0
        self.records = self.chosen = 0
        self._without: Counter[str] = Counter()  # records without a value, by name
        try:
            self._expression = SafeExpression(text.strip() or "True", GRAMMAR)
            for name in sorted(self._expression.names):
                self._check_name(name)
        except ValueError as e:
            raise self._error(str(e)) from None

    def __call__(self, meta: Mapping[str, Any]) -> bool:
        """Return whether a record is chosen; the audio of a chosen one counts towards ``hours``."""
        seconds = self.seconds + float(meta.get("seconds") or 0.0)
        values = {**meta, "hours": seconds / 3600}
        self.records += 1
        try:
            chosen = bool(self._expression.value(lambda name: self._lookup(values, name)))
        except (TypeError, ValueError, ArithmeticError) as e:
            raise self._error(f"for record {meta.get('id')!r}: {e}") from None
        self._without.update(name for name in self._expression.names if self._lookup(values, name) is None)
        if chosen:
            self.seconds = seconds
            self.chosen += 1
        return chosen

    def explain_nothing(self) -> str:
        """Return the sentence that says why no record was chosen; empty where some were."""
        if self.chosen or not self._text.strip():
            return ""
        if not self.records:
            return f"No record was compared with the condition {self._text!r}: there is none."
        said = f"None of {self.records} records meets the condition {self._text!r}."
        for name, count in sorted(self._without.items()):
            said += f" {count} of them have no {name!r}, and a comparison with a missing value is false."
        return said

    def _error(self, what: str) -> UsageError:
        return UsageError(
            f"{self._text!r} is not a condition: {what}",
            do="Give a condition such as 'wer <= 0.1 and seconds < 20' or \"'rnnt' in hyp or not text\".",
        )

    def _check_name(self, name: str) -> None:
        """Raise ``ValueError`` for a name that no record has."""
        stream, dot, key = name.partition(".")
        if not dot:
            if name not in NAMES:
                raise ValueError(f"records have no {name!r}. {suggest(name, NAMES)}")
        elif stream not in self._streams:
            raise ValueError(f"there is no stream {stream!r}. {suggest(stream, self._streams)}")
        elif key not in HYPOTHESIS_NAMES:
            raise ValueError(f"a stream has no {key!r}. {suggest(key, HYPOTHESIS_NAMES)}")

    def _lookup(self, meta: Mapping[str, Any], name: str) -> Any:
        stream, dot, key = name.partition(".")
        if not dot:
            if name not in HYPOTHESIS_NAMES:
                return meta.get(name)
            stream, key = self._first, name
        hypothesis = (meta.get("hyp") or {}).get(stream) or {}
        return hypothesis.get("text" if key == "hyp" else key)
