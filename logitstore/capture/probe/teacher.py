"""Probe a teacher: the same questions, asked of its own ``forward``, and whether its heads are the answer."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import islice

import torch

from ...corpus.manifest import read_manifest
from ...runner.loader import LoadedUtterance, load
from ...schema.spec import TeacherSpec
from ...teachers.protocol import Seq2Seq, Teacher, Transducer, load_teacher
from ...tokens.formats import read_table
from ..inject.program import roots
from .observer import OutputObserver
from .rank import rank
from .run import ProbeFinding, found_in

UTTERANCES = 4  # a batch
ENCODINGS = {"ctc": "ctc=dense", "rnnt": "rnnt=topk:16", "seq2seq": "seq2seq=topk:16"}


def probe_teacher(
    teacher: str, manifest: str, *, audio_root: str | None = None, tokens: str = "", batches: int, out: str
) -> ProbeFinding:
    """Run the first batches of a manifest through a teacher and say what was seen.

    Args:
        teacher: ``FILE.py:NAME`` or ``FRAMEWORK:WHERE``.
        manifest: JSON lines.
        audio_root: what its relative paths are relative to.
        tokens: the token table; empty: the teacher's own.
        batches: of four utterances, to watch.
        out: the store that the printed command writes.
    """
    speaker = load_teacher(teacher)
    table = read_table(tokens) if tokens else speaker.tokens()
    utterances = list(read_manifest(manifest, audio_root=audio_root, limit=UTTERANCES * batches))
    speaker.model.eval()
    observer, lengths, rest = OutputObserver(), [], iter(utterances)
    with torch.inference_mode(), observer:
        while part := [load(u, speaker, table, False) for u in islice(rest, UTTERANCES)]:
            observer.batch += 1
            lengths.append(_run(speaker, part))
    tops = roots(list(speaker.model.modules()))
    ranked = rank(list(observer.emitted.values()), tops, len(lengths[0]), None)
    said = {"expression": "teacher.lengths(output)", "values": lengths[0]}
    where = {"lengths": [said], "chosen": said["expression"], "variables": [], "labels": []}
    seen = {**where, "call": None, "accumulate": ""}  # a teacher's module runs once
    report = {
        "candidates": [{**c.to_json(), **seen} for c in ranked],
        "ids": [{"expression": "the manifest", "values": [u.id for u in utterances[:4]]}],
        "texts": "the manifest",
        "batches": observer.batch,
    }
    found = found_in(report, {tokens or "the teacher's own table": table}, (), out)
    spec = speaker.describe()
    words = ["logitstore", "dump", "--teacher", teacher, "--manifest", manifest]
    words += ["--tokens", tokens] if tokens else []
    words += ["--audio-root", audio_root] if audio_root else []
    words += [w for h in spec.heads if h.stream in ENCODINGS for w in ("--stream", ENCODINGS[h.stream])]
    return replace(found, command=shlex.join([*words, "--out", out]), notes=_compare(spec, found))


def _run(teacher: Teacher, batch: list[LoadedUtterance]) -> list[int]:
    """One padded batch, a slice of a lattice, a decoder on one text; gives the valid frames."""
    features = torch.nn.utils.rnn.pad_sequence([item.features for item in batch], batch_first=True)
    output = teacher.forward(features, torch.tensor([len(item.features) for item in batch]))
    if isinstance(teacher, Transducer):
        enc, dec = teacher.transducer(output, 0, teacher.labels(batch[0].utt.text or ""))
        teacher.join(enc, dec)
    head = teacher.describe().head("seq2seq")
    if head is not None and isinstance(teacher, Seq2Seq):
        said = teacher.labels(batch[0].utt.text or "")
        teacher.decode(output, 0, [*said, head.blank if head.end is None else head.end])
    return [int(n) for n in teacher.lengths(output)]


def _compare(spec: TeacherSpec, found: ProbeFinding) -> tuple[str, ...]:
    """Whether the heads that a teacher names are what was seen."""
    notes = []
    seen = {c["path"]: c for c in found.candidates}
    for head in spec.heads:
        here = seen.get(head.module)
        likeliest = {"ctc": found.ctc, "rnnt": found.rnnt}.get(head.stream)
        if here is None:
            notes.append(f"the teacher's {head.stream} head {head.module} gave nothing like logits")
        elif here is not likeliest and likeliest is not None:
            notes.append(f"the teacher's {head.stream} head is {head.module}, not {likeliest['path']}")
        elif head.stream == "ctc" and head.layout != here["layout"]:
            notes.append(f"the teacher's ctc head says {head.layout}; it gave {here['layout']}")
        if here is not None and found.blank.index not in (None, head.blank):
            notes.append(f"the teacher's {head.stream} head says blank {head.blank}")
    return tuple(notes)
