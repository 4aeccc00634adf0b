"""Typed descriptions of a capture and of a probe.

The parent process writes one of them as JSON into the session folder. Each injected process reads it once,
when the process has imported torch (``inject.start``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ..errors import UsageError
from ..storage.shard_size import DEFAULT_SHARD_SIZE
from .expression import Expression

DEFAULT_ENCODINGS = {"ctc": "dense", "rnnt": "topk:16"}
LAYOUTS = ("BTV", "BVT", "TBV")
ORDERS = ("proven", "assumed")
ENCODER_LAYOUTS = ("BTD", "BDT", "TBD")
PATH_FLAGS = {"ctc": "--ctc", "rnnt": "--joiner"}  # by stream


@dataclass(frozen=True, kw_only=True)
class CaptureOptions:
    """Settings of a capture. Building them checks only that they agree; no file is read and nothing is run.

    An EXPR is a small expression that is looked up in the program at the moment a tapped module runs; see
    :mod:`logitstore.capture.expression`.

    Attributes:
        ctc: path of the module whose output is the CTC logits, below the outermost module that has this path;
            ``fn:PATH.weight`` for logits that are a product with that weight.
        joiner: path of a transducer's joiner. With ``labels`` and without ``encoder``, the joiner's own
            output is stored: the whole lattice (B, T, U+1, V), the packed lattice (N, V), or the pruned
                lattice
            (B, T, S, V) with its ``ranges``. Otherwise capture runs the joiner itself on the captured encoder
            output.
        labels: EXPR for the label ids, one row per utterance, padded with the blank or with negative ids.
            Empty: the tokenised texts of the batch, or the teacher's greedy decode where there are no texts.
        greedy: use the teacher's greedy decode as labels even where the batch has texts.
        encoder: path of the module whose output goes into the joiner; ``input:PATH`` for the input of that
            module. Empty: the path known for the model's framework.
        encoder_layout: axes of the encoder output, ``BTD``, ``BDT`` or ``TBD``. Empty: found by the joiner's
            input width.
        joiner_adapter: ``FILE.py:NAME``, a function that returns a
            :class:`logitstore.teachers.joiners.JoinerAdapter` for the model. Needed for joiners of a
            framework that logitstore does not know.
        bpe: file of the SentencePiece model that tokenises the texts.
        ranges: EXPR for the ranges (B, T, S) of a pruned lattice. Empty: a variable of that shape is looked
            for.
        durations: number of columns after the tokens that hold the durations of a TDT joiner.
        layout: axes of the CTC output, ``BTV``, ``BVT`` or ``TBV``.
        skip_rows: number of rows in front of the frames of each utterance that are no frames, such as the queries of
            SenseVoice. They are left out of the CTC logits and of the lengths.
        call: index, from 0, of the call to store where the module runs several times per batch. None: the
            module must run once per batch.
        accumulate: ``t`` where the calls of one batch are consecutive frames, ``b`` where they are
            consecutive utterances. Empty: each call is a whole batch.
        ids: EXPR for the utterance ids. Empty: looked for in the batch.
        lengths: EXPR for the valid lengths in frames. Empty: looked for in the first batch.
        order: ``proven``, or ``assumed`` where the program is known to keep the order of the loader's batches. Then a
            batch is stored too whose rows nothing proves to belong to the ids.
        tokens: file of the token table. Empty: classes are named by their number.
        blank: id of the blank. None: as the token table or the model says; else 0, which the store marks as
            assumed.
        streams: encoding by stream name. A stream that is left out gets ``dense`` (ctc) or ``topk:16``
            (rnnt).
        storage: storage backend and compressor, such as ``zarr`` or ``webdataset``.
        name: name of the teacher in the store. Empty: the class name of the model.
        sample_rate: audio samples per second. None: 16000, which the store marks as assumed.
        frame_shift: audio samples between two teacher frames. None: 640, which the store marks as assumed. With
            either of the two assumed, no length of the audio is stored.
        shard_size: size of a shard: utterances, audio or bytes.
        allow_different: fields in which the store may differ from this capture when it is resumed.

    Raises:
        UsageError: two options contradict each other, or a value is not one of the allowed ones.
    """

    ctc: str = ""
    joiner: str = ""
    labels: str = ""
    greedy: bool = False
    encoder: str = ""
    encoder_layout: str = ""
    joiner_adapter: str = ""
    bpe: str = ""
    ranges: str = ""
    durations: int = 0
    layout: str = "BTV"
    skip_rows: int = 0
    call: int | None = None
    accumulate: str = ""
    ids: str = ""
    lengths: str = ""
    order: str = "proven"
    tokens: str = ""
    blank: int | None = None
    streams: Mapping[str, str] = field(default_factory=dict)
    storage: str = "zarr"
    name: str = ""
    sample_rate: int | None = None
    frame_shift: int | None = None
    shard_size: str = DEFAULT_SHARD_SIZE
    allow_different: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.paths:
            raise UsageError(
                "no module is named whose output should be captured",
                do="Set ctc (--ctc PATH), joiner (--joiner PATH), or both; logitstore probe finds the paths.",
            )
        _require_one_of("layout", self.layout, LAYOUTS)
        _require_one_of("encoder_layout", self.encoder_layout, ("", *ENCODER_LAYOUTS))
        _require_one_of("order", self.order, ORDERS)
        _require_one_of("accumulate", self.accumulate, ("", "t", "b"))
        if self.skip_rows and (self.joiner or self.accumulate):
            raise UsageError(
                "skip_rows is for a CTC head that gives whole utterances",
                do="Leave out joiner and accumulate, or skip_rows (--skip-rows).",
            )
        self._check_joiner()
        self._check_accumulate()
        if extra := sorted(set(self.streams) - set(self.paths)):
            raise UsageError(
                f"an encoding is given for the stream {', '.join(extra)}, but no module of it is captured",
                where="--stream",
                do="Leave it out, or name the module: ctc (--ctc PATH), joiner (--joiner PATH).",
            )
        for name in ("ids", "lengths", "labels", "ranges"):
            if text := getattr(self, name):
                Expression(text, f"--{name}")

    @property
    def paths(self) -> dict[str, str]:
        """Module path by stream name, for the streams that are captured."""
        return {s: path for s, path in (("ctc", self.ctc), ("rnnt", self.joiner)) if path}

    @property
    def encodings(self) -> dict[str, str]:
        """Encoding by stream name, defaults filled in."""
        return {stream: self.streams.get(stream, DEFAULT_ENCODINGS[stream]) for stream in self.paths}

    @property
    def runs_joiner(self) -> bool:
        """True where capture runs the joiner itself; else the program's own joiner output is stored."""
        return bool(self.joiner) and bool(self.encoder or self.joiner_adapter or not self.labels)

    def flag(self, stream: str) -> str:
        """Return the option that named a stream's module, as written on the command line, for messages."""
        return f"{PATH_FLAGS[stream]} {self.paths[stream]}"

    def check_components(self) -> None:
        """Load the encodings and the storage backend; raise ``UsageError`` where one is wrong."""
        from ..encodings import parse_encoding
        from ..schema.lattice import Form
        from ..storage import parse_storage

        for encoding in self.encodings.values():
            name, has_form, form = encoding.partition("/")
            parse_encoding(name)
            Form.parse(form if has_form else "full")
        parse_storage(self.storage)

    def _check_joiner(self) -> None:
        """Refuse options that have no effect on how the joiner is captured."""
        always: dict[str, object] = {"--labels": self.labels, "--durations": self.durations}
        when_run: dict[str, object] = {
            "--encoder": self.encoder,
            "--encoder-layout": self.encoder_layout,
            "--joiner-adapter": self.joiner_adapter,
            "--bpe": self.bpe,
            "--greedy": self.greedy,
        }
        when_stored: dict[str, object] = {"--ranges": self.ranges}
        if not self.joiner:
            for flag, value in {**always, **when_run, **when_stored}.items():
                if value:
                    raise UsageError(
                        f"{flag} has no effect without a joiner",
                        do="Name the joiner: joiner (--joiner PATH).",
                    )
            return
        if self.runs_joiner:
            without_effect = {**when_stored, "--accumulate": self.accumulate}
            how = "capture runs the joiner itself"
        else:
            without_effect, how = when_run, "the joiner's own output is stored"
        if given := [flag for flag, value in without_effect.items() if value]:
            raise UsageError(
                f"{given[0]} has no effect where {how}",
                where=f"--joiner {self.joiner}",
                do="Set labels and leave encoder out to store the joiner's own output; otherwise capture "
                "runs the joiner.",
            )
        if self.labels and (self.greedy or self.bpe):
            raise UsageError("the labels are given in two ways", do="Set only one of labels, bpe and greedy.")
        if self.bpe and not self.tokens:
            raise UsageError(
                "bpe is given without a token table",
                why="The pieces of the SentencePiece model are looked up in the table.",
                do="Set tokens (--tokens FILE).",
            )

    def _check_accumulate(self) -> None:
        if self.accumulate and self.call is not None:
            raise UsageError(
                "accumulate joins all calls of a module, and call selects one of them",
                do="Leave one of the two out.",
            )
        if self.accumulate == "t" and self.joiner:
            raise UsageError(
                "accumulate 't' is for CTC outputs; a lattice cannot be joined along its frames",
                do="Where the joiner runs on a few utterances at a time, use accumulate 'b'.",
            )


@dataclass(frozen=True, kw_only=True)
class CaptureJob:
    """Settings of a capture for the injected process.

    Attributes:
        out: location of the store; an absolute path, or a URL.
        session: name of this run, part of the names of its writers.
        handover: name of the staging folder in which finished shards wait until the parent process seals them.
        options: settings of the capture, with absolute file paths.
    """

    out: str
    session: str
    handover: str
    options: CaptureOptions

    def writer(self, pid: int | None = None) -> str:
        """Return the name of a process's writer, with which its shards' names begin; of all without ``pid``."""
        return f"capture-{self.session}-" + ("" if pid is None else str(pid))

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values; :func:`job_from_json` reads them."""
        return {"kind": "capture", **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build the job from JSON values; raise ``UsageError`` for unknown or missing keys."""
        given = _checked_keys(cls, value)
        options = _checked_keys(CaptureOptions, given["options"])
        options["allow_different"] = tuple(options["allow_different"])
        return cls(**{**given, "options": CaptureOptions(**options)})


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """Settings of a probe for the injected process.

    Attributes:
        batches: number of batches to watch.
        classes: V, where a token table was given; other widths are left out. None: any width.
    """

    batches: int
    classes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values; :func:`job_from_json` reads them."""
        return {"kind": "probe", **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build the job from JSON values; raise ``UsageError`` for unknown or missing keys."""
        return cls(**_checked_keys(cls, value))


def job_from_json(value: Mapping[str, Any]) -> CaptureJob | ProbeJob:
    """Build a job of the kind that its JSON names; raise ``UsageError`` for an unknown kind or wrong keys."""
    rest = dict(value)
    kind = rest.pop("kind", None)
    if kind == "capture":
        return CaptureJob.from_json(rest)
    if kind == "probe":
        return ProbeJob.from_json(rest)
    raise _other_version(f"a job of unknown kind {kind!r}")


def _checked_keys(cls: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass; raise ``UsageError`` unless they are exactly its fields."""
    wanted = {f.name for f in fields(cls)}
    if wrong := sorted(set(value) ^ wanted):
        missing = [name for name in wrong if name in wanted]
        unknown = [name for name in wrong if name not in wanted]
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has the unknown keys {', '.join(unknown)}"] if unknown else []
        raise _other_version(f"a {cls.__name__} that {' and '.join(parts)}")
    return dict(value)


def _other_version(what: str) -> UsageError:
    return UsageError(
        f"the job file holds {what}",
        why="The program's process loads another version of logitstore than the process that started it.",
        do="Install one version of logitstore, and start the capture or probe again.",
    )


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(
            f"{name} is {value!r}, which is not one of the allowed values",
            do=f"Use {', '.join(a for a in allowed if a)}.",
        )
