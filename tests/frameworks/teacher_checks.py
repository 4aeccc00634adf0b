"""Checks that every framework's teacher must pass."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import pytest
import torch

from logitstore.schema.spec import TeacherSpec
from logitstore.teachers.protocol import check_deterministic, check_protocol, weights_sha256
from logitstore.teachers.tap import Tap
from logitstore.tokens.table import TokenTable

LENGTHS = (16000, 9000, 12345)


def recordings(rate: int = 16000, lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(0.1 * rng.standard_normal(n * rate // 16000)).astype(np.float32) for n in lengths]


def batched(teacher: Any, audio: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    features = [teacher.features(a) for a in audio]
    for f in features:
        assert f.dim() == 2
        assert f.dtype == torch.float32
        assert f.device.type == "cpu"
    return (
        torch.nn.utils.rnn.pad_sequence(features, batch_first=True),
        torch.tensor([len(f) for f in features]),
    )


def ctc_logits(teacher: Any, audio: list[np.ndarray]) -> list[torch.Tensor]:
    """Return the tapped CTC logits (T, V) of every recording, run as one batch."""
    head = teacher.describe().head("ctc")
    features, lengths = batched(teacher, audio)
    with (
        torch.inference_mode(),
        Tap(teacher.model, {"ctc": head.module}, layouts={"ctc": head.layout}) as tap,
    ):
        output = teacher.forward(features, lengths)
        logits, frames = tap.take("ctc"), teacher.lengths(output)
    assert frames.dtype == torch.int64
    assert int(frames.max()) <= logits.shape[1]
    assert logits.shape[2] == len(teacher.tokens())
    own = teacher.log_probs(output).get("ctc") if hasattr(teacher, "log_probs") else None
    if own is not None:
        valid = torch.arange(logits.shape[1])[None] < frames[:, None]
        assert (own - logits.log_softmax(-1))[valid].abs().max() < 1e-4
    return [row[:n] for row, n in zip(logits, frames.tolist(), strict=True)]


def lattice(teacher: Any, audio: list[np.ndarray], labels: list[int], step: int = 3) -> list[torch.Tensor]:
    """Return (T, U+1, V) of every recording, the joiner run in slices of frames."""
    features, lengths = batched(teacher, audio)
    found = []
    with torch.inference_mode():
        output = teacher.forward(features, lengths)
        for b in range(len(audio)):
            enc, dec = teacher.transducer(output, b, labels)
            assert enc.shape[0] == int(teacher.lengths(output)[b])
            assert dec.shape[0] == len(labels) + 1
            found.append(torch.cat([teacher.join(e, dec) for e in enc.split(step)]))
            assert found[-1].shape == (enc.shape[0], len(labels) + 1, len(teacher.tokens()))
    return found


def decoder_logits(teacher: Any, audio: list[np.ndarray], labels: list[int]) -> list[torch.Tensor]:
    """Return (U, V) of an attention decoder under these labels and its end token, of every recording."""
    head = teacher.describe().head("seq2seq")
    labels, found = [*labels, head.end], []
    with torch.inference_mode():
        output = teacher.forward(*batched(teacher, audio))
        for b in range(len(audio)):
            with Tap(teacher.model, {"seq2seq": head.module}, layouts={"seq2seq": head.layout}) as tap:
                teacher.decode(output, b, labels)
                found.append(tap.take("seq2seq").flatten(0, -2)[-len(labels) :])
            assert found[-1].shape == (len(labels), len(teacher.tokens()))
    return found


def rows_of(teacher: Any, stream: str, audio: list[np.ndarray]) -> list[torch.Tensor]:
    """Return the rows of one stream of every recording."""
    if stream == "ctc":
        return ctc_logits(teacher, audio)
    return (
        decoder_logits(teacher, audio, [1, 2, 1])
        if stream == "seq2seq"
        else lattice(teacher, audio, [1, 2, 1])
    )


def check_teacher(teacher: Any, *, rate: int = 16000, leak: float = 1e-4) -> None:
    """Check protocol, tokens, frame shift, determinism, and a batch of one against a batch of many."""
    check_protocol(teacher, "test")
    spec, table = teacher.describe(), teacher.tokens()
    assert spec.sample_rate == rate
    assert all(h.blank == table.blank for h in spec.heads)
    assert not teacher.model.training
    # What goes into a store comes back out of it.
    stored = json.loads(json.dumps(spec.to_json()))
    stored["heads"] = [
        {**head, "blank": table.blank} for head in stored["heads"]
    ]  # a store has it in ``tokens``
    assert TeacherSpec.from_json(stored) == spec
    assert TokenTable.parse(table.to_bytes(), blank=table.blank) == table
    assert weights_sha256(teacher.model) == weights_sha256(teacher.model)
    audio = recordings(rate)
    check_deterministic(teacher, *batched(teacher, audio))
    for stream in (h.stream for h in spec.heads):
        many = rows_of(teacher, stream, audio)
        for a, own in zip(audio, many, strict=True):
            one = rows_of(teacher, stream, [a])
            assert one[0].shape == own.shape
            assert (one[0] - own).abs().max() < leak
            assert stream == "seq2seq" or abs(len(own) - len(a) / spec.frame_shift) <= 4


def framework(name: str) -> None:
    """Skip the test module unless a framework imports; a broken binary raises more than ImportError."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as e:
        pytest.skip(f"{name} does not import: {e}", allow_module_level=True)
