"""Heads that a loop gives to ``StoreWriter`` for ``factored`` streams: their constants, and proof that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..encodings import FOR_LOGITS, LinearHead, SidesSample, parse_encoding, stores_head
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
            be None. For ``factored:KL``, (N, D) sample inputs of the head follow: ``(linear, inputs)``. The head
            of a lattice is the joiner's last layer, followed by the activation before it, ``(linear, "tanh")``,
            and for ``factored:KL`` by both sides, (T, J) and (U+1, J), of some utterances.

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
        found = {name: _parse_head(given[name], name, streams[name].kind) for name in self._encodings}
        self._heads = {name: head for name, (head, _, _) in found.items()}
        self._samples = {name: sample for name, (_, sample, _) in found.items()}
        self._activations = {name: activation for name, (_, _, activation) in found.items()}
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
            replace(
                with_constants[s.name],
                width=self._heads[s.name].width,
                activation=self._activations[s.name],
            )
            if s.name in self._heads
            else s
            for s in spec.streams
        ]
        return replace(spec, streams=tuple(streams)), made

    def _constants(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the constants of a stream, made from its head and, where that needs them, sample inputs."""
        encoding, head, inputs = self._encodings[name], self._heads[name], self._samples[name]
        if not encoding.needs_sample:
            return encoding.prepare(head, None)
        if isinstance(inputs, SidesSample):
            for enc, dec in inputs.sides:
                if enc.ndim != 2 or dec.ndim != 2 or not enc.shape[1] == dec.shape[1] == head.width:
                    raise LengthError(
                        f"sample sides {tuple(enc.shape)} and {tuple(dec.shape)} of the {name} head are not "
                        f"(T, J = {head.width}) and (U+1, J)"
                    )
                if not bool(enc.isfinite().all() & dec.isfinite().all()):
                    raise LengthError(f"sample sides of the {name} head are not finite")
            return encoding.prepare(head, inputs)
        if inputs is None:
            raise UsageError(
                f"{name}={encoding} needs sample inputs of the head",
                why="The encoding spends its bits along the axes in which the inputs vary most; the head alone "
                "does not show them.",
                do=f'Give some thousand inputs after the head: heads={{"{name}": (linear, inputs)}}, or of a '
                'lattice both sides of some utterances: (linear, "tanh", [(enc, dec), ...]).',
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

    def checked_sides(
        self, stream: str, sides: Any, logits: torch.Tensor | None, where: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the (T, J) and (U+1, J) sides of an additive joiner.

        The first sides of a stream are joined and sent through the head, and the result is compared with the
        logits; later ones need no logits.

        Args:
            stream: name of the stream.
            sides: both sides, of torch or numpy.
            logits: (T, U+1, V) logits that the teacher gave for them; None to leave them out.
            where: id of the utterance, for errors.

        Raises:
            LengthError: sides of another shape than the head asks for, or no logits for the first ones.
            NonFinite: NaN or infinity in sides or logits.
            TeacherError: the head does not give these logits for these sides.
        """
        head = self._heads[stream]
        enc, dec = (torch.as_tensor(x).detach() for x in sides)
        if enc.ndim != 2 or dec.ndim != 2 or not enc.shape[1] == dec.shape[1] == head.width:
            raise LengthError(
                f"the sides of the {stream} joiner are {tuple(enc.shape)} and {tuple(dec.shape)}, not "
                f"(T, J = {head.width}) and (U+1, J)",
                where=where,
            )
        if stream not in self._proven:
            if logits is None:
                raise LengthError(
                    f"no {stream} logits beside the first sides",
                    where=where,
                    why="They prove that the joiner is activation(enc + dec) and this head.",
                    do=f"Give {stream}= and inputs= for the first utterance; later ones need no logits.",
                )
            if logits.shape != (len(enc), len(dec), len(head.bias)):
                raise LengthError(
                    f"{stream} logits {tuple(logits.shape)} for sides of {len(enc)} frames and {len(dec)} positions",
                    where=where,
                )
            joined = (enc.to(logits.device)[:, None] + dec.to(logits.device)).float()
            joined = torch.tanh(joined) if self._activations[stream] == "tanh" else torch.relu(joined)
            require_finite(logits.flatten(0, 1), stream, where)
            self._require_logits(stream, joined.flatten(0, 1), logits.flatten(0, 1), where)
        return enc, dec

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
    """Raise ``UsageError`` unless the head of a stream that stores its input was given."""
    if given:
        return
    if stream.kind == "rnnt":
        raise UsageError(
            f"{stream.encoding} stores both sides of the {stream.name} joiner, and its last layer was not given",
            do=f'Give it with the activation: StoreWriter.open(..., heads={{"{stream.name}": (linear, "tanh")}}), '
            f'and add(..., inputs={{"{stream.name}": (enc, dec)}}); or store {FOR_LOGITS}.',
        )
    raise UsageError(
        f"{stream.encoding} stores the input of the {stream.name} head, and no head was given",
        do=f'Give it: StoreWriter.open(..., heads={{"{stream.name}": linear}}), and '
        f'add(..., inputs={{"{stream.name}": h}}); or store {FOR_LOGITS}.',
    )


def _parse_head(
    given: Any, name: str, kind: str
) -> tuple[LinearHead, torch.Tensor | SidesSample | None, str]:
    """Return a head, the sample that follows it, if any, and the activation before it, of a lattice."""
    parts = list(given) if isinstance(given, tuple | list) else [given]
    if parts and isinstance(parts[0], nn.Module):
        head, rest = linear_head(parts[0], f"the {name} head"), parts[1:]
    elif len(parts) >= 2 and not isinstance(parts[1], str):
        weight = _float_array(parts[0])
        bias = np.zeros(len(weight), np.float32) if parts[1] is None else _float_array(parts[1])
        head, rest = LinearHead(weight, bias), parts[2:]
    else:
        raise UsageError(
            f"the {name} head is a {type(given).__name__}", do="Give a Linear, or (weight, bias)."
        )
    activation = ""
    if kind == "rnnt":
        if not rest or rest[0] not in ("tanh", "relu"):
            raise UsageError(
                f"the activation before the {name} head is not given",
                do='Name it after the head, "tanh" or "relu": (linear, "tanh").',
            )
        activation, rest = rest[0], rest[1:]
    if len(rest) > 1:
        raise UsageError(
            f"the {name} head has {len(parts)} parts",
            do="Give (linear, inputs) or (weight, bias, inputs); the inputs may be left out.",
        )
    if not rest:
        return head, None, activation
    if kind == "rnnt":
        sides = [tuple(torch.as_tensor(x).detach().float() for x in pair) for pair in rest[0]]
        return head, SidesSample([(enc, dec) for enc, dec in sides], activation), activation
    return head, torch.as_tensor(rest[0]).detach().float(), activation


def _float_array(x: Any) -> NDArray[np.float32]:
    """Return a tensor or array as a contiguous float32 array in main memory."""
    return np.ascontiguousarray(torch.as_tensor(x).detach().float().cpu().numpy())
