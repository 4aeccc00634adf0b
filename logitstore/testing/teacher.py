"""Conformance suite of teachers (:mod:`logitstore.teachers.protocol`), on one recording.

Run every check on one's own teacher, with a recording that it transcribes well::

    import pytest
    from logitstore.testing import teacher as suite

    RECORDING = suite.Recording(audio, "the text of the recording")

    @pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
    def test_my_teacher(check):
        check(load_my_teacher(), RECORDING)

Checks of branches that a teacher does not have pass. Two faults that the suite cannot see on one recording
are found by ``dump`` on the first batch: a token table in another order, and a text in other units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import LogitStoreError
from ..runner.checks import require_logits
from ..schema.kinds import kind_of
from ..schema.spec import Head, TeacherSpec
from ..teachers.protocol import check_deterministic, check_protocol
from ..teachers.tap import Tap
from ..tokens.table import TokenTable
from . import expect

SAME = 1e-3  # difference of probabilities that batching and slicing may cost in float32
CONSTANT = 1e-6  # probabilities that change less from frame to frame do not depend on the audio


@dataclass(frozen=True)
class Recording:
    """A recording that a teacher is checked with.

    Attributes:
        audio: (samples,) float32 in [-1, 1], at the teacher's sample rate; a second or more of speech.
        text: transcript, for teachers with labels; empty for one label, token 1.
    """

    audio: NDArray[np.float32]
    text: str = ""


@dataclass(frozen=True)
class ForwardPass:
    """The output of one forward pass over a batch.

    Attributes:
        output: result of ``teacher.forward``.
        lengths: (B,) valid frames.
        rows: (B, T, V) logits, or (B, T, D) numbers, of every tapped stream.
    """

    output: Any
    lengths: torch.Tensor
    rows: dict[str, torch.Tensor]


def forward(teacher: Any, *audio: NDArray[np.float32]) -> ForwardPass:
    """Run a teacher on a batch of recordings, in evaluation mode and with its heads tapped."""
    teacher.model.eval()
    features = [teacher.features(one) for one in audio]
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    counts = torch.tensor([len(one) for one in features])
    heads = _tapped_heads(teacher)
    paths = {stream: head.module for stream, head in heads.items()}
    layouts = {stream: head.layout for stream, head in heads.items()}
    with torch.inference_mode(), Tap(teacher.model, paths, layouts=layouts) as tap:
        output = teacher.forward(padded, counts)
        rows = {stream: tap.take(stream) for stream in heads}
    return ForwardPass(output, teacher.lengths(output), rows)


def _tapped_heads(teacher: Any) -> dict[str, Head]:
    """Return the heads that run within ``forward``, by stream."""
    return {head.stream: head for head in teacher.describe().heads if kind_of(head.stream).tapped}


def _labels(teacher: Any, recording: Recording) -> list[int]:
    """Return the labels of the transcript, or token 1 without one."""
    return list(teacher.labels(recording.text)) if recording.text else [1]


def check_methods(teacher: Any, recording: Recording) -> None:
    """Check the methods of the protocol, and of the branches that the teacher describes."""
    try:
        check_protocol(teacher, "the teacher")
    except LogitStoreError as e:
        raise AssertionError(str(e)) from None
    needed = {"rnnt": ("labels", "transducer", "join"), "seq2seq": ("labels", "decode")}
    for stream, methods in needed.items():
        if teacher.describe().head(stream) is not None:
            missing = [name for name in methods if not hasattr(teacher, name)]
            expect(not missing, f"the head {stream!r} needs the methods {', '.join(missing)}")


def check_description(teacher: Any, recording: Recording) -> None:
    """Check that ``describe`` gives a spec of known streams, with the blank of the token table."""
    spec, table = teacher.describe(), teacher.tokens()
    expect(isinstance(spec, TeacherSpec), f"describe() gives a {type(spec).__name__}, not a TeacherSpec")
    expect(isinstance(table, TokenTable), f"tokens() gives a {type(table).__name__}, not a TokenTable")
    expect(spec == teacher.describe(), "two calls of describe() give different specs")
    for head in spec.heads:
        if kind_of(head.stream).classes:
            expect(head.blank == table.blank, f"{head.stream}: blank {head.blank}, the table's {table.blank}")


def check_features(teacher: Any, recording: Recording) -> None:
    """Check that ``features`` gives finite (T0, F) float32 on the CPU, and always the same."""
    before = recording.audio.copy()
    features = teacher.features(recording.audio)
    good = features.dim() == 2 and features.dtype == torch.float32 and features.device.type == "cpu"
    kind = f"{tuple(features.shape)} {features.dtype} on {features.device}"
    expect(good, f"features() gives {kind}, not (T0, F) float32 on the CPU")
    expect(bool(features.isfinite().all()), "features() gives NaN or infinity")
    expect(torch.equal(features, teacher.features(recording.audio)), "two calls of features() differ")
    expect(bool((before == recording.audio).all()), "features() wrote to the audio that it was given")


def check_forward(teacher: Any, recording: Recording) -> None:
    """Check that every head runs once per forward pass, and its shape, lengths and classes."""
    try:
        made = forward(teacher, recording.audio)
    except LogitStoreError as e:
        raise AssertionError(str(e)) from None
    lengths = made.lengths
    expect(lengths.shape == (1,), f"lengths() gives {tuple(lengths.shape)} for a batch of one, not (1,)")
    expect(lengths.dtype in (torch.int32, torch.int64), f"lengths() gives {lengths.dtype}, no whole numbers")
    frames = int(lengths[0])
    expect(frames > 0, f"lengths() gives {frames} frames")
    classes = len(teacher.tokens())
    for stream, rows in made.rows.items():
        shape = tuple(rows.shape)
        expect(rows.dim() == 3 and len(rows) == 1, f"the head {stream!r} gives {shape}, not (1, T, V)")
        expect(frames <= shape[1], f"{frames} valid frames, and {shape[1]} rows of {stream!r}")
        if kind_of(stream).classes:
            expect(shape[2] == classes, f"{stream!r} has {shape[2]} classes, the token table {classes}")
        expect(bool(rows[:, :frames].isfinite().all()), f"{stream!r} holds NaN or infinity")


def check_times(teacher: Any, recording: Recording) -> None:
    """Check that valid frames at the described frame shift last as long as the audio, within four."""
    spec = teacher.describe()
    if not spec.frame_shift:
        return
    frames = int(forward(teacher, recording.audio).lengths[0])
    wanted = len(recording.audio) / spec.frame_shift
    expect(
        abs(frames - wanted) <= 4, f"{frames} frames of {spec.frame_shift} samples, but {wanted:.1f} of audio"
    )


def check_logits(teacher: Any, recording: Recording) -> None:
    """Check that heads give logits which change from frame to frame and are the model's distribution."""
    made = forward(teacher, recording.audio)
    frames = int(made.lengths[0])
    for stream, rows in made.rows.items():
        if not kind_of(stream).classes:
            continue
        logits = rows[0, :frames].float()
        try:
            require_logits(logits, stream, "the recording")
        except LogitStoreError as e:
            raise AssertionError(str(e)) from None
        p = logits.softmax(-1)
        expect(float((p - p[:1]).abs().max()) > CONSTANT, f"{stream!r} gives the same row on every frame")
        if not hasattr(teacher, "log_probs"):
            continue
        with torch.inference_mode():
            own = teacher.log_probs(made.output).get(stream)
        if own is not None:
            worst = float((p - own[0, :frames].float().exp()).abs().max())
            expect(worst < SAME, f"log_probs() and the tapped {stream!r} differ by {worst:.1e}")


def check_same_twice(teacher: Any, recording: Recording) -> None:
    """Check that two forward passes over one batch give the same numbers: no dropout is live."""
    teacher.model.eval()
    features = teacher.features(recording.audio)
    try:
        check_deterministic(teacher, features[None], torch.tensor([len(features)]))
    except LogitStoreError as e:
        raise AssertionError(str(e)) from None


def check_padding(teacher: Any, recording: Recording) -> None:
    """Check that a recording gives the same rows alone and beside a longer one."""
    short = recording.audio[: len(recording.audio) * 2 // 3]
    alone, together = forward(teacher, short), forward(teacher, recording.audio, short)
    frames = int(alone.lengths[0])
    expect(
        int(together.lengths[1]) == frames, f"{frames} frames alone, {int(together.lengths[1])} in a batch"
    )
    for stream in alone.rows:
        a, b = alone.rows[stream][0, :frames].float(), together.rows[stream][1, :frames].float()
        if kind_of(stream).classes:
            worst = float((a.softmax(-1) - b.softmax(-1)).abs().max())
        else:
            worst = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        expect(worst < SAME, f"{stream!r} differs by {worst:.1e} alone and beside a longer recording")


def check_labels(teacher: Any, recording: Recording) -> None:
    """Check that ``labels`` gives ids of the token table, without the blank."""
    if not hasattr(teacher, "labels") or not recording.text:
        return
    labels, table = list(teacher.labels(recording.text)), teacher.tokens()
    expect(bool(labels), f"labels({recording.text!r}) is empty")
    outside = [i for i in labels if not 0 <= i < len(table)]
    expect(not outside, f"labels are outside of a table of {len(table)} tokens: {outside}")
    expect(table.blank not in labels, "labels hold the blank")


def check_lattice(teacher: Any, recording: Recording) -> None:
    """Check that the joiner gives (t, U+1, V) logits, the same slice by slice as at once."""
    if teacher.describe().head("rnnt") is None:
        return
    made = forward(teacher, recording.audio)
    frames, labels = int(made.lengths[0]), _labels(teacher, recording)
    with torch.inference_mode():
        enc, dec = teacher.transducer(made.output, 0, labels)
        expect(len(enc) == frames, f"transducer() gives {len(enc)} frames, of {frames} valid ones")
        expect(
            len(dec) == len(labels) + 1, f"transducer() gives {len(dec)} positions of {len(labels)} labels"
        )
        some = enc[:7]
        whole = teacher.join(some, dec).float()
        wanted = (len(some), len(labels) + 1, len(teacher.tokens()))
        expect(tuple(whole.shape) == wanted, f"join() gives {tuple(whole.shape)}, not {wanted}")
        slices = torch.cat([teacher.join(part, dec).float() for part in some.split(3)])
    expect(bool(whole.isfinite().all()), "join() gives NaN or infinity")
    worst = float((whole.softmax(-1) - slices.softmax(-1)).abs().max())
    expect(worst < SAME, f"join() of slices differs by {worst:.1e} from join() at once")
    try:
        require_logits(whole.flatten(0, 1), "rnnt", "the recording")
    except LogitStoreError as e:
        raise AssertionError(str(e)) from None


def check_decoder(teacher: Any, recording: Recording) -> None:
    """Check that ``decode`` runs the attention decoder's head on at least one row per label."""
    head = teacher.describe().head("seq2seq")
    if head is None:
        return
    end = head.blank if head.end is None else head.end
    labels = [*_labels(teacher, recording), end]
    made = forward(teacher, recording.audio)
    tap = Tap(teacher.model, {"seq2seq": head.module}, layouts={"seq2seq": head.layout})
    with torch.inference_mode(), tap:
        teacher.decode(made.output, 0, labels)
        rows = tap.take("seq2seq")
    rows = rows.flatten(0, -2)
    expect(len(rows) >= len(labels), f"decode() gives {len(rows)} rows for {len(labels)} labels")
    classes = len(teacher.tokens())
    expect(rows.shape[-1] == classes, f"seq2seq has {rows.shape[-1]} classes, the token table {classes}")
    expect(bool(rows.isfinite().all()), "decode() gives NaN or infinity")


CHECKS: tuple[Callable[[Any, Recording], None], ...] = (
    check_methods,
    check_description,
    check_features,
    check_forward,
    check_times,
    check_logits,
    check_same_twice,
    check_padding,
    check_labels,
    check_lattice,
    check_decoder,
)
