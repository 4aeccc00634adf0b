"""Probe of a teacher, by its own methods, and comparison with its description of itself."""

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
from .finding import FoundValues, ProbedHead, ProbeFinding, ProbeReport
from .observer import OutputObserver
from .rank import rank
from .run import finding_of

BATCH_SIZE = 4
STREAM_OPTIONS = {"ctc": "ctc=dense", "rnnt": "rnnt=topk:16", "seq2seq": "seq2seq=topk:16"}


def probe_teacher(
    teacher: str,
    manifest: str,
    *,
    audio_root: str | None = None,
    tokens: str = "",
    batches: int = 2,
    out: str = "store",
) -> ProbeFinding:
    """Run a teacher on the first utterances of a manifest, and return where its logits are.

    Args:
        teacher: ``FILE.py:NAME`` or ``FRAMEWORK:WHERE``.
        manifest: file of the manifest.
        audio_root: folder that relative audio paths start from.
        tokens: file of the token table. Empty: the teacher's own table.
        batches: number of batches of four utterances.
        out: store that the printed command writes.

    Raises:
        ManifestError: the manifest cannot be read.
        TeacherError: the teacher breaks its protocol.
    """
    model = load_teacher(teacher)
    table = read_table(tokens) if tokens else model.tokens()
    utterances = list(read_manifest(manifest, audio_root=audio_root, limit=BATCH_SIZE * batches))
    model.model.eval()
    observer, lengths = OutputObserver(), []
    remaining = iter(utterances)
    with torch.inference_mode(), observer:
        while batch := [load(u, model, table, False) for u in islice(remaining, BATCH_SIZE)]:
            observer.batch += 1
            lengths.append(_run(model, batch))
    ranked = rank(list(observer.emitted.values()), roots(list(model.model.modules())), len(lengths[0]), None)
    found_lengths = FoundValues("teacher.lengths(output)", tuple(lengths[0]))
    heads = (
        ProbedHead(
            **{name: getattr(candidate, name) for name in candidate.to_json()},
            lengths=(found_lengths,),
            lengths_expression=found_lengths.expression,
        )
        for candidate in ranked
    )
    report = ProbeReport(
        heads=tuple(heads),
        ids=(FoundValues("the manifest", tuple(u.id for u in utterances[:BATCH_SIZE])),),
        texts="the manifest",
        blanks={},
        batches=observer.batch,
    )
    finding = finding_of(report, {tokens or "the teacher's own table": table}, (), out)
    spec = model.describe()
    words = ["logitstore", "dump", "--teacher", teacher, "--manifest", manifest]
    words += ["--tokens", tokens] if tokens else []
    words += ["--audio-root", audio_root] if audio_root else []
    for head in spec.heads:
        if head.stream in STREAM_OPTIONS:
            words += ["--stream", STREAM_OPTIONS[head.stream]]
    words += ["--out", out]
    return replace(finding, command=shlex.join(words), notes=_contradictions(spec, finding))


def _run(teacher: Teacher, batch: list[LoadedUtterance]) -> list[int]:
    """Run a padded batch, a slice of a lattice and a decoder on one text; return the valid frames."""
    features = torch.nn.utils.rnn.pad_sequence([item.features for item in batch], batch_first=True)
    output = teacher.forward(features, torch.tensor([len(item.features) for item in batch]))
    if isinstance(teacher, Transducer):
        enc, dec = teacher.transducer(output, 0, teacher.labels(batch[0].utt.text or ""))
        teacher.join(enc, dec)
    head = teacher.describe().head("seq2seq")
    if head is not None and isinstance(teacher, Seq2Seq):
        labels = teacher.labels(batch[0].utt.text or "")
        teacher.decode(output, 0, [*labels, head.blank if head.end is None else head.end])
    return [int(n) for n in teacher.lengths(output)]


def _contradictions(spec: TeacherSpec, finding: ProbeFinding) -> tuple[str, ...]:
    """Return in which points a teacher's description differs from what was seen."""
    notes = []
    seen = {head.path: head for head in finding.candidates}
    likeliest = {"ctc": finding.ctc, "rnnt": finding.rnnt}
    for head in spec.heads:
        found, best = seen.get(head.module), likeliest.get(head.stream)
        name = f"the teacher's {head.stream} head"
        if found is None:
            notes.append(f"{name} {head.module} gave nothing like logits")
            continue
        if best is not None and found is not best:
            notes.append(f"{name} is {head.module}, not {best.path}")
        elif head.stream == "ctc" and head.layout != found.layout:
            notes.append(f"{name} says {head.layout}; it gave {found.layout}")
        if finding.blank.index not in (None, head.blank):
            notes.append(f"{name} says blank {head.blank}")
    return tuple(notes)
