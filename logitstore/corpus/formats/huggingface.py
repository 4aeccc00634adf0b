"""Folders of Hugging Face ``datasets`` (``save_to_disk``) with a column of audio, read through ``datasets``.

``save_to_disk`` copies the recordings into the dataset, so that there are no files to refer to. Such lines hold
the bytes of the recording, and ``logitstore manifest FOLDER TO --audio-dir DIR`` writes them to files.
Facts: https://huggingface.co/docs/datasets/audio_dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import ManifestError, UsageError
from .base import ManifestLine

BESIDE = False
IDS = ("id", "utt_id", "utterance_id", "segment_id", "key")
TEXTS = ("text", "transcription", "transcript", "sentence", "normalized_text")
SPLITS, DATASET = "dataset_dict.json", "dataset_info.json"


def recognises(path: Path, first: dict[str, Any] | None) -> bool:
    """Return whether it is a folder that ``save_to_disk`` wrote."""
    return first is None and ((path / DATASET).is_file() or (path / SPLITS).is_file())


def files(path: Path) -> Sequence[Path]:
    """Return the Arrow and JSON files of the folder; raise ``ManifestError`` for a folder of splits."""
    if (path / SPLITS).is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise ManifestError(
            f"the folder holds several splits: {', '.join(splits)}",
            where=str(path),
            do=f"Give one of them: {path / splits[0] if splits else path}.",
        )
    return sorted(p for p in path.iterdir() if p.suffix in (".arrow", ".json"))


def lines(path: Path) -> Iterator[ManifestLine]:
    """Yield every row of the dataset as a line, in order; audio is not decoded."""
    try:
        import datasets
    except ModuleNotFoundError as e:
        raise UsageError(
            f"such folders are read through the Python package {e.name!r}, which is not installed",
            where=str(path),
            do="pip install 'logitstore[huggingface]'",
        ) from e
    files(path)  # refuses splits
    try:
        data = datasets.load_from_disk(str(path))
    except Exception as e:
        raise ManifestError(f"datasets cannot read it: {e}", where=str(path)) from e
    column = next((n for n, kind in data.features.items() if isinstance(kind, datasets.Audio)), None)
    if column is None:
        raise ManifestError(
            f"none of its columns is audio: {', '.join(data.features)}",
            where=str(path),
            do="dataset.cast_column('audio', datasets.Audio()) and save it again.",
        )
    data = data.cast_column(column, datasets.Audio(decode=False))
    ids = next((n for n in IDS if n in data.features), None)
    texts = next((n for n in TEXTS if n in data.features), None)
    data = data.select_columns([n for n in (column, ids, texts) if n])
    for number, row in enumerate(data, 1):
        yield _line(number, f"{path} row {number}", row, (column, ids, texts))


def _line(
    number: int, where: str, row: dict[str, Any], columns: tuple[str, str | None, str | None]
) -> ManifestLine:
    column, ids, texts = columns
    audio = row[column] or {}
    place = audio.get("path") or ""
    value: dict[str, Any] = {"id": str(row[ids]) if ids else Path(place).stem}
    if texts and row[texts] is not None:
        value["text"] = row[texts]
    value["audio"] = place
    return ManifestLine(number, where, value, recording_bytes=audio.get("bytes"))
