"""What a factored store keeps once: made before its first shard, from the head and a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from .batches import by_length, load
from .constants import Constants, declared
from .digest import open_json
from .drive import Driver, Spoken
from .encodings import HeadEncoding, parse_encoding
from .errors import LogitStoreError, TeacherError
from .manifest import Manifest, Utterance
from .places import Place
from .spec import StoreSpec

SAMPLE_UTTERANCES, SAMPLE_FRAMES = 64, 20_000
SAME = 1e-3  # nats: between the model's own log-probabilities and the head's


def factored(spec: StoreSpec) -> dict[str, HeadEncoding]:
    """The encodings that store a head, by stream."""
    found = {s.name: parse_encoding(s.encoding) for s in spec.streams}
    return {name: e for name, e in found.items() if isinstance(e, HeadEncoding)}


def once_per_store(
    place: Place, spec: StoreSpec, driver: Driver, manifest: Manifest, batch_seconds: float
) -> tuple[StoreSpec, Constants]:
    """The spec with widths and constants: those of the store where there is one, else made here.

    They depend on the teacher and the manifest alone, so that any job that comes first makes the same.
    """
    encodings = factored(spec)
    if not encodings:
        return spec, {}
    if place.exists("logitstore.json"):
        return _as_stored(place, spec, driver), {}
    sample = None
    if any(e.needs_sample for e in encodings.values()):
        sample = _sample(driver, manifest, batch_seconds)
    made = {n: e.prepare(driver.heads[n], sample) for n, e in encodings.items()}
    streams = [
        replace(declared(s, made[s.name]), width=driver.heads[s.name].width) if s.name in made else s
        for s in spec.streams
    ]
    return replace(spec, streams=tuple(streams)), made


def _as_stored(place: Place, spec: StoreSpec, driver: Driver) -> StoreSpec:
    was = StoreSpec.from_json(open_json(place.read("logitstore.json"), "logitstore.json"))
    stored: Mapping[str, tuple[dict[str, object], ...]] = {s.name: s.constants for s in was.streams}
    streams = [
        replace(s, width=driver.heads[s.name].width, constants=stored.get(s.name, ()))
        if s.name in driver.heads
        else s
        for s in spec.streams
    ]
    return replace(spec, streams=tuple(streams))


def _sample(driver: Driver, manifest: Manifest, batch_seconds: float) -> torch.Tensor:
    """(N, D) rows of utterances spread over the manifest; what cannot be loaded or run is left out."""
    every = max(1, manifest.utterances // SAMPLE_UTTERANCES)
    chosen = [u for n, u in enumerate(manifest) if n % every == 0][:SAMPLE_UTTERANCES]
    rows: list[torch.Tensor] = []
    for batch in by_length(chosen, batch_seconds, _ignore):
        loaded = []
        for utt in batch:
            try:
                loaded.append(load(utt, driver.teacher, driver.table, False))
            except LogitStoreError:
                continue
        if loaded:
            rows += [s.hidden.float() for s in driver.run(loaded) if s.hidden is not None and s.T]
    rows = [r for r in rows if bool(r.isfinite().all())]
    if not rows:
        raise TeacherError(
            "not one utterance to measure its head on", do="Look at the manifest: nothing could be loaded."
        )
    found = torch.cat(rows)
    return found[:: -(-len(found) // SAMPLE_FRAMES)]


def _ignore(utt: Utterance, error: LogitStoreError) -> None:
    """The dump itself names what cannot be loaded."""


def require_factors(driver: Driver, spoken: list[Spoken]) -> str:
    """Prove that the stored head gives the model's own logits; raises ``TeacherError`` where it does not."""
    head, worst = driver.heads["ctc"], 0.0
    for item in spoken:
        if item.hidden is None or item.ctc is None or not item.T:
            continue
        weight, bias = (item.hidden.new_tensor(x) for x in (head.weight, head.bias))
        ours = (item.hidden @ weight.T + bias).float().log_softmax(-1)
        own = item.ctc.float().log_softmax(-1)
        gap = float(torch.where(own > -30, ours - own, 0).abs().max())
        worst = max(worst, gap)
        if not gap <= SAME:
            raise TeacherError(
                f"weight and bias of the ctc head miss its own log-probabilities by {gap:.3g}",
                where=item.loaded.utt.id,
                why="The layer does more than it says (dropout live, a scale, quantised weights): "
                "what goes into it does not tell what comes out.",
                do="Store dense, topk or nucleus.",
            )
    return f"weight and bias of the ctc head give its own log-probabilities, within {worst:.1e}"
