"""Capture: a user's unmodified recipe runs, and what its model says goes into a store.

The recipe's processes write (``capturing``, ``scribe``); what each has left at its end waits aside, under a
lock that this process holds, and is sealed only once the whole recipe has ended well.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..encodings import parse_encoding
from ..errors import TapNeverFired, TeacherError, UsageError
from ..schema.lattice import Form
from ..storage import parse_storage
from ..storage.commit import finish_store, publish
from ..storage.entries import parse_entry
from ..storage.places import Place, open_place
from .expression import Expression
from .inject.launch import Session, run, session

ENCODINGS = {"ctc": "dense", "rnnt": "topk:16"}
NOTES = (
    "ids",
    "lengths",
    "encoder",
    "labels",
    "ranges",
    "rnnt",
    "ctc",
    "eval",
)  # of a report, said to the user


@dataclass(frozen=True)
class CaptureOptions:
    """How to capture.

    Attributes:
        ctc: path of the module whose output is the CTC logits, below the outermost module that has it.
        joiner: path of a transducer's joiner. With ``labels`` and no ``encoder`` its own output is taken:
            the whole lattice (B, T, U+1, V), packed (N, V), or pruned (B, T, S, V) with ``ranges``.
            Otherwise the recipe never makes it, and it is driven here (``driving``).
        labels: expression for its labels: rows of ids, padded with the blank or negative ids; empty: of the
            batch's texts, or the teacher's own decode where it has none, and always with ``greedy``.
        encoder: module whose output the joiner is driven with, ``input:PATH`` for its input; empty: as the
            model's framework has it. ``encoder_layout``: its axes, where they are not found.
        drive: ``FILE.py:NAME`` for a joiner of no known convention.
        bpe: SentencePiece model that makes labels of the texts.
        ranges: expression for the ranges (B, T, S) of a pruned joint; empty: found beside it.
        durations: columns behind the tokens that are a TDT joint's durations, and no classes.
        layout: axes of the CTC output: ``BTV``, ``BVT`` or ``TBV``.
        call: which call to keep where the module runs several times a batch, from 0; None: it runs once.
        accumulate: that its calls in a batch are pieces of one answer: ``t``, the next frames of the same
            utterances, or ``b``, the next utterances; of the joiner, where there is one: ``b``.
        ids: expression for the ids; empty: found in the batch.
        lengths: expression for the valid lengths; empty: found among the tensors of the first batch.
        tokens: the token table; empty: classes are named by their number.
        blank: id of the blank; None: as the table says, or 0.
        streams: encoding by stream name; ``dense`` for ctc and ``topk:16`` for rnnt where it is not given.
        storage: ``zarr``, ``webdataset``, ...
        name: of the teacher; empty: the class of the model.
        sample_rate: Hz, and
        frame_shift: samples between two teacher frames: what the store says of them.
        shard_rows: utterances a shard.
        allow_different: fields in which a store may differ when it is resumed.
        driven: whether the joiner is driven here: follows from the others.
    """

    ctc: str = ""
    joiner: str = ""
    labels: str = ""
    greedy: bool = False
    encoder: str = ""
    encoder_layout: str = ""
    drive: str = ""
    bpe: str = ""
    ranges: str = ""
    durations: int = 0
    layout: str = "BTV"
    call: int | None = None
    accumulate: str = ""
    ids: str = ""
    lengths: str = ""
    tokens: str = ""
    blank: int | None = None
    streams: dict[str, str] = field(default_factory=dict)
    storage: str = "zarr"
    name: str = ""
    sample_rate: int = 16000
    frame_shift: int = 640
    shard_rows: int = 500
    allow_different: tuple[str, ...] = ()
    driven: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.layout not in ("BTV", "BVT", "TBV"):
            raise UsageError(f"no layout {self.layout!r}", do="BTV, BVT or TBV.")
        asked = {"ctc": self.ctc, "rnnt": self.joiner}
        if not any(asked.values()):
            raise UsageError("nothing to tap", do="--ctc PATH, or --joiner PATH, or both.")
        driven = bool(self.joiner) and bool(self.encoder or self.drive or not self.labels)
        object.__setattr__(self, "driven", driven)
        self._require_joiner()
        if self.accumulate not in ("", "t", "b"):
            raise UsageError(f"no axis {self.accumulate!r} to accumulate along", do="t or b.")
        if self.accumulate and self.call is not None:
            raise UsageError("--accumulate joins all calls of a module", do="Leave --call out.")
        if self.accumulate == "t" and self.joiner:
            raise UsageError(
                "a lattice in pieces of frames",
                do="Where its joiner runs on a few utterances at a time: --accumulate b.",
            )
        streams = {s: self.streams.get(s, ENCODINGS[s]) for s, path in asked.items() if path}
        if extra := set(self.streams) - set(streams):
            raise UsageError(f"no module is tapped for {', '.join(extra)}", where="--stream")
        object.__setattr__(self, "streams", streams)
        given = {"--ids": self.ids, "--lengths": self.lengths, "--labels": self.labels}
        given["--ranges"] = self.ranges
        for option, text in given.items():
            if text:
                Expression(text, option)
        for encoding in self.streams.values():
            how, found, form = encoding.partition("/")
            parse_encoding(how)
            Form.parse(form if found else "full")
        parse_storage(self.storage)

    def _require_joiner(self) -> None:
        """Refuse options that would mean nothing."""
        if self.encoder_layout not in ("", "BTD", "BDT", "TBD"):
            raise UsageError(f"no layout {self.encoder_layout!r}", do="BTD, BDT or TBD.")
        of_any = {"--labels": self.labels, "--durations": self.durations}
        of_driven = {
            "--encoder": self.encoder,
            "--encoder-layout": self.encoder_layout,
            "--drive": self.drive,
            "--bpe": self.bpe,
            "--greedy": self.greedy,
        }
        of_tapped = {"--ranges": self.ranges, "--accumulate": self.accumulate}
        for option, value in {**of_any, **of_driven, **of_tapped}.items():
            if value and not self.joiner and option != "--accumulate":  # which a ctc module may need too
                raise UsageError(f"{option} without a joiner", do="--joiner PATH")
        wrong = of_tapped if self.driven else of_driven
        if said := [option for option, value in wrong.items() if value]:
            how = "is driven here" if self.driven else "is taken as the recipe runs it"
            raise UsageError(
                f"{said[0]} means nothing where the joiner {how}",
                where=f"--joiner {self.joiner}",
                do="With --labels, without --encoder the recipe's own lattice is taken; else it is driven.",
            )
        if self.labels and (self.greedy or self.bpe):
            raise UsageError("labels from two places", do="--labels EXPR, or --bpe FILE, or --greedy.")
        if self.bpe and not self.tokens:
            raise UsageError("--bpe needs a token table", do="--tokens FILE")


@dataclass(frozen=True)
class Captured:
    """How a capture ended.

    Attributes:
        status: the recipe's own exit status.
        rows: utterances written.
        present: utterances it ran again that were there already.
        processes: that wrote.
        errors: why the capture failed although the recipe did not.
        notes: what was found out: where the lengths are, ...
    """

    status: int
    rows: int = 0
    present: int = 0
    processes: int = 0
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def capture(command: Sequence[str], out: Any, options: CaptureOptions) -> Captured:
    """Run a command and capture; nothing is sealed of a process or a recipe that failed.

    Args:
        command: program and arguments.
        out: the store; made, or resumed.
        options: how.

    Raises ``UsageError`` where the command cannot be started.
    """
    place = open_place(out)
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
    job = {
        **asdict(options),
        "story": "capture",
        "out": os.path.abspath(str(place)),
        "session": name,
        "handover": f"handover-{name}",
        **{n: os.path.abspath(p) if (p := getattr(options, n)) else "" for n in ("tokens", "drive", "bpe")},
    }
    fresh = not place.exists()
    try:
        with place.lock(job["handover"]), session(job) as started:
            status = run(command, started)
            done = _settle(place, job, started, status)
            place.remove(f"partial/{job['handover']}")
        if place.exists("logitstore.json"):
            finish_store(place)
    finally:
        if fresh and (local := place.local()) is not None:
            with suppress(OSError):
                Path(local).rmdir()  # only where it is empty
    return done


def _settle(place: Place, job: dict[str, Any], started: Session, status: int) -> Captured:
    """Seal what waits, if all went well; say what happened."""
    reports = started.reports()
    errors = [str(r["error"]) for r in reports if r.get("error")]
    lost = [r for r in reports if r["state"] == "capturing"]
    errors += [str(_lost(r)) for r in lost if not status]
    wrote = [r for r in reports if "rows" in r]
    if not (errors or status or wrote):
        errors.append(str(_never(job, reports)))
    if not (errors or status):
        for r in wrote:
            if "entry" in r:
                entry = parse_entry(r["entry"].encode("utf-8"), r["shard"], "handover")
                staged = place.stage(job["handover"]) / entry.shard
                publish(place, parse_storage(job["storage"]), staged, entry)
    notes = [f"{what}: {r[what]}" for r in reports for what in NOTES if r.get(what)]
    return Captured(
        status,
        sum(r["rows"] for r in wrote),
        sum(r["present"] for r in wrote),
        len(wrote),
        tuple(dict.fromkeys(errors)),
        tuple(dict.fromkeys(notes)),
    )


def _lost(report: dict[str, Any]) -> TeacherError:
    return TeacherError(
        "a process of the recipe ended without a word, while it was capturing",
        where=f"process {report['pid']}: {' '.join(report['argv'])[:200]}",
        why="It was killed, or left by os._exit: its last utterances are lost.",
        do="What was sealed stays; run the same command again to go on.",
    )


def _never(job: dict[str, Any], reports: list[dict[str, Any]]) -> TapNeverFired:
    where = " ".join(f"--{o} {job[o]}" for o in ("ctc", "joiner") if job[o])
    if not reports:
        return TapNeverFired(
            "no Python process below the command imported torch with the start-up hook",
            where=where,
            why="Something resets PYTHONPATH, or puts another sitecustomize.py in front, or runs python with "
            "-I, -E or -S, or in a container.",
            do="Put $PYTHONPATH behind what the recipe sets: export PYTHONPATH=…:$PYTHONPATH.",
        )
    if any(r["state"] == "found" for r in reports):
        return TapNeverFired(
            "the module is there, but did not run",
            where=where,
            why="Scripted and bypassed modules run no hook; nor do products with only a part of a weight.",
            do="Ask logitstore probe which modules run.",
        )
    near = {name: text for r in reports for name, text in r.get("near", {}).items()}
    return TapNeverFired(
        "no model of the recipe has a module at that path",
        where=where,
        do=" ".join(f"In {name}: {text}" for name, text in near.items()) or "Ask logitstore probe.",
    )
