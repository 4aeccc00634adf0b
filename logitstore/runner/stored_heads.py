"""What a factored store keeps once: made before its first shard, from the head and a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from ..corpus.manifest import Manifest, Utterance
from ..encodings import FOR_LOGITS, HeadEncoding, parse_encoding, stores_head
from ..encodings.linear_head import SAME, gap
from ..errors import LogitStoreError, TeacherError
from ..schema.spec import StoreSpec
from ..storage.constants import Constants, declared
from ..storage.entries import shard_names
from ..storage.places import Place
from ..storage.spec_file import is_store, read_spec
from .driver import TeacherDriver, TeacherOutput
from .loader import by_length, load

SAMPLE_UTTERANCES, SAMPLE_FRAMES = 64, 20_000
CHECKED, FRAMES = 4, 50  # utterances of the first batch, and frames of each, that a joiner is checked on
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


def factored(spec: StoreSpec) -> dict[str, HeadEncoding]:
    """The encodings that store a head, by stream."""
    found = {s.name: parse_encoding(s.encoding) for s in spec.streams if s.stream_kind.axes}
    return {name: e for name, e in found.items() if stores_head(e)}


def once_per_store(
    place: Place, spec: StoreSpec, driver: TeacherDriver, manifest: Manifest, batch_seconds: float
) -> tuple[StoreSpec, Constants]:
    """The spec with widths and constants: those of the store where there is one, else made here.

    They depend on the teacher and the manifest alone, so that any job that comes first makes the same.
    """
    encodings = factored(spec)
    spec = _measured(place, spec, driver, manifest, batch_seconds)
    if not encodings:
        return spec, {}
    if is_store(place) and shard_names(place):  # without shards, its answers may be forgotten
        return _as_stored(place, spec, driver), {}
    samples: dict[str, torch.Tensor] = {}
    if any(e.needs_sample for e in encodings.values()):
        asked = [n for n, e in encodings.items() if e.needs_sample]
        samples = _samples(driver, manifest, batch_seconds, asked)
    made = {n: e.prepare(driver.heads[n], samples.get(n)) for n, e in encodings.items()}
    activation = ""
    if "rnnt" in made:
        activation = activation_of(driver, next(_outputs(driver, manifest, batch_seconds)))
    return with_heads(spec, driver, made, activation), made


def with_heads(spec: StoreSpec, driver: TeacherDriver, made: Constants, activation: str) -> StoreSpec:
    """The spec of a store that keeps these constants; ``activation`` is the one before an rnnt head."""
    streams = [
        replace(
            declared(s, made[s.name]),
            width=driver.heads[s.name].width,
            activation=activation if s.kind == "rnnt" else "",
        )
        if s.name in made
        else s
        for s in spec.streams
    ]
    return replace(spec, streams=tuple(streams))


def _as_stored(place: Place, spec: StoreSpec, driver: TeacherDriver) -> StoreSpec:
    was = read_spec(place)
    stored = {s.name: s for s in was.streams}
    streams = [
        replace(
            s,
            width=driver.heads[s.name].width,
            constants=stored[s.name].constants,
            activation=stored[s.name].activation,
        )
        if s.name in driver.heads and s.name in stored
        else s
        for s in spec.streams
    ]
    return replace(spec, streams=tuple(streams))


def _outputs(driver: TeacherDriver, manifest: Manifest, batch_seconds: float) -> Iterator[TeacherOutput]:
    """Utterances spread over the manifest; what cannot be loaded is left out. None at all is an error."""
    some = False
    chosen = [u for n, u in enumerate(manifest) if fitted(n, manifest.utterances)]
    needs_labels = any(kind.labels for kind in driver.kinds.values())
    for batch in by_length(chosen, batch_seconds, _ignore):
        loaded = []
        for utt in batch:
            with suppress(LogitStoreError):
                loaded.append(load(utt, driver.teacher, driver.table, needs_labels))
        for output in driver.run(loaded) if loaded else ():
            if output.T:
                some = True
                yield output
    if not some:
        raise TeacherError(
            "not one utterance to measure its head on", do="Look at the manifest: nothing could be loaded."
        )


def fitted(number: int, utterances: int) -> bool:
    """Whether an utterance, numbered from 0, is one of those that constants are made from."""
    every = max(1, utterances // SAMPLE_UTTERANCES)
    return number % every == 0 and number // every < SAMPLE_UTTERANCES


def _samples(
    driver: TeacherDriver, manifest: Manifest, batch_seconds: float, streams: Sequence[str]
) -> dict[str, torch.Tensor]:
    """By stream, (N, D) rows of its head's input."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in streams}
    for output in _outputs(driver, manifest, batch_seconds):
        for name in streams:
            rows[name].append(inputs_of(driver, output, name)[0].float())
    return {name: thinned(each) for name, each in rows.items()}


def thinned(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """(N, D) rows that constants are made from: finite ones, and no more than it takes."""
    found = torch.cat(list(rows))
    found = found[found.isfinite().all(1)]
    return found[:: -(-len(found) // SAMPLE_FRAMES)]


def inputs_of(driver: TeacherDriver, output: TeacherOutput, stream: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) what went into the head of a stream, and the (N, V) logits that it made of it."""
    if stream in output.rows:
        return output.inputs[stream], output.rows[stream]
    labels = output.labels.get(stream)
    if labels is None:  # nobody gave any: the decoder's own
        labels = driver.with_end(stream, driver.generated(output, stream)[0])
    logits, inputs = driver.decoded(output, stream, labels)
    assert inputs is not None
    return inputs, logits


def _measured(
    place: Place, spec: StoreSpec, driver: TeacherDriver, manifest: Manifest, batch_seconds: float
) -> StoreSpec:
    """The spec with the width of every layer that is stored: as the store says, else as it gives."""
    layers = [s.name for s in spec.streams if not s.stream_kind.classes and s.stream_kind.axes]
    if not layers:
        return spec
    if is_store(place) and shard_names(place):
        was = read_spec(place)
        widths = {s.name: s.width for s in was.streams}
    else:
        output = next(_outputs(driver, manifest, batch_seconds))
        widths = {name: int(output.rows[name].shape[1]) for name in layers}
    return replace(
        spec,
        streams=tuple(
            replace(s, width=widths.get(s.name, s.width)) if s.name in layers and not s.width else s
            for s in spec.streams
        ),
    )


def activation_of(driver: TeacherDriver, output: TeacherOutput) -> str:
    """The function in front of the joiner's head, found on one utterance; raises ``TeacherError``."""
    enc, dec = driver.sides(output)
    inputs, _, _ = driver.joined(enc[:FRAMES], dec)
    added = (enc[:FRAMES, None] + dec[None]).flatten(0, 1).float()
    if inputs.shape == added.shape:
        for name, function in ACTIVATIONS.items():
            if bool(torch.isclose(function(added), inputs.float(), atol=1e-5, rtol=1e-5).all()):
                return name
    raise TeacherError(
        f"what goes into the joiner's head is not {' or '.join(ACTIVATIONS)} of enc + dec",
        where=output.loaded.utt.id,
        why="A joiner that multiplies, gates or normalises does not come back from its two sides.",
        do=f"Store the lattice as {FOR_LOGITS}.",
    )


def require_lattice_factors(driver: TeacherDriver, outputs: Sequence[TeacherOutput]) -> str:
    """Prove that both sides and the stored head give the model's own lattice; raises ``TeacherError``."""
    head, worst = driver.heads["rnnt"], 0.0
    for item in outputs[:CHECKED]:
        enc, dec = driver.sides(item)
        inputs, logits, joined = driver.joined(enc[:FRAMES], dec)
        own = [("the joiner's head", logits)]
        if isinstance(joined, torch.Tensor) and joined.numel() == logits.numel():
            own.append(("join()", joined.reshape(logits.shape)))
        for what, value in own:
            missed = gap(head, inputs, value)
            worst = max(worst, missed)
            if not missed <= SAME:
                raise TeacherError(
                    f"weight and bias of the joiner's head miss what {what} says by {missed:.3g}",
                    where=item.loaded.utt.id,
                    why="Something follows the layer or lies in it: a blank apart (HAT), dropout, a scale.",
                    do=f"Store the lattice as {FOR_LOGITS}.",
                )
    return f"the joiner's two sides and its head give its own log-probabilities, within {worst:.1e}"


def _ignore(utt: Utterance, error: LogitStoreError) -> None:
    """The dump itself names what cannot be loaded."""


def require_factors(driver: TeacherDriver, outputs: Sequence[TeacherOutput], stream: str) -> str:
    """Prove that the stored head gives the model's own logits; raises ``TeacherError`` where it does not."""
    head, worst = driver.heads[stream], 0.0
    for item in outputs:
        if not item.T:
            continue
        inputs, logits = inputs_of(driver, item, stream)
        missed = gap(head, inputs, logits)
        worst = max(worst, missed)
        if not missed <= SAME:
            raise TeacherError(
                f"weight and bias of the {stream} head miss its own log-probabilities by {missed:.3g}",
                where=item.loaded.utt.id,
                why="The layer does more than it says (dropout live, a scale, quantised weights): "
                "what goes into it does not tell what comes out.",
                do=f"Store {FOR_LOGITS}.",
            )
    return f"weight and bias of the {stream} head give its own log-probabilities, within {worst:.1e}"
