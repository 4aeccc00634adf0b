"""Error classes of logitstore, in one tree.

::

    LogitStoreError
    ├── UsageError            the request cannot be carried out            (exit status 2)
    │   └── UnknownName       no component of that name is registered
    └── DataError             something given is wrong                     (exit status 1)
        ├── ManifestError     a manifest line
        ├── AudioError        a recording
        ├── TokenError        text that cannot be tokenised; a label outside the token table
        ├── VocabError        two token tables that should be equal
        ├── TooManySkipped    more utterances were skipped than allowed
        ├── TeacherError      the teacher breaks its protocol
        │   ├── TapError      a hook on a module of the teacher
        │   │   ├── TapPathError    no module at that path
        │   │   ├── TapNeverFired   the module did not run in this batch
        │   │   └── TapFiredTwice   the module ran more than once
        │   ├── NotLogits     log-probabilities or a constant instead of logits
        │   ├── NonFinite     NaN or infinity in an output
        │   └── LengthError   lengths, frames and labels that contradict each other
        └── StoreError        a store at its place
            ├── NotAStore     no logitstore.json
            ├── FormatError   a rule of SPEC.md is broken (the message names the rule)
            │   └── Vanished  a shard was removed or replaced while it was in use
            ├── CorruptError  bytes that differ from their checksum
            ├── DiskError     a full, failing or read-only disk; a missing permission
            ├── IdentityError the store was made with another teacher, token table, encoding, ...
            ├── StoreBusy     another live process writes there
            └── MissingUtterance  no record of that id (also a KeyError)

Every error states where it happened, what is wrong, why that matters and what to do.
"""

from __future__ import annotations


class LogitStoreError(Exception):
    """Base class of all errors of logitstore; the message has up to four parts.

    Args:
        what: the problem, in one sentence.
        where: the file, line, shard, record or utterance that it was found in.
        why: the reason that it matters.
        do: the remedy.
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

    def __reduce__(self) -> tuple[object, ...]:  # data loader workers pickle errors to raise them again
        return _rebuild, (type(self), self.what, self.where, self.why, self.do)


def _rebuild(kind: type[LogitStoreError], what: str, where: str, why: str, do: str) -> LogitStoreError:
    return kind(what, where=where, why=why, do=do)


class UsageError(LogitStoreError):
    """A request that cannot be carried out, whatever the data."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that no registered component has."""


class DataError(LogitStoreError):
    """Wrong data: a manifest, a recording, a teacher or a store."""


class ManifestError(DataError):
    """A manifest, or a line of one, that cannot be used."""


class AudioError(DataError):
    """A recording that is missing, unreadable, empty or not as the manifest says."""


class TokenError(DataError):
    """Text that cannot be tokenised, or a label outside the token table."""


class VocabError(DataError):
    """Two token tables that should be equal and differ, or a table that cannot be read."""


class TooManySkipped(DataError):
    """More utterances that could not be dumped than the user allows."""


class TeacherError(DataError):
    """A teacher that breaks the protocol of ``logitstore.teachers.protocol``."""


class TapError(TeacherError):
    """A hook on one of the teacher's modules that cannot return its output."""


class TapPathError(TapError):
    """A path that leads to no module of the teacher."""


class TapNeverFired(TapError):
    """A tapped module that did not run in a batch."""


class TapFiredTwice(TapError):
    """A tapped module that ran more than once in a batch."""


class NotLogits(TeacherError):
    """A tapped layer whose output is not logits."""


class NonFinite(TeacherError):
    """An output with NaN or infinity."""


class LengthError(TeacherError):
    """Lengths, frames and labels that contradict each other."""


class StoreError(DataError):
    """A store, or a part of one, that cannot be used."""


class NotAStore(StoreError):
    """A place without ``logitstore.json``."""


class FormatError(StoreError):
    """A broken rule of SPEC.md; the message names the rule."""


class Vanished(FormatError):
    """A shard that was removed or replaced since its name was read."""


class CorruptError(StoreError):
    """Stored bytes that differ from their checksum."""


class DiskError(StoreError):
    """A file system that is full, fails, is read-only, or lacks a permission or file descriptors."""


class IdentityError(StoreError):
    """A store, or a shard in it, of another teacher, token table, streams or storage backend."""


class StoreBusy(StoreError):
    """A part of a store that another live process holds."""


class MissingUtterance(StoreError, KeyError):
    """An utterance id that the store has no record of."""

    __str__ = LogitStoreError.__str__
