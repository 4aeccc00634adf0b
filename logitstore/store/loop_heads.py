"""Heads that a loop gives to ``StoreWriter`` for ``factored`` streams: their constants, and proof that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..encodings import FOR_LOGITS, LinearHead, parse_encoding, stores_head
from ..encodings.linear_head import SAME, gap, linear_head
from ..errors import IdentityError, LengthError, TeacherError, UsageError, VocabError
from ..schema.spec import StoreSpec, StreamSpec
from ..storage.constants import Constants, declared
from ..storage.entries import shard_names
from ..storage.places import Place
from ..storage.spec_file import is_store, read_spec
from .record_encoder import require_finite


class LoopHeads:
    """Heads of the ``factored`` streams of a loop. Each is checked against the first logits that it should give.

    Args:
        spec: description of the store, still without widths and constants.
        given: head by stream: a ``Linear`` (or a ``Conv1d`` over one frame), or (weight, bias), where bias may
            be None. For ``factored:KL``, (N, D) sample inputs of the head follow: ``(linear, inputs)``.

    Raises:
        UsageError: a stream without a head, or a head without a ``factored`` stream.
        VocabError: a head whose number of classes is not that of the token table.
    """

    def __init__(self, spec: StoreSpec, given: Mapping[str, Any]) -> None:
        streams = {s.name: s for s in spec.streams if s.stream_kind.axes}
        parsed = {name: parse_encoding(s.encoding) for name, s in streams.items()}
        self._encodings = {n: e for n, e in parsed.items() if stores_head(e)}
        for name in self._encodings:
            _require_possible(streams[name], name in given)
        if spare := [name for name in given if name not in self._encodings]:
            raise UsageError(
                f"a head for {spare[0]!r}, an encoding that does not store the head's input",
                do="Choose factored for this stream, or leave the head out.",
            )
        found = {name: _parse_head(given[name], name) for name in self._encodings}
        self._heads = {name: head for name, (head, _) in found.items()}
        self._samples = {name: inputs for name, (_, inputs) in found.items()}
        self._proven: set[str] = set()
        size = spec.tokens["size"]
        for name, head in self._heads.items():
            if head.weight.ndim != 2 or head.weight.shape[0] != size or head.bias.shape != (size,):
                raise VocabError(
                    f"the {name} head has weight {head.weight.shape} and bias {head.bias.shape}, the token "
                    f"table {size} tokens",
                    do="Give the layer whose output are the logits of this token table.",
                )

    def __contains__(self, stream: str) -> bool:
        """Return whether a stream stores the input of its head."""
        return stream in self._heads

    def declare(self, place: Place, spec: StoreSpec) -> tuple[StoreSpec, Constants]:
        """Return the description with widths and constants, and the constants that a new store is to hold.

        A store that exists at the place keeps its own constants; there are none to write then.
        """
        made: dict[str, dict[str, NDArray[Any]]] = {}
        with_constants: dict[str, StreamSpec] = {}
        if is_store(place) and shard_names(place):
            stored = {s.name: s.constants for s in read_spec(place).streams}
            for s in spec.streams:
                with_constants[s.name] = replace(s, constants=stored.get(s.name, ()))
        else:
            made = {name: self._constants(name) for name in self._heads}
            for s in spec.streams:
                if s.name in made:
                    with_constants[s.name] = declared(s, made[s.name])
        streams = [
            replace(with_constants[s.name], width=self._heads[s.name].width) if s.name in self._heads else s
            for s in spec.streams
        ]
        return replace(spec, streams=tuple(streams)), made

    def _constants(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the constants of a stream, made from its head and, where that needs them, sample inputs."""
        encoding, head, inputs = self._encodings[name], self._heads[name], self._samples[name]
        if not encoding.needs_sample:
            return encoding.prepare(head, None)
        if inputs is None:
            raise UsageError(
                f"{name}={encoding} needs sample inputs of the head",
                why="The encoding spends its bits along the axes in which the inputs vary most; the head alone "
                "does not show them.",
                do=f'Give some thousand inputs after the head: heads={{"{name}": (linear, inputs)}}; or store '
                "factored:int8.",
            )
        if inputs.ndim != 2 or inputs.shape[1] != head.width:
            raise LengthError(
                f"sample inputs {tuple(inputs.shape)} of the {name} head are not rows of (N, D = {head.width})"
            )
        if not len(inputs) or not bool(inputs.isfinite().all()):
            raise LengthError(f"sample inputs of the {name} head: no rows, or rows that are not finite")
        return encoding.prepare(head, inputs)

    def require_stored(self, constants: Constants) -> None:
        """Raise ``IdentityError`` unless a store's constants were made from these heads."""
        for name, head in self._heads.items():
            if not self._encodings[name].made_from(head, constants[name]):
                raise IdentityError(
                    f"the {name} head is not the one that this store keeps",
                    why="Inputs of two heads in one store cannot be told apart by a student.",
                    do="Write to another store.",
                )

    def checked_inputs(self, stream: str, inputs: Any, logits: torch.Tensor, where: str) -> torch.Tensor:
        """Return the (N, D) inputs of a head on the device of its logits.

        The first inputs of a stream are sent through the head, and the result is compared with the logits.

        Args:
            stream: name of the stream.
            inputs: (N, D) inputs of the head, of torch or numpy.
            logits: (N, V) logits that the teacher gave for them.
            where: id of the utterance, for errors.

        Raises:
            LengthError: inputs of another shape than head and logits ask for.
            VocabError: logits of another number of classes than the head's.
            NonFinite: NaN or infinity in inputs or logits.
            TeacherError: the head does not give these logits for these inputs.
        """
        head = self._heads[stream]
        rows = torch.as_tensor(inputs).detach()
        if rows.ndim != 2 or rows.shape[1] != head.width:
            raise LengthError(
                f"the inputs of the {stream} head are {tuple(rows.shape)}, not rows of (T, D = {head.width})",
                where=where,
            )
        if len(rows) != len(logits):
            raise LengthError(
                f"the {stream} head has {len(rows)} rows of input and {len(logits)} of output", where=where
            )
        rows = rows.to(logits.device)
        if stream not in self._proven and len(rows):
            if logits.shape[1] != len(head.bias):
                raise VocabError(
                    f"the logits of {stream} have {logits.shape[1]} classes, its head {len(head.bias)}",
                    where=where,
                )
            require_finite(logits, stream, where)
            require_finite(rows, f"the input of the {stream} head", where)
            self._require_logits(stream, rows, logits, where)
        return rows

    def _require_logits(self, stream: str, rows: torch.Tensor, logits: torch.Tensor, where: str) -> None:
        """Raise ``TeacherError`` unless a head gives these logits for these inputs."""
        missed = gap(self._heads[stream], rows.float(), logits)
        if not missed <= SAME:
            raise TeacherError(
                f"weight and bias of the {stream} head miss the log-probabilities given by {missed:.3g}",
                where=where,
                why="Either inputs and logits are not of the same frames, or the layer does more than its "
                "weights say: active dropout, a scale, half precision.",
                do="Take both in one forward pass with the model in eval() and float32: one Tap of the layer, "
                "and one with side='input'; or store dense, topk or nucleus.",
            )
        self._proven.add(stream)


def _require_possible(stream: StreamSpec, given: bool) -> None:
    """Raise ``UsageError`` unless a stream can store the input of its head, and the head was given."""
    if stream.kind == "rnnt":
        raise UsageError(
            f"{stream.name}={stream.encoding} in a loop of your own",
            why="It stores the two sides of the joiner, whose sum goes through an activation into the head. "
            "Only logitstore dump, which runs the joiner itself, can check that.",
            do=f"Use logitstore dump or dump_logits(), or store the lattice as {FOR_LOGITS}.",
        )
    if not given:
        raise UsageError(
            f"{stream.encoding} stores the input of the {stream.name} head, and no head was given",
            do=f'Give it: StoreWriter.open(..., heads={{"{stream.name}": linear}}), and '
            f'add(..., inputs={{"{stream.name}": h}}); or store {FOR_LOGITS}.',
        )


def _parse_head(given: Any, name: str) -> tuple[LinearHead, torch.Tensor | None]:
    """Return a head, and the sample inputs that follow it, if any."""
    parts = list(given) if isinstance(given, tuple | list) else [given]
    if parts and isinstance(parts[0], nn.Module):
        head, rest = linear_head(parts[0], f"the {name} head"), parts[1:]
    elif len(parts) >= 2:
        weight = _float_array(parts[0])
        bias = np.zeros(len(weight), np.float32) if parts[1] is None else _float_array(parts[1])
        head, rest = LinearHead(weight, bias), parts[2:]
    else:
        raise UsageError(
            f"the {name} head is a {type(given).__name__}", do="Give a Linear, or (weight, bias)."
        )
    if len(rest) > 1:
        raise UsageError(
            f"the {name} head has {len(parts)} parts",
            do="Give (linear, inputs) or (weight, bias, inputs); the inputs may be left out.",
        )
    return head, torch.as_tensor(rest[0]).detach().float() if rest else None


def _float_array(x: Any) -> NDArray[np.float32]:
    """Return a tensor or array as a contiguous float32 array in main memory."""
    return np.ascontiguousarray(torch.as_tensor(x).detach().float().cpu().numpy())
