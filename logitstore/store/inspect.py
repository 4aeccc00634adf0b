"""What ``inspect`` shows, as plain data: a store as a whole, or one utterance of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..corpus.manifest import Manifest
from ..encodings.base import LOSS
from ..encodings.rows import NOTHING
from ..errors import UsageError
from ..schema.lattice import Form
from ..schema.spec import StoreSpec, StreamSpec
from ..storage.constants import file_name
from ..storage.entries import Entry, entry_name, read_entry
from ..storage.places import Place
from ..targets.decode import best_classes, decode, forced_rnnt, on_grid
from ..targets.target import Target
from ..tokens.transcript import edit_distance
from .reader import Store

SAMPLE = 200
AXES = {
    "full": "(T, U+1, V)",
    "banded": "(T, S, V)",
    "path": "(T+U, V)",
    "sample": "(T, N, V)",
    "mean-u": "(T, V)",
}  # by lattice form


def summary(store: Store, *, sample: int = SAMPLE) -> dict[str, Any]:
    """Identity, size and per-stream statistics, these over at most ``sample`` utterances, spread evenly."""
    entries = [read_entry(store.place, name) for name in store.shards]
    on_disk = footprint(store.place, store.spec, entries)
    frames = sum(e.frames for e in entries)
    ids = [i for e in entries for i in e.ids]
    chosen = ids[:: max(1, -(-len(ids) // sample))] if ids else []
    targets = [store[i] for i in chosen]
    return {
        "store": str(store.place),
        "format": store.spec.version,
        "teacher": store.spec.teacher.to_json(),
        "tokens": store.spec.tokens,
        "storage": store.spec.storage["name"],
        "made_with": store.spec.made_with,
        "allowed": list(store.spec.allowed),
        "gates": list(store.spec.gates),
        "utterances": len(ids),
        "hours": sum(e.seconds for e in entries) / 3600,
        "frames": frames,
        "shards": len(entries),
        "skipped": sum(len(e.skipped) for e in entries),
        "bytes": on_disk.bytes,
        "bytes_once": on_disk.once,
        "bytes_per_frame": on_disk.rows / max(frames, 1),
        "sampled": len(targets),
        "streams": {s.name: _stream(store, s, targets) for s in store.spec.streams},
        "heard": _heard(targets),
    }


def _heard(targets: list[Target]) -> dict[str, float]:
    """Token error rate, by stream, of the transcripts that rows keep beside a reference."""
    errors, lengths = Counter[str](), Counter[str]()
    for target in targets:
        for stream, said in target.meta.get("hyp", {}).items():
            if "ter" in said and target.U:
                errors[stream] += said["ter"] * target.U
                lengths[stream] += target.U
    return {stream: errors[stream] / of for stream, of in lengths.items()}


def _stream(store: Store, spec: StreamSpec, targets: list[Target]) -> dict[str, Any]:
    """What is known of every stream; None where its kind has no such thing."""
    rows, kept_bytes, errors, reference = 0, 0, 0, 0
    for target in targets if spec.stream_kind.axes else ():
        rows += len(target.streams[spec.name])
        arrays = store.row(target.id).arrays
        kept_bytes += sum(a.nbytes for n, a in arrays.items() if n.startswith(f"{spec.name}."))
    unit, n = error_unit(spec, store), max(rows, 1)
    for target in targets if spec.stream_kind.has_transcript else ():
        wrong, of = errors_of(store, target, spec)
        errors, reference = errors + wrong, reference + of
    form = AXES.get(spec.form.partition("+")[0].partition(":")[0], str(spec.stream_kind))
    return {
        "kind": spec.kind,
        "shape": form.replace("D", str(spec.width)) if spec.kind == "hidden" else form,
        "form": spec.form,
        "classes": spec.classes if spec.stream_kind.classes else None,
        "blank": spec.blank if spec.stream_kind.classes else None,
        "encoding": spec.encoding,
        "rows": rows,
        "bytes_per_row": kept_bytes / n if spec.stream_kind.axes else None,
        "of_dense_fp16": kept_bytes / n / (2 * spec.size) if spec.stream_kind.axes else None,
        **(_distributions if spec.stream_kind.classes else _nothing)(spec, targets),
        "rms": _rms(spec, targets) if spec.kind == "hidden" else None,
        "lost": _lost(spec, targets),
        "error_rate": errors / reference if reference else None,
        "error_unit": unit,
        "error_reference": reference,
    }


def _nothing(spec: StreamSpec, targets: list[Target]) -> dict[str, Any]:
    return dict.fromkeys(("entropy", "blank_share", "top1_share", "kept_mass"))


def _distributions(spec: StreamSpec, targets: list[Target]) -> dict[str, Any]:
    """Entropy, blanks, best classes and kept mass of a stream of classes."""
    rows = 0
    entropy = blank = mass = best_sum = 0.0
    for target in targets:
        at = target[spec.name].at(1.0)
        p = np.exp(at.logp.astype(np.float64))
        rows += len(p)
        tail = np.exp(at.tail.astype(np.float64))
        left = np.maximum(spec.classes - (at.logp > NOTHING).sum(axis=1), 1)
        entropy += float(-(p * at.logp).sum() - (tail * (np.maximum(at.tail, NOTHING) - np.log(left))).sum())
        mass += float((1 - tail).sum())
        best_sum += float(p.max(axis=1).sum())
        blank += float((best_classes(target[spec.name]) == spec.blank).sum())
    n = max(rows, 1)
    return {
        "entropy": entropy / n,
        "blank_share": blank / n,
        "top1_share": best_sum / n,
        "kept_mass": mass / n,
    }


def _rms(spec: StreamSpec, targets: list[Target]) -> float:
    """Root mean square of a layer's numbers."""
    squares = [np.square(t.vectors(spec.name), dtype=np.float64) for t in targets]
    return float(np.sqrt(sum(x.sum() for x in squares) / max(sum(x.size for x in squares), 1)))


def _lost(spec: StreamSpec, targets: list[Target]) -> dict[str, float] | None:
    """Nats lost a row, as the dump measured them (SPEC E11); None where the encoding says nothing of it.

    ``p99`` is the largest of the utterances' own: 99 of 100 rows lose no more.
    """
    said = [(t.shapes[spec.name], lost) for t in targets if (lost := t.meta.get(LOSS, {}).get(spec.name))]
    if not said:
        return None
    weights = [float(np.prod(shape[:-1])) for shape, _ in said]
    mean, p99, most = zip(*(lost for _, lost in said), strict=True)
    return {"mean": float(np.average(mean, weights=weights)), "p99": max(p99), "max": max(most)}


def error_unit(spec: StreamSpec, store: Store) -> str:
    """What the errors of a stream are counted in: tokens where labels are stored that are its own."""
    own = spec.stream_kind.labels or (
        spec.stream_kind.classes and any(s.kind == "rnnt" for s in store.spec.streams)
    )
    return "token" if own else "word"


def errors_of(store: Store, target: Target, spec: StreamSpec) -> tuple[int, int]:
    """Errors of the greedy decode, or of a transcript, and length of the reference: tokens or words."""
    if _means(spec):
        return 0, 0
    if error_unit(spec, store) == "token":
        reference = target.driven.get(spec.name, target.labels).tolist()
        return edit_distance(reference, decode(target, spec.name, spec.blank)), len(reference)
    if target.text is None:
        return 0, 0
    words = target.text.split()
    return edit_distance(words, _text(store, target, spec).split()), len(words)


def _text(store: Store, target: Target, spec: StreamSpec) -> str:
    if not spec.stream_kind.axes:
        return str(target.meta["hyp"][spec.name]["text"])
    tokens = decode(target, spec.name, spec.blank)
    head = store.spec.teacher.head(spec.name)
    return store.tokens.text([i for i in tokens if head is None or i != head.end])


def _means(spec: StreamSpec) -> bool:
    """Whether rows are means of a lattice's nodes: no walk through them says anything."""
    return spec.kind == "rnnt" and Form.parse(spec.form).framewise


def against_manifest(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Utterances of the manifest that the store lacks, and the other way round."""
    asked = {u.id for u in manifest}
    missing = sorted(i for i in asked if i not in store)
    extra = sorted(i for i in store if i not in asked)
    return {
        "asked": len(asked),
        "missing": missing,
        "extra": extra,
        "bad_lines": [p.to_json() for p in manifest.problems],
    }


def utterance(store: Store, utt_id: str, *, top: int = 5) -> dict[str, Any]:
    """One utterance: lengths, decodes beside the reference, and the best classes of every frame.

    A lattice is shown along its greedy walk, one line a node.
    """
    if top < 1:
        raise UsageError(f"the best {top} classes")
    target = store[utt_id]
    names = store.tokens.tokens
    out: dict[str, Any] = {
        "id": utt_id,
        "T": target.T,
        "U": target.U,
        "seconds": target.meta.get("seconds"),
        "text": target.text,
        "labels": [names[i] for i in target.labels],
        "streams": {},
    }
    for spec in store.spec.streams:
        found: dict[str, Any] = {
            "shape": list(target.shapes.get(spec.name, ())),
            "encoding": spec.encoding,
            "heard": target.meta.get("hyp", {}).get(spec.name),
        }
        if spec.stream_kind.has_transcript:
            wrong, of = errors_of(store, target, spec)
            text = "" if _means(spec) else _text(store, target, spec)
            found |= {"text": text, "errors": wrong, "reference": of}
        if spec.stream_kind.classes:
            found |= _rows(store, target, spec, top)
        if spec.name in target.driven:
            found["labels"] = [names[i] for i in target.driven[spec.name]]
        if spec.kind == "hidden":
            size = np.sqrt(np.square(target.vectors(spec.name)).mean(1))
            found["rms"] = [float(x) for x in size]
        out["streams"][spec.name] = found
    return out


def _rows(store: Store, target: Target, spec: StreamSpec, top: int) -> dict[str, Any]:
    """The greedy decode of a stream, and the best classes of every row; of a lattice, along the walk."""
    names = store.tokens.tokens
    at = target[spec.name].at(1.0)
    best = best_classes(target[spec.name])
    grid = target.grid(spec.name)
    tokens = [] if _means(spec) else decode(target, spec.name, spec.blank)
    if grid is not None:
        path = forced_rnnt(on_grid(best, grid), spec.blank)
        nodes = [({"t": t, "u": u}, int(grid[t, u])) for t, u in path.nodes]
    else:
        axis = spec.stream_kind.axes[0].lower()
        nodes = [({axis: n}, n) for n in range(len(best))]
    lines = []
    for place, row in nodes:
        order = np.argsort(-at.logp[row], kind="stable")[:top]
        ids = order if at.ids is None else at.ids[row][order]
        probs = np.exp(at.logp[row][order])
        line: dict[str, Any] = dict(place)
        line["best"] = [[names[i], float(p)] for i, p in zip(ids, probs, strict=True)]
        line["tail"] = float(np.exp(at.tail[row]))
        lines.append(line)
    return {"decoded": [names[i] for i in tokens], "frames": lines}


ONCE = ("logitstore.json", "tokens.txt", "zarr.json", "shards/zarr.json")


DERIVED = ("index.bin", "skipped.jsonl")


@dataclass(frozen=True)
class Footprint:
    """Bytes of a store's files.

    Attributes:
        rows: shards, their entries, the index: what grows with what is dumped.
        once: heads of factored streams, the token table, logitstore.json: the same for any number of rows.
    """

    rows: int
    once: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.rows + self.once


def footprint(place: Place, spec: StoreSpec, entries: Iterable[Entry]) -> Footprint:
    """Of a store whose shards are those of ``entries``."""
    once = [*ONCE, *(file_name(s.name, str(c["name"])) for s in spec.streams for c in s.constants)]
    rows = sum(e.bytes + place.size(entry_name(e.shard)) for e in entries)
    return Footprint(rows + _sizes(place, DERIVED), _sizes(place, once))


def _sizes(place: Place, names: Iterable[str]) -> int:
    return sum(place.size(name) for name in names if place.exists(name))
