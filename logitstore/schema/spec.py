"""What a store says about itself: plain frozen records, each to JSON and back."""

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
UNNAMED = "unnamed"  # the teacher of one's own loop, about whom nothing was said
REPLACES, LATTICE_FORMS, TAIL_POINTS = "replaces", "lattice-forms", "tail-points"
LATER_KINDS = frozenset(KINDS) - {"ctc", "rnnt"}  # that version 1.0's first rules do not know
KNOWN_REQUIREMENTS = frozenset({REPLACES, LATTICE_FORMS, TAIL_POINTS}) | LATER_KINDS


@dataclass(frozen=True)
class JsonDataclass:
    """A frozen record that becomes JSON; unknown keys are ignored on the way back (SPEC F5)."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4)."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises ``FormatError`` where a key is missing or of the wrong kind."""
        try:
            known = {f.name for f in fields(cls)}
            return cls(**{k: v for k, v in value.items() if k in known})
        except (TypeError, ValueError, AttributeError, KeyError) as e:
            raise FormatError(f"not a {cls.__name__}: {e}") from None


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
        """Return the JSON object of ``logitstore.json`` (SPEC F4)."""
        return {k: v for k, v in asdict(self).items() if v is not None}


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

    Raises:
        ValueError: a sample rate or frame shift that is not a positive integer, or an offset that is no integer.
    """

    name: str
    sample_rate: int
    frame_shift: int
    heads: tuple[Head, ...] = ()
    features: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    offset: int | None = None

    def __post_init__(self) -> None:
        heads = tuple(h if isinstance(h, Head) else Head.from_json(h) for h in self.heads)
        object.__setattr__(self, "heads", heads)
        # As a store gives it back, so that the same answers compare equal: tuples become lists, keys strings.
        object.__setattr__(self, "features", json.loads(json.dumps(self.features, allow_nan=False)))
        if not (isinstance(self.sample_rate, int) and self.sample_rate > 0):
            raise ValueError(f"a sample rate of {self.sample_rate!r} Hz")
        if not (isinstance(self.frame_shift, int) and self.frame_shift > 0):
            raise ValueError(f"a frame shift of {self.frame_shift!r} samples")
        if not (self.offset is None or type(self.offset) is int):
            raise ValueError(f"a first frame centred on sample {self.offset!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4)."""
        value = {**asdict(self), "heads": [h.to_json() for h in self.heads]}
        if self.offset is None:
            del value["offset"]
        return value

    @property
    def clock(self) -> FrameClock | None:
        """When its frames are; None of an unnamed teacher, whose frame shift nobody gave."""
        if self.name == UNNAMED:
            return None
        offset = None if self.offset is None else Fraction(self.offset, self.sample_rate)
        return FrameClock(Fraction(self.frame_shift, self.sample_rate), offset, self.sample_rate)

    def head(self, stream: str) -> Head | None:
        """The head of a stream; None where the teacher has none."""
        return next((h for h in self.heads if h.stream == stream), None)


@dataclass(frozen=True)
class Column(JsonDataclass):
    """A named array of a shard: every row holds ``(n, *shape)`` items of one dtype.

    Attributes:
        name: e.g. ``ctc.logp``.
        dtype: little-endian numpy dtype name, e.g. ``float16``.
        shape: trailing axes, the same in every row.
        about: what the numbers are, with their unit.
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
        name: ``ctc``, ``rnnt``, ...; also the prefix of its columns.
        kind: one of :data:`logitstore.schema.kinds.KINDS`.
        classes: V of the token table, whether or not rows are over it.
        blank: id of the blank.
        encoding: name and settings, e.g. ``topk:16``.
        form: lattice form, ``full``, ``banded:5``, ...; empty for other kinds.
        width: D of what goes into the head, where that is stored, and of a ``hidden`` stream; 0 elsewhere.
        activation: in front of an RNN-T head that is stored, ``tanh`` or ``relu``; empty elsewhere.
        tail_points: temperatures at which the mass left out is stored, where they are not four (SPEC E20).
        constants: what the stream stores once: ``name``, ``dtype``, ``shape``, ``crc32c`` (SPEC E13).
    """

    name: str
    kind: str
    classes: int
    blank: int
    encoding: str
    form: str = ""
    width: int = 0
    activation: str = ""
    tail_points: int = 0
    constants: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4)."""
        return {k: v for k, v in asdict(self).items() if v or k in ("blank", "form", "encoding")}

    @property
    def stream_kind(self) -> StreamKind:
        """What its rows are."""
        return KINDS[self.kind]

    @property
    def size(self) -> int:
        """Numbers a row stands for: V, or D of a ``hidden`` stream."""
        return self.classes if self.stream_kind.classes else self.width

    def __post_init__(self) -> None:
        object.__setattr__(self, "constants", tuple(self.constants))
        if self.kind not in KINDS:
            raise ValueError(f"a stream of kind {self.kind!r}")
        if not (type(self.classes) is int and 0 < self.classes < 1 << 31):
            raise ValueError(f"{self.classes!r} classes")
        if not (type(self.blank) is int and 0 <= self.blank < self.classes):
            raise ValueError(f"a blank of {self.blank!r}")
        if not (isinstance(self.name, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,31}", self.name)):
            raise ValueError(f"a stream called {self.name!r}")
        if self.tail_points not in (0, 5):
            raise ValueError(f"{self.tail_points!r} points of the tail")
        if not (isinstance(self.encoding, str) and isinstance(self.form, str)):
            raise ValueError(f"an encoding {self.encoding!r} of form {self.form!r}")


@dataclass(frozen=True)
class StoreSpec(JsonDataclass):
    """The content of ``logitstore.json`` (SPEC F4).

    Attributes:
        teacher: who spoke.
        tokens: ``sha256`` of tokens.txt, ``size`` and ``blank``.
        streams: what is kept.
        storage: name and settings of the storage.
        manifest: ``sha256`` and ``utterances`` of the manifest it was made from; empty for one's own loop.
        made_with: versions of the libraries that made it.
        allowed: differences that the user allowed while resuming.
        gates: checks of the teacher that the user skipped, each with ``gate`` and ``reason``.
        requires: features a reader must know, or refuse.
        version: of the format, ``major.minor``.
    """

    teacher: TeacherSpec
    tokens: dict[str, Any]
    streams: tuple[StreamSpec, ...]
    storage: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    allowed: tuple[dict[str, Any], ...] = ()
    gates: tuple[dict[str, Any], ...] = ()
    requires: tuple[str, ...] = ()
    version: str = VERSION

    def __post_init__(self) -> None:
        teacher: Any = self.teacher
        if not isinstance(teacher, TeacherSpec):
            object.__setattr__(self, "teacher", TeacherSpec.from_json(teacher))
        streams = tuple(s if isinstance(s, StreamSpec) else StreamSpec.from_json(s) for s in self.streams)
        object.__setattr__(self, "streams", streams)
        object.__setattr__(self, "allowed", tuple(self.allowed))
        object.__setattr__(self, "gates", tuple(self.gates))
        object.__setattr__(self, "requires", tuple(self.requires))
        sha256, size, blank = (self.tokens.get(k) for k in ("sha256", "size", "blank"))
        if not (isinstance(sha256, str) and isinstance(size, int) and isinstance(blank, int)):
            raise ValueError(f"tokens {self.tokens!r} without sha256, size and blank")
        if not isinstance(self.storage.get("name"), str):
            raise ValueError(f"a storage {self.storage!r} without its name")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``logitstore.json`` (SPEC F4)."""
        value = {
            "format": "logitstore",
            **asdict(self),
            "teacher": self.teacher.to_json(),
            "streams": [s.to_json() for s in self.streams],
            "allowed": list(self.allowed),
            "gates": list(self.gates),
            "requires": list(self.requires),
        }
        if not self.gates:
            del value["gates"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises ``FormatError`` for another format, a newer major version or an unknown requirement."""
        if value.get("format") != "logitstore":
            raise FormatError("it does not say format: logitstore (SPEC F4)")
        version = str(value.get("version", ""))
        if version.partition(".")[0] != VERSION.partition(".")[0]:
            raise FormatError(
                f"format version {version!r}; this logitstore reads {VERSION.partition('.')[0]}.x (SPEC F5)",
                do="Install a logitstore that reads this version.",
            )
        requires = value.get("requires", [])
        if not isinstance(requires, list | tuple):
            raise FormatError(f"requires is {requires!r}, not a list (SPEC F5)")
        unknown = set(map(str, requires)) - KNOWN_REQUIREMENTS
        if unknown:
            raise FormatError(
                f"it requires {', '.join(sorted(unknown))}, which this logitstore does not know (SPEC F5)",
                do="Install a newer logitstore.",
            )
        return super().from_json(value)

    @property
    def transcript_streams(self) -> tuple[str, ...]:
        """Names of the streams that a transcript can be had from, in order."""
        return tuple(s.name for s in self.streams if s.stream_kind.has_transcript)

    def stream(self, name: str) -> StreamSpec:
        """The stream of that name; raises ``FormatError``."""
        for s in self.streams:
            if s.name == name:
                return s
        raise FormatError(f"no stream {name!r}; there are {', '.join(s.name for s in self.streams)}")


IDENTITY = ("teacher", "tokens", "streams", "storage", "manifest")


def differences(was: StoreSpec, now: StoreSpec) -> list[tuple[str, Any, Any]]:
    """What two stores' identities disagree on: ``(dotted field, was, now)``."""
    found: list[tuple[str, Any, Any]] = []

    def walk(path: str, a: Any, b: Any) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                walk(f"{path}.{key}", a.get(key), b.get(key))
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                walk(f"{path}[{i}]", x, y)
        elif a != b:
            found.append((path, a, b))

    one, two = was.to_json(), now.to_json()
    for name in IDENTITY:
        walk(name, one[name], two[name])
    return found
