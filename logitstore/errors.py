"""Every error logitstore raises, in one tree.

::

    LogitStoreError
    ├── UsageError            what was asked for cannot be done            (exit status 2)
    │   └── UnknownName       no encoding / storage / ... of that name
    └── DataError             something given is wrong                     (exit status 1)
        ├── ManifestError     a manifest line
        ├── AudioError        a recording
        ├── TokenError        text that does not tokenise; a label outside the table
        ├── VocabError        two token tables that should be one
        ├── TooManySkipped    more utterances could not be dumped than allowed
        ├── TeacherError      the teacher breaks its protocol
        │   ├── TapError      the hooks on a teacher's module
        │   │   ├── TapPathError    no module at that path
        │   │   ├── TapNeverFired   the module did not run in this batch
        │   │   └── TapFiredTwice   it ran more often than once
        │   ├── NotLogits     log-probabilities, or a constant, where logits were promised
        │   ├── NonFinite     NaN or infinity in an output
        │   └── LengthError   lengths and frames that do not fit together
        └── StoreError        a store on disk
            ├── NotAStore     no logitstore.json there
            ├── FormatError   a rule of SPEC.md is broken (the rule is named)
            │   └── Vanished  a shard that was there is not any more
            ├── CorruptError  bytes differ from their checksum
            ├── DiskError     the disk is full, fails, or may not be written
            ├── IdentityError the store was made with other answers
            ├── StoreBusy     another live process writes there
            └── MissingUtterance  no row of that id (also a KeyError)

An error says where it happened, what is wrong, why it matters and what to do about it.
"""

from __future__ import annotations


class LogitStoreError(Exception):
    """Anything logitstore refuses to do, said in four parts.

    Args:
        what: what is wrong, in one sentence.
        where: the file, line, shard, row or utterance.
        why: why it matters.
        do: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", do: str = "") -> None:
        super().__init__(what, where, why, do)
        self.what, self.where, self.why, self.do = what, where, why, do

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        for part in (self.why, self.do):
            if part:
                text += f"\n  {part}"
        return text

    def __reduce__(self) -> tuple[object, ...]:  # crosses process borders in dataloader workers
        return _rebuild, (type(self), self.what, self.where, self.why, self.do)


def _rebuild(kind: type[LogitStoreError], what: str, where: str, why: str, do: str) -> LogitStoreError:
    return kind(what, where=where, why=why, do=do)


class UsageError(LogitStoreError):
    """What was asked for cannot be done, whatever the data."""

    exit_code = 2


class UnknownName(UsageError):
    """No component of that name is registered."""


class DataError(LogitStoreError):
    """Something that was given is wrong."""


class ManifestError(DataError):
    """A manifest line cannot be used."""


class AudioError(DataError):
    """A recording is missing, unreadable, empty or not as the manifest says."""


class TokenError(DataError):
    """Text does not tokenise, or a label lies outside the token table."""


class VocabError(DataError):
    """Two token tables that should be one differ."""


class TooManySkipped(DataError):
    """More utterances of a manifest could not be dumped than the user allows."""


class TeacherError(DataError):
    """The teacher does not keep the protocol of ``logitstore.teachers.protocol``."""


class TapError(TeacherError):
    """A hook on one of the teacher's modules cannot give what it should."""


class TapPathError(TapError):
    """The teacher has no module at that path."""


class TapNeverFired(TapError):
    """The tapped module did not run in this batch."""


class TapFiredTwice(TapError):
    """The tapped module ran more often than once in one batch."""


class NotLogits(TeacherError):
    """A tapped layer gives something that is not the logits it promised."""


class NonFinite(TeacherError):
    """An output holds NaN or infinity."""


class LengthError(TeacherError):
    """Lengths, frames and labels do not fit together."""


class StoreError(DataError):
    """A store, or something in it, cannot be used."""


class NotAStore(StoreError):
    """There is no ``logitstore.json`` at that place."""


class FormatError(StoreError):
    """A rule of SPEC.md is broken; the message names the rule."""


class Vanished(FormatError):
    """A shard was removed or replaced since its name was read."""


class CorruptError(StoreError):
    """Stored bytes differ from their checksum."""


class DiskError(StoreError):
    """The file system under a store says no: full, failing, read-only, no permission, too many files."""


class IdentityError(StoreError):
    """The store was made with other answers (teacher, tokens, streams, storage) than these."""


class StoreBusy(StoreError):
    """Another live process holds this part of the store."""


class MissingUtterance(StoreError, KeyError):
    """The store has no row of that id."""

    __str__ = LogitStoreError.__str__
