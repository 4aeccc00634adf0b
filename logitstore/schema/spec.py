"""Content of ``logitstore.json`` and ``notes.json``: frozen dataclasses that convert to JSON and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, Self

from ..errors import FormatError
from .clock import FrameClock
from .kinds import KINDS, StreamKind

VERSION = "1.0"
ASSUMABLE = ("blank", "frame_shift", "sample_rate")  # values of a teacher that a capture may have to assume
FORMAT = "logitstore"
UNNAMED = "unnamed"  # name of the teacher if a StoreWriter was opened without a TeacherSpec


@dataclass(frozen=True)
class JsonDataclass:
    """Base class of frozen dataclasses that convert to JSON and back; unknown keys are ignored (SPEC F5)."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4)."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build it from JSON; raise ``FormatError`` for a missing key or a value of the wrong type."""
        try:
            known = {f.name for f in fields(cls)}
            return cls(**{k: v for k, v in value.items() if k in known})
        except (TypeError, ValueError, AttributeError, KeyError) as e:
            raise FormatError(f"it is not a valid {cls.__name__}: {e}") from None


@dataclass(frozen=True)
class Head(JsonDataclass):
    """Output layer (or hidden layer) of a teacher that a stream of logits is taken from.

    Attributes:
        stream: name of the stream: ``ctc``, ``rnnt``, ``seq2seq``, ``hidden`` or ``hidden_NAME``.
        module: path of the module below the teacher's model, e.g. ``ctc_output.1`` or ``joiner.output_linear``, in any
            form that :class:`logitstore.Tap` takes. Its output is logits, in front of any softmax.
        blank: id of the blank in the teacher's token table.
        layout: axes of the module's output: ``BTV``, ``BVT`` or ``TBV``; slices of a joiner are always (t, U+1, V).
        normalised: true where the model has no tensor of logits (a HAT joint), so that log-probabilities are taken.
        end: id of the token that ends a text of an attention decoder; None for other streams.
    """

    stream: str
    module: str
    blank: int
    layout: str = "BTV"
    normalised: bool = False
    end: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4); the blank stands in ``tokens`` alone."""
        return {k: v for k, v in asdict(self).items() if v is not None and k != "blank"}


@dataclass(frozen=True)
class TeacherSpec(JsonDataclass):
    """Description of a teacher: its rates, its heads and the settings of its features.

    A store keeps it, and a dump into a store of another teacher is refused. ::

        TeacherSpec("my conformer", sample_rate=16000, frame_shift=640, heads=(Head("ctc", "ctc_output.1", blank=0),))

    Attributes:
        name: name of the model for people to read.
        sample_rate: audio samples per second that the features expect.
        frame_shift: audio samples between two teacher frames, subsampling included, e.g. 640 for 40 ms at 16 kHz.
        heads: heads of the streams that the teacher offers.
        features: settings that change the teacher's numbers, e.g. of its filterbank; any JSON.
        weights: ``sha256:`` digest over the model's parameters and buffers; filled in by logitstore.
        offset: audio samples from the start of a recording to the centre of frame 0; None where it is unknown.
        assumed: names of values that nobody has given and nothing has shown, among ``blank``, ``frame_shift`` and
            ``sample_rate``: a capture does not know them unless it is told. No frame times are made of them.

    Raises:
        ValueError: a sample rate or frame shift that is not a positive integer, an offset that is no integer, or
            another name in ``assumed``.
    """

    name: str
    sample_rate: int
    frame_shift: int
    heads: tuple[Head, ...] = ()
    features: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    offset: int | None = None
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "assumed", tuple(self.assumed))
        if unknown := [name for name in self.assumed if name not in ASSUMABLE]:
            raise ValueError(f"{unknown[0]!r} is assumed; only {', '.join(ASSUMABLE)} can be")
        heads = tuple(h if isinstance(h, Head) else Head.from_json(h) for h in self.heads)
        object.__setattr__(self, "heads", heads)
        # Convert as JSON does (tuples to lists, keys to strings), so that it equals the spec read from a store.
        object.__setattr__(self, "features", json.loads(json.dumps(self.features, allow_nan=False)))
        if not (isinstance(self.sample_rate, int) and self.sample_rate > 0):
            raise ValueError(f"the sample rate is {self.sample_rate!r} Hz, not a positive integer")
        if not (isinstance(self.frame_shift, int) and self.frame_shift > 0):
            raise ValueError(f"the frame shift is {self.frame_shift!r} samples, not a positive integer")
        if not (self.offset is None or type(self.offset) is int):
            raise ValueError(f"the centre of the first frame is sample {self.offset!r}, not an integer")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4)."""
        value = {**asdict(self), "heads": [h.to_json() for h in self.heads]}
        if self.offset is None:
            del value["offset"]
        if self.assumed:
            value["assumed"] = list(self.assumed)
        else:
            del value["assumed"]
        return value

    @property
    def clock(self) -> FrameClock | None:
        """The clock of its frames; None for an unnamed teacher, and where its rates are assumed."""
        if self.name == UNNAMED or {"frame_shift", "sample_rate"} & set(self.assumed):
            return None
        offset = None if self.offset is None else Fraction(self.offset, self.sample_rate)
        return FrameClock(Fraction(self.frame_shift, self.sample_rate), offset, self.sample_rate)

    def head(self, stream: str) -> Head | None:
        """Return the head of a stream; None if the teacher has none."""
        return next((h for h in self.heads if h.stream == stream), None)


@dataclass(frozen=True)
class Column(JsonDataclass):
    """A named array of a shard: every record has ``(n, *shape)`` items of one dtype.

    Attributes:
        name: name of the column, e.g. ``ctc.logp``.
        dtype: name of a little-endian numpy dtype, e.g. ``float16``.
        shape: trailing axes, the same in every record.
        about: meaning of the numbers, with their unit.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    about: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))


@dataclass(frozen=True)
class StreamSpec(JsonDataclass):
    """One stream of a store.

    Attributes:
        name: name of the stream, ``ctc``, ``rnnt``, ...; also the prefix of its columns.
        kind: name of its kind, a key of :data:`logitstore.schema.kinds.KINDS`.
        classes: V, the size of the token table; also for a stream of vectors or text.
        blank: id of the blank.
        encoding: name and settings of the encoding, e.g. ``topk:16``.
        form: lattice form, ``full``, ``banded:5``, ...; empty for other kinds.
        width: D, the width of a ``hidden`` stream or of the input of a stored head; 0 for other streams.
        activation: activation before a stored RNN-T head, ``tanh`` or ``relu``; empty for other streams.
        constants: arrays that are stored once for the stream: ``name``, ``dtype``, ``shape``, ``crc32c`` of
            each (SPEC E13).
    """

    name: str
    kind: str
    classes: int
    blank: int
    encoding: str
    form: str = ""
    width: int = 0
    activation: str = ""
    constants: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4); V and the blank stand in ``tokens`` alone."""
        stated = {k: v for k, v in asdict(self).items() if k not in ("classes", "blank")}
        return {k: v for k, v in stated.items() if v or k in ("form", "encoding")}

    @property
    def stream_kind(self) -> StreamKind:
        """The kind of the stream."""
        return KINDS[self.kind]

    @property
    def size(self) -> int:
        """Numbers in a decoded row: V, or D for a ``hidden`` stream."""
        return self.classes if self.stream_kind.classes else self.width

    def __post_init__(self) -> None:
        object.__setattr__(self, "constants", tuple(self.constants))
        if self.kind not in KINDS:
            raise ValueError(f"the kind of a stream is {self.kind!r}")
        if not (type(self.classes) is int and 0 < self.classes < 1 << 31):
            raise ValueError(f"a stream has {self.classes!r} classes")
        if not (type(self.blank) is int and 0 <= self.blank < self.classes):
            raise ValueError(f"the blank is {self.blank!r}")
        if not (isinstance(self.name, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,31}", self.name)):
            raise ValueError(f"the name of a stream is {self.name!r}")
        if not (isinstance(self.encoding, str) and isinstance(self.form, str)):
            raise ValueError(f"the encoding is {self.encoding!r} and the lattice form {self.form!r}")


@dataclass(frozen=True)
class StoreSpec(JsonDataclass):
    """The description of a store: what its records mean (``logitstore.json``) and notes (``notes.json``).

    Attributes:
        teacher: the teacher that made the rows.
        tokens: ``sha256`` of tokens.txt, ``size`` and ``blank``.
        streams: the stored streams.
        storage: name and settings of the storage backend.
        version: version of the format, ``major.minor``.
        manifest: ``sha256`` of the manifest; empty for a store that was written by a user's own loop.
        made_with: versions of the libraries that made the store, by name.
        allowed: differences that the user allowed while resuming.
        gates: checks of the teacher that the user skipped, each with its name as ``gate`` and a ``reason``.
        records: number of records that the store had when a writer last finished it; it never has fewer.
        identity: SHA-256 of ``logitstore.json``, which every sealed entry carries; empty for a description that
            was neither read from a store nor written to one.
    """

    teacher: TeacherSpec
    tokens: dict[str, Any]
    streams: tuple[StreamSpec, ...]
    storage: dict[str, Any]
    version: str = VERSION
    manifest: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    allowed: tuple[dict[str, Any], ...] = ()
    gates: tuple[dict[str, Any], ...] = ()
    records: int = 0
    identity: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        sha256, size, blank = (self.tokens.get(k) for k in ("sha256", "size", "blank"))
        if not (isinstance(sha256, str) and type(size) is int and type(blank) is int):
            raise ValueError(f"the tokens {self.tokens!r} lack sha256, size or blank")
        teacher: Any = self.teacher
        if not isinstance(teacher, TeacherSpec):
            heads = tuple({**head, "blank": blank} for head in teacher.get("heads", ()))
            object.__setattr__(self, "teacher", TeacherSpec.from_json({**teacher, "heads": heads}))
        streams = tuple(
            s if isinstance(s, StreamSpec) else StreamSpec.from_json({**s, "classes": size, "blank": blank})
            for s in self.streams
        )
        object.__setattr__(self, "streams", streams)
        object.__setattr__(self, "allowed", tuple(self.allowed))
        object.__setattr__(self, "gates", tuple(self.gates))
        if len({s.name for s in streams}) != len(streams):
            raise ValueError("two streams have one name")
        if not isinstance(self.storage.get("name"), str):
            raise ValueError(f"the storage backend {self.storage!r} has no name")
        if not (type(self.records) is int and self.records >= 0):
            raise ValueError(f"the number of records is {self.records!r}")

    def description(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json``, which never changes (SPEC F4)."""
        return {
            "format": FORMAT,
            "version": self.version,
            "teacher": self.teacher.to_json(),
            "tokens": dict(self.tokens),
            "streams": [s.to_json() for s in self.streams],
            "storage": dict(self.storage),
        }

    def notes(self) -> dict[str, Any]:
        """Return the JSON object of ``notes.json`` (SPEC F8)."""
        return {
            "records": self.records,
            "manifest": dict(self.manifest),
            "made_with": dict(self.made_with),
            "allowed": list(self.allowed),
            "gates": list(self.gates),
        }

    def to_json(self) -> dict[str, Any]:
        """Return description and notes in one JSON object."""
        return {**self.description(), **self.notes()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build it from JSON.

        Raises:
            FormatError: another format or a newer major version, or a value of the wrong type.
        """
        if value.get("format") != FORMAT:
            raise FormatError("its format is not logitstore (SPEC F4)")
        version = str(value.get("version", ""))
        if version.partition(".")[0] != VERSION.partition(".")[0]:
            raise FormatError(
                f"its format version is {version!r}, but this logitstore reads "
                f"{VERSION.partition('.')[0]}.x (SPEC F5)",
                do="Install a logitstore that reads this version.",
            )
        return super().from_json({k: v for k, v in value.items() if k != "identity"})

    @property
    def transcript_streams(self) -> tuple[str, ...]:
        """Names of the streams that have transcripts or can be decoded to them, in order."""
        return tuple(s.name for s in self.streams if s.stream_kind.has_transcript)

    def stream(self, name: str) -> StreamSpec:
        """Return the stream of a name; raise ``FormatError`` if there is none."""
        for s in self.streams:
            if s.name == name:
                return s
        raise FormatError(
            f"there is no stream {name!r}; the streams are {', '.join(s.name for s in self.streams)}"
        )


IDENTITY = ("teacher", "tokens", "streams", "storage", "manifest")


def differences(was: StoreSpec, now: StoreSpec) -> list[tuple[str, Any, Any]]:
    """Return ``(dotted field, old value, new value)`` for every difference of two stores' identities."""
    found: list[tuple[str, Any, Any]] = []

    def compare(path: str, old: Any, new: Any) -> None:
        if path == "teacher.assumed":  # equal values are equal, whoever gave them
            return
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted({*old, *new}):
                compare(f"{path}.{key}", old.get(key), new.get(key))
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for i, (x, y) in enumerate(zip(old, new, strict=True)):
                compare(f"{path}[{i}]", x, y)
        elif old != new:
            found.append((path, old, new))

    before, after = was.to_json(), now.to_json()
    for name in IDENTITY:
        compare(name, before[name], after[name])
    return found
