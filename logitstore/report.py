"""What ``inspect`` shows, as plain data: a store as a whole, or one utterance of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from .decode import best_classes, decode, edit_distance, forced_rnnt, greedy_ctc, on_grid
from .encodings.base import LOSS
from .errors import UsageError
from .footprint import footprint
from .lattice import Form
from .manifest import Manifest
from .reader import Store
from .sealed import read_entry
from .spec import StreamSpec
from .target import NOTHING, Target

SAMPLE = 200
AXES = {
    "full": "(T, U+1, V)",
    "banded": "(T, S, V)",
    "path": "(T+U, V)",
    "sample": "(T, N, V)",
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
    rows = kept_bytes = 0
    entropy = blank = mass = best_sum = 0.0
    errors = reference = 0
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
        arrays = store.row(target.id).arrays
        kept_bytes += sum(a.nbytes for n, a in arrays.items() if n.startswith(f"{spec.name}."))
        wrong, of = errors_of(store, target, spec)
        errors, reference = errors + wrong, reference + of
    shape = AXES.get(spec.form.partition("+")[0].partition(":")[0], "(T, V)")
    n = max(rows, 1)
    return {
        "kind": spec.kind,
        "shape": shape,
        "form": spec.form,
        "classes": spec.classes,
        "blank": spec.blank,
        "encoding": spec.encoding,
        "rows": rows,
        "bytes_per_row": kept_bytes / n,
        "of_dense_fp16": kept_bytes / n / (2 * spec.classes),
        "entropy": entropy / n,
        "blank_share": blank / n,
        "top1_share": best_sum / n,
        "kept_mass": mass / n,
        "lost": _lost(spec, targets),
        "error_rate": errors / reference if reference else None,
        "error_unit": "token" if store.has_labels else "word",
        "error_reference": reference,
    }


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


def errors_of(store: Store, target: Target, spec: StreamSpec) -> tuple[int, int]:
    """Errors of the greedy decode and length of the reference: tokens where labels are stored, else words."""
    if _means(spec):
        return 0, 0
    hypothesis = decode(target, spec.name, spec.blank)
    if store.has_labels:
        return edit_distance(target.labels.tolist(), hypothesis), target.U
    if target.text is None:
        return 0, 0
    words = target.text.split()
    return edit_distance(words, store.tokens.text(hypothesis).split()), len(words)


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
        at = target[spec.name].at(1.0)
        shape = target.shapes[spec.name]
        best = best_classes(target[spec.name])
        grid = target.grid(spec.name)
        if grid is not None:
            path = forced_rnnt(on_grid(best, grid), spec.blank)
            nodes = [(t, u, int(grid[t, u])) for t, u in path.nodes]
            tokens = list(path.tokens)
        else:
            nodes = [(t, -1, t) for t in range(shape[0])]
            tokens = [] if _means(spec) else greedy_ctc(best, spec.blank)
        lines = []
        for t, u, row in nodes:
            order = np.argsort(-at.logp[row], kind="stable")[:top]
            ids = order if at.ids is None else at.ids[row][order]
            probs = np.exp(at.logp[row][order])
            line: dict[str, Any] = {"t": t} if u < 0 else {"t": t, "u": u}
            line["best"] = [[names[i], float(p)] for i, p in zip(ids, probs, strict=True)]
            line["tail"] = float(np.exp(at.tail[row]))
            lines.append(line)
        wrong, of = errors_of(store, target, spec)
        out["streams"][spec.name] = {
            "shape": list(shape),
            "encoding": spec.encoding,
            "decoded": [names[i] for i in tokens],
            "text": store.tokens.text(tokens),
            "errors": wrong,
            "reference": of,
            "heard": target.meta.get("hyp", {}).get(spec.name),
            "frames": lines,
        }
    return out
