"""Heads that one's own loop gives: what a store keeps of them, and the proof that they make its logits."""

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
    """The heads of a loop's ``factored`` streams, each proven on the first rows that it is given.

    Args:
        spec: of the store, without widths and constants.
        given: by stream a Linear (or a Conv1d over one frame), or (weight, bias), where bias may be None;
            behind either (N, D) rows that ``factored:KL`` chooses its axes by: (linear, rows).

    Raises:
        UsageError: a stream without a head, or a head without a stream.
        VocabError: a head of other classes than the token table's.
    """

    def __init__(self, spec: StoreSpec, given: Mapping[str, Any]) -> None:
        streams = {s.name: s for s in spec.streams if s.stream_kind.axes}
        parsed = {name: parse_encoding(s.encoding) for name, s in streams.items()}
        self._encodings = {n: e for n, e in parsed.items() if stores_head(e)}
        for name in self._encodings:
            _require_possible(streams[name], name in given)
        if spare := [name for name in given if name not in self._encodings]:
            raise UsageError(
                f"a head for {spare[0]!r}, which does not store what goes into one",
                do="Choose an encoding that stores it, or leave the head out.",
            )
        found = {name: _parsed(given[name], name) for name in self._encodings}
        self._heads = {name: head for name, (head, _) in found.items()}
        self._samples = {name: rows for name, (_, rows) in found.items()}
        for name, head in self._heads.items():
            if head.weight.ndim != 2 or not head.bias.shape == head.weight.shape[:1] == (
                spec.tokens["size"],
            ):
                raise VocabError(
                    f"weight {head.weight.shape} and bias {head.bias.shape} of the {name} head, where the "
                    f"token table has {spec.tokens['size']} tokens"
                )
        self._proven: set[str] = set()

    def __contains__(self, stream: str) -> bool:
        return stream in self._heads

    def declare(self, place: Place, spec: StoreSpec) -> tuple[StoreSpec, Constants]:
        """The spec with widths and constants: those of the store where there is one, else made here."""
        if is_store(place) and shard_names(place):
            was = read_spec(place)
            stored = {s.name: s.constants for s in was.streams}
            made: dict[str, dict[str, NDArray[Any]]] = {}
            keep = {n: replace(s, constants=stored.get(n, ())) for n, s in _by_name(spec).items()}
        else:
            made = {name: self._made(name) for name in self._heads}
            keep = {n: declared(s, made[n]) for n, s in _by_name(spec).items() if n in made}
        streams = [
            replace(keep[s.name], width=self._heads[s.name].width) if s.name in self._heads else s
            for s in spec.streams
        ]
        return replace(spec, streams=tuple(streams)), made

    def _made(self, name: str) -> dict[str, NDArray[Any]]:
        encoding, head, rows = self._encodings[name], self._heads[name], self._samples[name]
        if not encoding.needs_sample:
            return encoding.prepare(head, None)
        if rows is None:
            raise UsageError(
                f"{name}={encoding} without rows to choose its axes by",
                why="Bits go where the rows of the head vary, which it does not tell by itself.",
                do=f'Give some thousand rows of it behind the head: heads={{"{name}": (linear, rows)}}; or '
                "store factored:int8.",
            )
        if rows.ndim != 2 or rows.shape[1] != head.width or not len(rows) or not bool(rows.isfinite().all()):
            raise LengthError(
                f"rows {tuple(rows.shape)} of the {name} head, not finite (N, D = {head.width})"
            )
        return encoding.prepare(head, rows)

    def require_stored(self, constants: Constants) -> None:
        """Raise ``IdentityError`` unless a store's constants were made from these heads."""
        for name, head in self._heads.items():
            if not self._encodings[name].made_from(head, constants[name]):
                raise IdentityError(
                    f"the {name} head is not the one that this store keeps",
                    why="Rows of two heads in one store cannot be told apart by a student.",
                    do="Write to another store.",
                )

    def below(self, stream: str, inputs: Any, logits: torch.Tensor, where: str) -> torch.Tensor:
        """Return the (N, D) input of the head beside its (N, V) logits.

        Until one utterance of the stream has proven it, raises ``TeacherError`` unless the head makes these
        logits of the input; raises ``LengthError`` where their rows differ.
        """
        head = self._heads[stream]
        rows = torch.as_tensor(inputs).detach()
        if rows.ndim != 2 or rows.shape[1] != head.width:
            raise LengthError(
                f"{tuple(rows.shape)} went into the {stream} head, not (T, D = {head.width})", where=where
            )
        if len(rows) != len(logits):
            raise LengthError(
                f"{len(rows)} rows went into the {stream} head, {len(logits)} came out", where=where
            )
        rows = rows.to(logits.device)
        if stream not in self._proven and len(rows):
            if logits.shape[1] != len(head.bias):
                raise VocabError(
                    f"{stream} gives {logits.shape[1]} classes, its head {len(head.bias)}", where=where
                )
            require_finite(logits, stream, where)
            require_finite(rows, f"the input of the {stream} head", where)
            self._prove(stream, rows, logits, where)
        return rows

    def _prove(self, stream: str, rows: torch.Tensor, logits: torch.Tensor, where: str) -> None:
        missed = gap(self._heads[stream], rows.float(), logits)
        if not missed <= SAME:
            raise TeacherError(
                f"weight and bias of the {stream} head miss the log-probabilities given by {missed:.3g}",
                where=where,
                why="Either these inputs and logits are not of the same frames, or the layer does more than "
                "it says (dropout live, a scale, half precision).",
                do="Take both in one forward, the model in eval() and float32: a Tap of the layer, and one "
                "with side='input'; or store dense, topk or nucleus.",
            )
        self._proven.add(stream)


def _by_name(spec: StoreSpec) -> dict[str, StreamSpec]:
    return {s.name: s for s in spec.streams}


def _require_possible(stream: StreamSpec, given: bool) -> None:
    if stream.kind == "rnnt":
        raise UsageError(
            f"{stream.name}={stream.encoding} from one's own loop",
            why="It stores two sides, whose sum goes through an activation into the head: who drives the "
            "joiner alone can prove that.",
            do=f"Let logitstore dump drive the teacher, or store the lattice as {FOR_LOGITS}.",
        )
    if not given:
        raise UsageError(
            f"{stream.encoding} stores what goes into the {stream.name} head, and no head was given",
            do=f'Give it: StoreWriter.open(..., heads={{"{stream.name}": linear}}), and '
            f'add(..., inputs={{"{stream.name}": h}}); or store {FOR_LOGITS}.',
        )


def _parsed(given: Any, name: str) -> tuple[LinearHead, torch.Tensor | None]:
    """A head, and the rows behind it where there are any."""
    parts = list(given) if isinstance(given, tuple | list) else [given]
    if parts and isinstance(parts[0], nn.Module):
        head, rest = linear_head(parts[0], f"the {name} head"), parts[1:]
    elif len(parts) >= 2:
        weight = _numpy(parts[0])
        bias = np.zeros(len(weight), np.float32) if parts[1] is None else _numpy(parts[1])
        head, rest = LinearHead(weight, bias), parts[2:]
    else:
        raise UsageError(f"a {type(given).__name__} for the {name} head", do="A Linear, or (weight, bias).")
    if len(rest) > 1:
        raise UsageError(
            f"{len(parts)} things for the {name} head", do="(linear, rows), (weight, bias, rows)."
        )
    return head, torch.as_tensor(rest[0]).detach().float() if rest else None


def _numpy(x: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(torch.as_tensor(x).detach().float().cpu().numpy())
