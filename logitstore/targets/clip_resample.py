"""Rows of a clip: each piece resampled from its own utterance, then put together, silence between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings.rows import NOTHING, Float, Tempered
from ..errors import UsageError
from .clip import Clipped
from .frames import Method
from .resample import Resampled, follows_frames, is_lattice, resample_stream, resample_vectors
from .target import Target
from .timeline import Stretch


def resample_clip(
    heard: Clipped, stream: str, stretches: Sequence[Stretch], method: Method, temperature: float
) -> Resampled:
    """One stream of a clip at a student's frames (:func:`logitstore.targets.timeline.stretches`), at a temperature.

    Frames of silence, and those before a lagging student speaks, are not valid; where silence is to be said
    as blank they are rows of nothing but blank. Raises ``UsageError`` where targets cannot follow.
    """
    first = next(iter(heard.targets.values()))
    if not follows_frames(stream):
        _require_whole(heard, stream, "It has no time axis: which of its labels a part holds is not known.")
        return resample_stream(first, stream, first.T, Method(), temperature)
    if is_lattice(first, stream, method):
        _require_whole(heard, stream, "A lattice's labels belong to the whole utterance.")
    each = Method("nearest" if method.size else method.name)
    spoken = {
        n: resample_stream(heard.targets[s.piece.id], stream, s.ramp, each, temperature)
        for n, s in enumerate(stretches)
        if s.piece is not None and s.piece.id
    }
    if not spoken:
        raise UsageError("no frame of the student hears the utterance", where=heard.id)
    like, begun = next(iter(spoken.values())), min(spoken)
    found = _joined(
        [
            spoken[n] if n in spoken else _silent(s, like, first.blank, before=n < begun)
            for n, s in enumerate(stretches)
        ]
    )
    return replace(found, axes=(found.axes[0] // method.size, method.size)) if method.size else found


def clip_vectors(
    heard: Clipped, stream: str, stretches: Sequence[Stretch], method: Method
) -> tuple[Float, NDArray[np.bool_]]:
    """(S, D) numbers of a layer at a clip's frames, and where there are any: none in silence.

    Raises ``UsageError`` as :func:`logitstore.targets.resample.resample_vectors`.
    """
    each = Method("nearest" if method.size else method.name)
    width = next(iter(heard.targets.values())).shapes[stream][-1]
    parts = [
        resample_vectors(heard.targets[s.piece.id], stream, s.ramp, each)
        if s.piece is not None and s.piece.id
        else (np.zeros((s.ramp.count, width), np.float32), np.zeros(s.ramp.count, bool))
        for s in stretches
    ]
    rows, valid = (np.concatenate(x) for x in zip(*parts, strict=True))
    if method.size:
        return rows.reshape(-1, method.size, width), valid.reshape(-1, method.size)
    return rows, valid


def _require_whole(heard: Clipped, stream: str, why: str) -> None:
    said = [p for p in heard.pieces if p.id]
    what = ""
    if len(said) > 1:
        what = f"{len(said)} pieces one behind the other"
    elif not heard.whole(said[0]):
        what = f"{float(said[0].duration):g} s of {float(heard.seconds[said[0].id]):g} s"
    if what:
        raise UsageError(
            f"{stream} of {what}",
            where=heard.id,
            why=why,
            do="Take the ctc stream of such clips (streams=['ctc']), or whole utterances: another speed and "
            "silence around them are no trouble.",
        )


def _silent(stretch: Stretch, like: Resampled, blank: int, before: bool) -> Resampled:
    """As many frames of nothing but blank, before or after what is said; valid where blank is wanted."""
    axes = (stretch.ramp.count, *like.axes[1:])
    width = int(np.prod(axes[1:], dtype=np.int64))
    rows = axes[0] * width
    if like.frame is not None:
        raise UsageError("silence around a path", why="Its T + U nodes are one alignment of what is said.")
    logp = np.full((rows, like.rows.logp.shape[1]), NOTHING, np.float32)
    ids: NDArray[np.int32] | None = None
    if like.rows.ids is None:
        logp[:, blank] = 0.0
    else:
        logp[:, 0] = 0.0
        ids = np.full(logp.shape, blank, np.int32)
    edge = slice(0, width) if before else slice(len(like.rows.logp) - width, None)
    said = stretch.piece is not None and stretch.piece.blank
    occupied = None
    if like.occupancy is not None:
        occupied = np.zeros((axes[0], width), np.float32)
        occupied[:, 0 if before else -1] = said  # alignments wait before the first label or after the last
    return Resampled(
        rows=replace(like.rows, logp=logp, ids=ids, tail=np.full(rows, NOTHING, np.float32)),
        axes=axes,
        valid=np.full(rows, said),
        position=None if like.position is None else np.tile(like.position[edge], axes[0]),
        occupancy=None if occupied is None else occupied.reshape(-1),
    )


def _joined(parts: Sequence[Resampled]) -> Resampled:
    """Frames one behind the other."""
    if len(parts) == 1:
        return parts[0]

    def together(name: str) -> Any:
        arrays = [getattr(p, name) for p in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    first = parts[0]
    return Resampled(
        rows=_stacked([p.rows for p in parts]),
        axes=(sum(p.axes[0] for p in parts), *first.axes[1:]),
        valid=together("valid"),
        position=together("position"),
        frame=together("frame"),
        occupancy=together("occupancy"),
    )


def _stacked(rows: Sequence[Tempered]) -> Tempered:
    """Rows one behind the other; K becomes the largest."""
    k = max(r.logp.shape[1] for r in rows)
    wide = [r.logp.shape[1] == k for r in rows]
    logp = [r.logp if w else _widened(r.logp, k, NOTHING) for r, w in zip(rows, wide, strict=True)]
    ids = None
    if rows[0].ids is not None:
        ids = np.concatenate([_widened(r.ids, k, None) for r in rows if r.ids is not None])
    return replace(rows[0], logp=np.concatenate(logp), ids=ids, tail=np.concatenate([r.tail for r in rows]))


def _widened(values: NDArray[Any], k: int, fill: float | None) -> NDArray[Any]:
    """(N, K) made (N, k): with a value, or with what each row begins with."""
    more = k - values.shape[1]
    last = values[:, :1] if fill is None else np.full((len(values), 1), fill, values.dtype)
    return np.concatenate([values, np.repeat(last, more, axis=1)], axis=1)


def only_target(heard: Target | Clipped) -> Target | None:
    """The utterance, where it is heard as it is stored."""
    return heard if isinstance(heard, Target) else heard.plain
