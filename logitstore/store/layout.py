"""Description and columns of a store, from the streams and encodings that the user asks for."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encodings import Encoding, LatticeSides, parse_encoding
from ..errors import UsageError, VocabError
from ..schema.kinds import StreamKind, kind_of
from ..schema.lattice import Form
from ..schema.spec import Column, Head, StoreSpec, StreamSpec, TeacherSpec
from ..storage import parse_storage
from ..storage.constants import file_name
from ..tokens.table import TokenTable

LABELS = "labels"
LABELS_ABOUT = {
    "rnnt": "token ids of the label positions of the lattice; node (t, u) of a full lattice is row t·(U+1) + u",
    "seq2seq": "token ids given to the decoder (teacher forcing); row u is its distribution of the label at position u",
}
RAGGED_BYTES = 16  # of an array with any number of items a row, in a row; for an estimate
LABELS_PER_SECOND, LATTICE_POSITIONS = 5, 32
MADE_WITH = ("logitstore", "torch", "numpy", "zarr", "numcodecs", "soundfile", "soxr")


def make_spec(
    teacher: TeacherSpec,
    tokens: TokenTable,
    streams: Mapping[str, str],
    *,
    storage: str = "zarr",
    manifest: Mapping[str, Any] | None = None,
) -> StoreSpec:
    """Return the description of a store to be written.

    Args:
        teacher: description of the teacher; a stream without a head in it takes the token table's blank.
        tokens: token table of all streams.
        streams: encoding by stream name, e.g. ``{"ctc": "dense", "rnnt": "topk:16"}``. The encoding of an
            ``rnnt`` stream may name a lattice form, e.g. ``topk:16/banded:5``
            (:class:`logitstore.schema.lattice.Form`); that of a ``hidden`` stream its width, e.g.
            ``vectors/256``; that of a ``text`` stream is empty.
        storage: storage backend with its setting: ``zarr``, ``zarr:blosc``, ``webdataset``, ...
        manifest: facts about the manifest that the store keeps.

    Raises:
        UsageError: an encoding, form or storage backend that does not exist or does not fit the stream.
        VocabError: a head has another blank than the token table.
    """
    kept = []
    for name, encoding in streams.items():
        kind = kind_of(name)
        head = teacher.head(name) or Head(name, "", tokens.blank)
        if head.blank != tokens.blank:
            raise VocabError(
                f"the blank of the {name} head is {head.blank}, that of the token table {tokens.blank}",
                where=teacher.name,
            )
        kept.append(_stream(name, kind, encoding, tokens))
        columns_of_stream(kept[-1])  # raises for an encoding that does not fit the classes
    return StoreSpec(
        teacher=teacher,
        tokens={"sha256": tokens.digest(), "size": len(tokens), "blank": tokens.blank},
        streams=tuple(kept),
        storage={"name": str(parse_storage(storage))},
        manifest=dict(manifest or {}),
        made_with={name: version for name in MADE_WITH if (version := _version(name))},
    )


def _stream(name: str, kind: StreamKind, asked: str, tokens: TokenTable) -> StreamSpec:
    """Return a stream as the user asks for it; raises ``UsageError`` if kind, encoding and form do not fit."""
    how, found, form = asked.partition("/")
    if not kind.axes:
        if asked:
            raise UsageError(
                f"{name}={asked}: a transcript has no rows to encode",
                do=f'Leave the encoding empty: streams={{"{name}": ""}}, or --stream {name}.',
            )
        return StreamSpec(name, kind.name, len(tokens), tokens.blank, "")
    parsed = parse_encoding(how)
    width = 0
    if parsed.numbers and found:
        if not re.fullmatch(r"[1-9][0-9]{0,6}", form):
            raise UsageError(f"{name}={asked}: {form!r} is no width", do="Give D, e.g. vectors/256.")
        width, form = int(form), ""
    elif name == "rnnt":
        form = str(Form.parse(form if found else "full"))
    elif found:
        raise UsageError(f"{name}={asked}: only an rnnt stream has a lattice form", do=f"Leave out /{form}.")
    try:
        parsed.check_stream(kind, Form.parse(form) if form else None)
    except UsageError as e:
        raise UsageError(f"{name}={asked}: {e.what}", why=e.why, do=e.do) from None
    return StreamSpec(name, kind.name, len(tokens), tokens.blank, str(parsed), form, width)


def _version(package: str) -> str:
    """Return the installed version of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def about_shards(spec: StoreSpec) -> dict[str, Any]:
    """Return the description that every shard of a store carries (SPEC S18), without the shard's name."""
    streams = []
    for stream in spec.streams:
        about = stream.to_json()
        if stream.constants:
            names = [str(c["name"]) for c in stream.constants]
            about["files"] = {name: file_name(stream.name, name) for name in names}
        streams.append(about)
    return {
        "format": "logitstore",
        "version": spec.version,
        "identity": spec.identity,
        "teacher": spec.teacher.name,
        "tokens": dict(spec.tokens),
        "streams": streams,
    }


def encoding_of(
    stream: StreamSpec, constants: Mapping[str, NDArray[Any]] | None = None
) -> Encoding | LatticeSides | None:
    """Return the encoding of a stream; None for a stream without rows.

    Args:
        stream: the stream.
        constants: arrays that the stream stores once, by name. An encoding that stores a head needs them for
            everything but the names of its columns.
    """
    if not stream.stream_kind.axes:
        return None
    return parse_encoding(stream.encoding).bound(stream, constants or {})


def columns_of(spec: StoreSpec) -> tuple[Column, ...]:
    """Return the columns of a store's shards, in order (SPEC S2)."""
    return tuple(c for stream in spec.streams for c in columns_of_stream(stream))


def estimated_bytes_per_second(spec: StoreSpec) -> float:
    """Return a rough estimate of the encoded bytes of a second of audio, known before anything is encoded."""
    frames = spec.teacher.sample_rate / spec.teacher.frame_shift
    total = 0.0
    for stream in spec.streams:
        encoding = encoding_of(stream)
        if encoding is None:
            continue
        ragged: frozenset[str] = getattr(encoding, "ragged", frozenset())
        row = sum(
            RAGGED_BYTES if c.name in ragged else np.dtype(c.dtype).itemsize * prod(c.shape)
            for c in encoding.columns(stream.size)
        )
        rows = LABELS_PER_SECOND if not stream.stream_kind.frames else frames
        if stream.kind == "rnnt" and Form.parse(stream.form).whole and isinstance(encoding, Encoding):
            rows *= LATTICE_POSITIONS
        total += rows * row
    return total


def columns_of_stream(stream: StreamSpec) -> tuple[Column, ...]:
    """Return the columns of one stream: the encoding's, then ``labels``, then those of the lattice form."""
    encoding, found = encoding_of(stream), []
    for c in encoding.columns(stream.size) if encoding is not None else ():
        found.append(Column(f"{stream.name}.{c.name}", c.dtype, c.shape, c.about))
    if stream.stream_kind.labels:
        dtype = "uint8" if stream.classes <= 1 << 8 else "uint16" if stream.classes <= 1 << 16 else "uint32"
        found.append(Column(f"{stream.name}.{LABELS}", dtype, (), LABELS_ABOUT[stream.kind]))
    if stream.kind == "rnnt":
        for name, dtype, about in Form.parse(stream.form).columns:
            found.append(Column(f"{stream.name}.{name}", dtype, (), about))
    return tuple(found)
