"""From what the user asks to what a store declares: its spec and its columns."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from .encodings import Encoding, HeadEncoding, parse_encoding
from .encodings.base import LatticeSides
from .errors import UnknownName, UsageError, VocabError
from .lattice import Form
from .registry import suggest
from .spec import LATTICE_FORMS, Column, Head, StoreSpec, StreamSpec, TeacherSpec
from .storage import parse_storage
from .vocab import TokenTable

LABELS = "labels"
STREAMS = ("ctc", "rnnt")  # that can be written so far
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
            form, e.g. ``topk:16/banded:5`` (:class:`logitstore.lattice.Form`).
        storage: ``zarr``, ``zarr:zstd``, ``webdataset``, ...
        manifest: what to keep of the manifest.
    """
    kept = []
    for name, encoding in streams.items():
        if name not in STREAMS:
            raise UnknownName(f"no stream {name!r}", do=suggest(name, STREAMS))
        head = teacher.head(name) or Head(name, "", tokens.blank)
        if head.blank != tokens.blank:
            raise VocabError(
                f"the {name} head says blank is {head.blank}, the token table says {tokens.blank}",
                where=teacher.name,
            )
        how, found, form = encoding.partition("/")
        parsed = parse_encoding(how)
        if name == "rnnt":
            form = str(Form.parse(form if found else "full"))
        elif found or how == "collapsed":
            raise UsageError(f"{name}={encoding}: only an rnnt stream has lattice nodes to choose from")
        if how == "collapsed" and Form.parse(form).framewise:
            raise UsageError(
                f"{name}={encoding}: the mean over label positions has no next label",
                do="Choose dense, topk or nucleus for it.",
            )
        if name == "rnnt" and how.startswith("factored") and form != "full":
            raise UsageError(
                f"{name}={encoding}: factored keeps the two sides of the whole lattice",
                do="Leave the form out, or choose another encoding for it.",
            )
        kept.append(StreamSpec(name, name, len(tokens), tokens.blank, str(parsed), form))
        encoding_of(kept[-1]).columns(len(tokens))  # refuses what does not fit
    return StoreSpec(
        teacher=teacher,
        tokens={"sha256": tokens.digest(), "size": len(tokens), "blank": tokens.blank},
        streams=tuple(kept),
        storage={"name": str(parse_storage(storage))},
        manifest=dict(manifest or {}),
        requires=tuple(sorted({r for s in kept for r in _requires(s)})),
        made_with={name: version for name in MADE_WITH if (version := _version(name))},
    )


def _requires(stream: StreamSpec) -> Iterator[str]:
    """What a reader of version 1.0's first rules would misread (SPEC F5)."""
    if stream.kind == "rnnt" and (stream.encoding == "collapsed" or not Form.parse(stream.form).whole):
        yield LATTICE_FORMS


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def encoding_of(
    stream: StreamSpec, constants: Mapping[str, NDArray[Any]] | None = None
) -> Encoding | LatticeSides:
    """The encoding of a stream; one that stores its head needs the stream's constants to do more than
    name its columns."""
    encoding = parse_encoding(stream.encoding)
    if isinstance(encoding, HeadEncoding):
        return encoding.bound(stream, constants or {})
    return encoding


def columns_of(spec: StoreSpec) -> tuple[Column, ...]:
    """Every column of a store's shards, in order (SPEC S2)."""
    found: list[Column] = []
    for stream in spec.streams:
        for c in encoding_of(stream).columns(stream.classes):
            found.append(Column(f"{stream.name}.{c.name}", c.dtype, c.shape, c.about))
        if stream.kind == "rnnt":
            about = "token ids the lattice was driven with; node (t, u) of a full one is row t·(U+1) + u"
            found.append(Column(f"{stream.name}.{LABELS}", "int32", (), about))
            for name, dtype, about in Form.parse(stream.form).columns:
                found.append(Column(f"{stream.name}.{name}", dtype, (), about))
    return tuple(found)
