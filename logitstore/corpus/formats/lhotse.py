"""Cuts of lhotse, read through lhotse: ``.jsonl`` or ``.jsonl.gz`` of MonoCut and MultiCut.

A cut is a part of a recording. A cut that lhotse has to compute (with changed speed, mixed, padded or
augmented) is refused, because no recording has its audio; the message names the operation. Facts:
https://lhotse.readthedocs.io/en/latest/cuts.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import ManifestError
from .base import ManifestLine, json_lines

BESIDE = False
CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")
RENDER = "Render such cuts to files first: cuts.save_audios(FOLDER).to_file('rendered.jsonl.gz')."


def recognises(path: Path, first: dict[str, Any] | None) -> bool:
    """Return whether the first object is a cut of lhotse."""
    return first is not None and first.get("type") in CUTS


def files(path: Path) -> Sequence[Path]:
    """Return the file itself."""
    return [path]


def lines(path: Path) -> Iterator[ManifestLine]:
    """Yield every cut as a line."""
    try:
        from lhotse.serialization import deserialize_item
    except ModuleNotFoundError as e:
        from ...errors import UsageError

        raise UsageError(
            f"cuts are read through the Python package {e.name!r}, which is not installed",
            where=str(path),
            do="pip install 'logitstore[lhotse]'",
        ) from e
    for line in json_lines(path):
        if line.error:
            yield line
            continue
        value: dict[str, Any] = {"id": line.value.get("id")}
        try:
            if line.value.get("type") not in CUTS:
                raise ManifestError(
                    "it is not a cut",
                    where=line.where,
                    do="Make cuts of recordings and supervisions: CutSet.from_manifests(...).",
                )
            try:
                cut = deserialize_item(line.value)
            except Exception as e:  # lhotse raises errors of many types; the line is the cause of all
                raise ManifestError(f"lhotse cannot read it: {e!r}", where=line.where) from None
            value.update(_value(cut, line.where))
        except ManifestError as e:
            yield ManifestLine(line.number, line.where, value, e)
        else:
            yield ManifestLine(line.number, line.where, value)


def _value(cut: Any, where: str) -> dict[str, Any]:
    kind = type(cut).__name__
    if kind not in ("MonoCut", "MultiCut"):
        raise _refuse(f"it is a {kind} (padded, appended or mixed): no recording holds it", where)
    recording = cut.recording
    if recording is None:
        raise ManifestError("the cut has no recording", where=where, why="Features alone give no audio.")
    if recording.transforms:
        names = ", ".join(_transform(t) for t in recording.transforms)
        raise _refuse(f"its recording is changed as it is read: {names}", where)
    if len(recording.sources) != 1:
        raise _refuse(f"its recording has {len(recording.sources)} files", where)
    source = recording.sources[0]
    value: dict[str, Any] = {"offset": float(cut.start), "duration": float(cut.duration)}
    value |= {"recording": recording.id, "expected": float(recording.duration)}
    if source.type == "file":
        value["audio"] = str(source.source)
    elif source.type == "command":
        value["pipe"] = str(source.source)
    else:
        raise _refuse(f"its recording is of type {source.type!r}, not a file", where)
    wanted = [cut.channel] if isinstance(cut.channel, int) else list(cut.channel)
    if wanted != list(recording.channel_ids):
        if len(wanted) != 1:
            raise _refuse(f"channels {wanted} of {list(recording.channel_ids)}", where)
        value["channel"] = list(source.channels).index(wanted[0])
    texts = [s.text for s in sorted(cut.supervisions, key=lambda s: s.start) if s.text is not None]
    if texts:
        value["text"] = " ".join(texts)
    return value


def _transform(transform: Any) -> str:
    """Return the name and the settings of a transform, which may be an object or a dict."""
    if isinstance(transform, dict):
        name, settings = transform.get("name", "?"), transform.get("kwargs", {})
    else:
        name, settings = type(transform).__name__, getattr(transform, "__dict__", {})
    listed = ", ".join(f"{k}={v}" for k, v in settings.items())
    return f"{name}({listed})"


def _refuse(what: str, where: str) -> ManifestError:
    return ManifestError(
        what, where=where, why="The audio of the recording is not that of the cut.", do=RENDER
    )
