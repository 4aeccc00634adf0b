"""Search for the ids and texts of a batch, by the conventions of the public frameworks.

lhotse: ``batch["supervisions"]["cut"]``, objects with an ``id``; ESPnet: a list of ids in front of a dict;
SpeechBrain: ``batch.id``; Kaldi-style and home-made ones: a list of strings under one of many names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import LogitStoreError
from .expression import Expression

ID_KEYS = (
    *("cut_ids", "cut", "cuts", "ids", "id", "utt_ids", "utt_id", "uttid", "uttids", "utts", "utt"),
    *("utterance_ids", "utterance_id", "uids", "uid", "segment_ids", "segment_id", "wav_ids", "wav_id"),
    *("keys", "key", "names", "name", "file_ids", "file_id", "sample_ids", "sample_id"),
    *("filenames", "filename", "file_names", "file_name", "fnames", "fname"),
    *("audio_filepath", "audio_filepaths", "audio_paths", "audio_path", "wav_paths", "wav_path"),
    *("path", "paths", "file", "files"),
)
TEXT_KEYS = ("text", "texts", "transcript", "transcripts", "transcription", "sentence", "words", "wrd")
DEPTH = 4
CHECKED_PATHS = 16
MAX_FOLDERS = 4096


@dataclass(frozen=True)
class FoundIds:
    """Strings of a batch, one per utterance.

    Attributes:
        expression: expression that gives them again in later batches.
        values: the strings.
    """

    expression: str
    values: tuple[str, ...]


def find_ids(batch: Any, count: int | None = None) -> list[FoundIds]:
    """Return all values in a batch that could be its utterance ids, the likeliest first.

    Args:
        batch: a batch that a DataLoader yielded.
        count: B, where it is known; values of another length are left out.
    """
    found: dict[tuple[str, ...], tuple[int, FoundIds]] = {}
    for order, (key, expression, value) in enumerate(walk(batch, "batch")):
        likely = ID_KEYS.index(key) if key in ID_KEYS else len(ID_KEYS)
        in_tuple = not key and likely == len(
            ID_KEYS
        )  # ESPnet: (ids, {...}); others: (features, lengths, ids)
        if likely == len(ID_KEYS) and not in_tuple:
            continue
        strings = _strings(value, expression)
        if strings is None or (count is not None and len(strings.values) != count):
            continue
        if in_tuple and expression != "batch[0]":
            if any(len(v.split()) != 1 for v in strings.values):
                continue  # texts
            likely += 1 + (not all(any(c.isdigit() for c in v) for v in strings.values))  # words may be texts
        if len(set(strings.values)) != len(strings.values):
            continue
        found.setdefault(strings.values, (likely * 100 + order, strings))
    return [f for _, f in sorted(found.values(), key=lambda pair: pair[0])]


def find_by_index(
    index: Any, dataset: Any, count: int | None = None, *, guess: bool = False
) -> list[FoundIds]:
    """Return ids found by the index that the sampler gave for a batch, the likeliest first.

    Args:
        index: objects with an ``id`` (lhotse's samplers give cuts), or item numbers.
        dataset: dataset of the batch; a column of ids (Hugging Face) is looked up by the item numbers.
        count: B, where it is known.
        guess: also look at sequences that are attributes of the dataset and as long as it is. Whether item i
            of the dataset is element i of such a sequence is not certain.
    """
    if index is None or isinstance(index, str | int) or not hasattr(index, "__iter__"):
        return []
    asked = list(index)
    found: list[tuple[str, Any]] = []
    if asked and all(isinstance(i, int) for i in asked):
        for key, expression, values in _columns(dataset, guess):
            with suppress(LookupError, TypeError, AttributeError):
                found += _of_items(key, f"{expression}[i]", [values[i] for i in asked], values)
    else:
        found.append(("[x.id for x in index]", [getattr(x, "id", None) for x in asked]))
    good = [FoundIds(e, tuple(v)) for e, v in found if all(isinstance(x, str) and x for x in v)]
    return [f for f in good if f.values and (count is None or len(f.values) == count)]


def _columns(dataset: Any, guess: bool) -> list[tuple[str, str, Any]]:
    """Return (name, expression, values) of sequences with one value per item, the likeliest ids first."""
    found = []
    for key in getattr(dataset, "column_names", None) or ():
        if key in ID_KEYS:
            found.append((key, f'dataset["{key}"]', dataset[key]))
    with suppress(TypeError):
        for key, value in vars(dataset).items() if guess else ():
            if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(dataset):
                found.append((key, f"dataset.{key}", value))
    return sorted(found, key=lambda c: ID_KEYS.index(c[0]) if c[0] in ID_KEYS else len(ID_KEYS))


def _of_items(key: str, item: str, values: list[Any], column: Any) -> Iterator[tuple[str, list[Any]]]:
    """Yield expressions and ids for some items of a column: named strings, or objects with an id.

    Ids that two items share are left out.

    Args:
        key: name of the column.
        item: expression of one item's value; its variable is ``i``.
        values: values of the items.
        column: values of all items. Paths are shortened to their stem where no two of them share one.
    """
    if all(isinstance(v, str | Path) for v in values):
        if any("/" in str(v) for v in values):
            if len({Path(v).stem for v in column}) == len(column):
                yield f"[stem({item}) for i in index]", [Path(v).stem for v in values]
            else:
                yield f"[str({item}) for i in index]", [str(v) for v in values]
        elif key in ID_KEYS and len(set(column)) == len(column):
            yield f"[{item} for i in index]", values
    elif all(isinstance(v, Mapping) for v in values):
        for inner in ID_KEYS:
            if all(inner in v for v in values):
                of_all = [v[inner] for v in column]
                yield from _of_items(inner, f'{item}["{inner}"]', [v[inner] for v in values], of_all)
    else:
        yield f"[{item}.id for i in index]", [getattr(v, "id", None) for v in values]


def repeated_in_dataset(values: Sequence[str], index: Any, dataset: Any) -> str:
    """Return a sentence that names an id that several items of the dataset share; empty where none is known.

    Ids of a batch are compared with the columns of the dataset, and with the stems of its file names: a dataset often
    makes its ids of these, and files in different folders may share one.

    Args:
        values: ids of a batch.
        index: item numbers of the batch.
        dataset: dataset of the batch.
    """
    if (
        not isinstance(index, Sequence)
        or not all(isinstance(i, int) for i in index)
        or len(index) != len(values)
    ):
        return ""
    for column in _string_columns(dataset):
        for names in (column, [Path(v).stem for v in column]):
            with suppress(LookupError):
                if [names[i] for i in index] == list(values) and len(set(names)) < len(names):
                    name, count = Counter(names).most_common(1)[0]
                    return f"{count} items of the dataset have {name!r}"
    return ""


def _string_columns(dataset: Any) -> Iterator[list[str]]:
    """Yield the sequences of strings or paths with one value per item of a dataset."""
    for _, _, values in _columns(dataset, guess=True):
        rows = list(values)
        if rows and all(isinstance(v, Mapping) for v in rows):
            for key in rows[0]:
                if all(isinstance(v.get(key), str | Path) for v in rows):
                    yield [str(v[key]) for v in rows]
        elif rows and all(isinstance(v, str | Path) for v in rows):
            yield [str(v) for v in rows]


def stems_are_unique(paths: Sequence[str | Path]) -> bool:
    """Return whether no two files share a stem, as far as the paths and the folders beside theirs show.

    Corpora with a folder per speaker often number their files in each: ``spk1/0_1.wav`` and ``spk2/0_1.wav``.
    """
    if len({Path(p).stem for p in paths}) < len(paths):
        return False
    for path in map(Path, paths[:CHECKED_PATHS]):
        if len(path.parts) < 3:  # a relative path of one folder starts from the working directory
            path = path.absolute()
        with suppress(OSError):
            for folder in islice(path.parent.parent.iterdir(), MAX_FOLDERS):
                if folder != path.parent and (folder / path.name).is_file():
                    return False
    return True


def find_texts(batch: Any, count: int) -> FoundIds | None:
    """Return the reference texts of a batch of ``count`` utterances, or None where it has none."""
    for key, expression, value in walk(batch, "batch"):
        listed = isinstance(value, list | tuple) and len(value) == count
        if key in TEXT_KEYS and listed and all(isinstance(v, str) for v in value):
            return FoundIds(expression, tuple(value))
    return None


def walk(value: Any, expression: str, depth: int = DEPTH) -> Iterator[tuple[str, str, Any]]:
    """Yield (last name, expression, value) of everything below a value, the nearest first."""
    inner: list[tuple[str, str, Any]] = []
    if isinstance(value, Mapping):
        inner = [(k, f"{expression}[{k!r}]".replace("'", '"'), v) for k, v in value.items() if _plain(k)]
    elif isinstance(value, list | tuple):
        if hasattr(value, "_fields"):
            inner = [(k, f"{expression}.{k}", v) for k, v in zip(value._fields, value, strict=True)]
        elif len(value) <= 16 and not all(isinstance(v, str) for v in value):
            inner = [("", f"{expression}[{i}]", v) for i, v in enumerate(value)]
    elif hasattr(value, "__dict__"):
        inner = [(k, f"{expression}.{k}", v) for k, v in vars(value).items() if k.isidentifier()]
        inner = [x for x in inner if not x[0].startswith("_")]
    yield from inner
    if depth > 1:
        for key, below, v in inner:
            if key not in ID_KEYS or not isinstance(v, list | tuple):
                yield from walk(v, below, depth - 1)


def _strings(value: Any, expression: str) -> FoundIds | None:
    """Return a value as one string per utterance; None where it is none."""
    if isinstance(value, str) and value:
        return FoundIds(f"[{expression}]", (value,))
    if not isinstance(value, list | tuple) or not value:
        return None
    if all(isinstance(v, str) and v for v in value):
        return FoundIds(expression, tuple(value))
    ids = [getattr(v, "id", None) for v in value]
    if all(isinstance(i, str) and i for i in ids):
        return FoundIds(f"[x.id for x in {expression}]", tuple(map(str, ids)))
    return None


def gives(found: FoundIds, lookup: Callable[[str], Any]) -> bool:
    """Return whether an expression gives the ids that it was found with, evaluated as capture does.

    Args:
        found: ids and their expression.
        lookup: function that returns the value of a name; it raises ``KeyError`` for an unknown one.
    """
    try:
        value = Expression(found.expression, "ids").value(lookup)
    except LogitStoreError:
        return False
    listed = [value] if isinstance(value, str | int) else list(value)
    return tuple(map(str, listed)) == found.values


def _plain(key: Any) -> bool:
    """Return whether a key can be written into an expression between double quotes."""
    return isinstance(key, str) and '"' not in key and "'" not in key and "\\" not in key
