"""From what the user asks to what a store declares: its spec and its columns."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from ..encodings import Encoding, LatticeSides, parse_encoding
from ..errors import UsageError, VocabError
from ..schema.kinds import StreamKind, kind_of
from ..schema.lattice import Form
from ..schema.spec import (
    LATER_KINDS,
    LATTICE_FORMS,
    TAIL_POINTS,
    Column,
    Head,
    StoreSpec,
    StreamSpec,
    TeacherSpec,
)
from ..storage import parse_storage
from ..tokens.table import TokenTable

LABELS = "labels"
LABELS_ABOUT = {
    "rnnt": "token ids the lattice was driven with; node (t, u) of a full one is row t·(U+1) + u",
    "seq2seq": "token ids the decoder was made to say; row u is what the one at u was to be drawn from",
}
MADE_WITH = ("logitstore", "torch", "numpy", "zarr", "numcodecs", "soundfile", "soxr")


def make_spec(
    teacher: TeacherSpec,
    tokens: TokenTable,
    streams: Mapping[str, str],
    *,
    storage: str = "zarr",
    manifest: Mapping[str, Any] | None = None,
) -> StoreSpec:
    """What a store will say about itself.

    Args:
        teacher: who speaks; a stream without a head of its own takes the table's blank.
        tokens: the token table of all streams.
        streams: encoding by stream name, e.g. ``{"ctc": "dense", "rnnt": "topk:16"}``; of a lattice with its
            form, e.g. ``topk:16/banded:5`` (:class:`logitstore.schema.lattice.Form`); of a ``hidden``
            stream with its width, e.g. ``vectors/256``, where no driver finds it out; of ``text`` empty.
        storage: ``zarr``, ``zarr:zstd``, ``webdataset``, ...
        manifest: what to keep of the manifest.
    """
    kept = []
    for name, encoding in streams.items():
        kind = kind_of(name)
        head = teacher.head(name) or Head(name, "", tokens.blank)
        if head.blank != tokens.blank:
            raise VocabError(
                f"the {name} head says blank is {head.blank}, the token table says {tokens.blank}",
                where=teacher.name,
            )
        kept.append(_stream(name, kind, encoding, tokens))
        columns_of_stream(kept[-1])  # refuses what does not fit
    return StoreSpec(
        teacher=teacher,
        tokens={"sha256": tokens.digest(), "size": len(tokens), "blank": tokens.blank},
        streams=tuple(kept),
        storage={"name": str(parse_storage(storage))},
        manifest=dict(manifest or {}),
        requires=tuple(sorted({r for s in kept for r in _requires(s)})),
        made_with={name: version for name in MADE_WITH if (version := _version(name))},
    )


def _stream(name: str, kind: StreamKind, asked: str, tokens: TokenTable) -> StreamSpec:
    """One stream as the user asked for it; raises ``UsageError`` where kind, encoding and form do not fit."""
    how, found, form = asked.partition("/")
    if not kind.axes:
        if asked:
            raise UsageError(f"{name}={asked}: a transcript has no rows to encode", do=f"--stream {name}")
        return StreamSpec(name, kind.name, len(tokens), tokens.blank, "")
    parsed = parse_encoding(how)
    width = 0
    if parsed.numbers and found:
        if not re.fullmatch(r"[1-9][0-9]{0,6}", form):
            raise UsageError(f"{name}={asked}: {form!r} is no width", do="Say D, e.g. vectors/256.")
        width, form = int(form), ""
    elif name == "rnnt":
        form = str(Form.parse(form if found else "full"))
    elif found:
        raise UsageError(f"{name}={asked}: only an rnnt stream has lattice nodes to choose from")
    try:
        parsed.check_stream(kind, Form.parse(form) if form else None)
    except UsageError as e:
        raise UsageError(f"{name}={asked}: {e.what}", why=e.why, do=e.do) from None
    return StreamSpec(
        name, kind.name, len(tokens), tokens.blank, str(parsed), form, width, tail_points=parsed.tail_points
    )


def _requires(stream: StreamSpec) -> Iterator[str]:
    """What a reader of version 1.0's first rules would misread (SPEC F5)."""
    if stream.tail_points:
        yield TAIL_POINTS
    if stream.kind == "rnnt" and not Form.parse(stream.form).whole:
        yield LATTICE_FORMS
    if stream.encoding:
        yield from parse_encoding(stream.encoding).requires
    if stream.kind in LATER_KINDS:
        yield stream.kind


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def encoding_of(
    stream: StreamSpec, constants: Mapping[str, NDArray[Any]] | None = None
) -> Encoding | LatticeSides | None:
    """The encoding of a stream; None where it has no rows. One that stores its head needs the stream's
    constants to do more than name its columns."""
    if not stream.stream_kind.axes:
        return None
    return parse_encoding(stream.encoding).bound(stream, constants or {})


def columns_of(spec: StoreSpec) -> tuple[Column, ...]:
    """Every column of a store's shards, in order (SPEC S2)."""
    return tuple(c for stream in spec.streams for c in columns_of_stream(stream))


def columns_of_stream(stream: StreamSpec) -> tuple[Column, ...]:
    """Those of its encoding, then its labels and what its form names."""
    encoding, found = encoding_of(stream), []
    for c in encoding.columns(stream.size) if encoding is not None else ():
        found.append(Column(f"{stream.name}.{c.name}", c.dtype, c.shape, c.about))
    if stream.stream_kind.labels:
        found.append(Column(f"{stream.name}.{LABELS}", "int32", (), LABELS_ABOUT[stream.kind]))
    if stream.kind == "rnnt":
        for name, dtype, about in Form.parse(stream.form).columns:
            found.append(Column(f"{stream.name}.{name}", dtype, (), about))
    return tuple(found)
