"""Results of a probe: reports of the watched processes, and the finding that is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from .audio import FoundRates
from .rank import HeadCandidate


@dataclass(frozen=True)
class FoundValues:
    """An expression, and the first values that it gave in the first batch."""

    expression: str
    values: tuple[str | int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build it from JSON values."""
        return cls(**_tuples(value))


@dataclass(frozen=True, kw_only=True)
class ProbedHead(HeadCandidate):
    """A module that may give the logits, and what was found while it ran.

    Attributes:
        lengths: expressions that may give the valid lengths.
        lengths_expression: the one of them that is certain; empty where none is.
        id_variables: variables of the program that may hold the utterance ids.
        labels: variables that may hold the labels of a lattice.
        call: index, from 0, of the call that gives the answer, where it runs several times in a batch.
        accumulate: axis along which the calls of a batch are joined: ``t``, ``b`` or empty.
    """

    lengths: tuple[FoundValues, ...] = ()
    lengths_expression: str = ""
    id_variables: tuple[FoundValues, ...] = ()
    labels: tuple[str, ...] = ()
    call: int | None = None
    accumulate: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build it from JSON values."""
        return cls(**_with_found_values(value))


@dataclass(frozen=True, kw_only=True)
class ProbedJoiner:
    """A joiner that capture can run, and what was found while its encoder ran.

    Attributes:
        convention: name of the framework whose joiner adapter fits.
        model: class of the outermost module.
        joiner: path of the joiner.
        encoder: path of the encoder, or ``input:PATH``.
        classes: V; 0 where the adapter does not know it.
        calls: most calls of the joiner in one batch; 0 where the program does not run it.
        lengths: expressions that may give the valid lengths.
        lengths_expression: the likeliest of them; empty where there is none.
        id_variables: variables of the program that may hold the utterance ids.
    """

    convention: str
    model: str
    joiner: str
    encoder: str
    classes: int
    calls: int
    lengths: tuple[FoundValues, ...] = ()
    lengths_expression: str = ""
    id_variables: tuple[FoundValues, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build it from JSON values."""
        return cls(**_with_found_values(value))


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Observations of one process.

    Attributes:
        heads: modules that may give the logits, the likeliest first.
        joiners: joiners that capture can run.
        ids: expressions that gave other utterance ids in each batch.
        repeated_ids: expressions that gave an id more than once, and how.
        texts: expression for the reference texts; empty where there are none.
        opened: files that the program opened and that may be token tables.
        audio: audio files that the first batch names.
        blanks: blank ids that models name, by path.
        batches: number of batches watched.
    """

    heads: tuple[ProbedHead, ...]
    joiners: tuple[ProbedJoiner, ...] = ()
    ids: tuple[FoundValues, ...] = ()
    repeated_ids: tuple[str, ...] = ()
    texts: str = ""
    opened: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()
    blanks: Mapping[str, int]
    batches: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build the report from JSON values."""
        built = {
            "heads": tuple(map(ProbedHead.from_json, value["heads"])),
            "joiners": tuple(map(ProbedJoiner.from_json, value["joiners"])),
            "ids": tuple(map(FoundValues.from_json, value["ids"])),
        }
        return cls(**{**_tuples(value), **built})


@dataclass(frozen=True)
class FoundBlank:
    """Id of the blank, None where it is not known, and the reasons for it."""

    index: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProbeFinding:
    """Findings of a probe.

    Attributes:
        candidates: modules that may give the logits, the likeliest first.
        ctc: the likeliest CTC head; None where there is none.
        rnnt: the likeliest joiner output layer; None where there is none.
        transducer: joiner that capture can run itself; None where there is none, or where the program
            computes whole lattices.
        ids: expressions that may give the utterance ids.
        texts: expression for the reference texts; empty where there are none.
        tokens: file of the token table that fits; empty where none does.
        tables: every token table that was found: file, and number of tokens.
        blank: blank of the CTC head, or of the joiner where there is none.
        rates: sample rate and frame shift, by the audio files that the program reads.
        batches: number of batches watched.
        command: command to run next; empty where no logits were found.
        missing: reasons for which the command cannot succeed as it stands.
        notes: facts that the command does not show, and contradictions.
    """

    candidates: tuple[ProbedHead, ...]
    ctc: ProbedHead | None
    rnnt: ProbedHead | None
    transducer: ProbedJoiner | None
    ids: tuple[FoundValues, ...]
    texts: str
    tokens: str
    tables: tuple[tuple[str, int], ...]
    blank: FoundBlank
    rates: FoundRates
    batches: int
    command: str
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        return asdict(self)


def _tuples(value: Any) -> Any:
    """Return a JSON value with tuples in place of lists."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _with_found_values(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a dataclass that has ``lengths`` and ``id_variables``."""
    built = {name: tuple(map(FoundValues.from_json, value[name])) for name in ("lengths", "id_variables")}
    return {**_tuples(value), **built}
