"""Heads of a factored store: constants made once before the first shard, and checks of the heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from ..corpus.manifest import Manifest, Utterance
from ..encodings import FOR_LOGITS, HeadEncoding, SidesSample, parse_encoding, stores_head
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
CHECKED_UTTERANCES, CHECKED_FRAMES = 4, 50  # of the first batch, for the joiner
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


def factored(spec: StoreSpec) -> dict[str, HeadEncoding]:
    """Return the encodings that store a head, by stream."""
    found = {s.name: parse_encoding(s.encoding) for s in spec.streams if s.stream_kind.axes}
    return {name: e for name, e in found.items() if stores_head(e)}


def once_per_store(
    place: Place, spec: StoreSpec, driver: TeacherDriver, manifest: Manifest, batch_seconds: float
) -> tuple[StoreSpec, Constants]:
    """Return the store's spec with widths of heads and layers, and the constants of stored heads.

    A store with shards has both already, and no constants are returned. Otherwise they are made here, from
    the teacher and the manifest alone, so that any of several jobs makes the same.

    Args:
        place: location of the store.
        spec: spec of the store without widths.
        driver: the teacher on its device.
        manifest: utterances of the whole store.
        batch_seconds: seconds of audio of a batch.
    """
    encodings = factored(spec)
    spec = _measured(place, spec, driver, manifest, batch_seconds)
    if not encodings:
        return spec, {}
    if is_store(place) and shard_names(place):  # without shards it binds nobody
        return _with_stored_heads(place, spec, driver), {}
    activation = ""
    if "rnnt" in encodings:
        activation = activation_of(driver, next(_sampled_outputs(driver, manifest, batch_seconds)))
    samples: dict[str, torch.Tensor | SidesSample] = {}
    if any(e.needs_sample for e in encodings.values()):
        asked = [n for n, e in encodings.items() if e.needs_sample]
        samples = _samples(driver, manifest, batch_seconds, asked, activation)
    made = {n: e.prepare(driver.heads[n], samples.get(n)) for n, e in encodings.items()}
    return with_heads(spec, driver, made, activation), made


def with_heads(spec: StoreSpec, driver: TeacherDriver, made: Constants, activation: str) -> StoreSpec:
    """Return the spec of a store with these constants.

    Args:
        spec: spec without widths and constants of heads.
        driver: the teacher on its device.
        made: constants by stream.
        activation: name of the function before an rnnt head.
    """
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


def _with_stored_heads(place: Place, spec: StoreSpec, driver: TeacherDriver) -> StoreSpec:
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


def _sampled_outputs(
    driver: TeacherDriver, manifest: Manifest, batch_seconds: float
) -> Iterator[TeacherOutput]:
    """Run the teacher on utterances spread over the manifest, without those that cannot be loaded.

    Raises ``TeacherError`` where none can be loaded.
    """
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
            "no utterance to measure the head on",
            why="None of the sampled utterances could be loaded.",
            do="Check the manifest: logitstore doctor opens its recordings.",
        )


def fitted(number: int, utterances: int) -> bool:
    """Tell whether the utterance of this number, from 0, is in the sample that constants are made from."""
    every = max(1, utterances // SAMPLE_UTTERANCES)
    return number % every == 0 and number // every < SAMPLE_UTTERANCES


def _samples(
    driver: TeacherDriver, manifest: Manifest, batch_seconds: float, streams: Sequence[str], activation: str
) -> dict[str, torch.Tensor | SidesSample]:
    """Collect (N, D) rows of each head's input, and both sides of a lattice, by stream."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in streams if name != "rnnt"}
    sides: list[tuple[torch.Tensor, torch.Tensor]] = []
    for output in _sampled_outputs(driver, manifest, batch_seconds):
        for name, found in rows.items():
            found.append(inputs_of(driver, output, name)[0].float())
        if "rnnt" in streams:
            sides.append(sides_of(driver, output))
    samples: dict[str, torch.Tensor | SidesSample] = {name: thinned(each) for name, each in rows.items()}
    return samples if not sides else {**samples, "rnnt": SidesSample(sides, activation)}


def sides_of(driver: TeacherDriver, output: TeacherOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sides of an utterance's lattice, (T, J) and (U+1, J), as float32."""
    enc, dec = driver.sides(output)
    return enc.float(), dec.float()


def thinned(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join rows to (N, D), without those that are not finite; of more than ``SAMPLE_FRAMES``, every other utterance.

    Rows that follow each other stay neighbours: an encoding may predict one from the other.
    """
    every = -(-sum(map(len, rows)) // SAMPLE_FRAMES)
    found = torch.cat([*rows[::every]])
    return found[found.isfinite().all(1)][: 2 * SAMPLE_FRAMES]


def inputs_of(driver: TeacherDriver, output: TeacherOutput, stream: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (N, D) input of a stream's head and its (N, V) logits."""
    if stream in output.rows:
        return output.inputs[stream], output.rows[stream]
    labels = output.labels.get(stream)
    if labels is None:
        labels = driver.with_end(stream, driver.generated(output, stream)[0])
    logits, inputs = driver.decoded(output, stream, labels)
    assert inputs is not None
    return inputs, logits


def _measured(
    place: Place, spec: StoreSpec, driver: TeacherDriver, manifest: Manifest, batch_seconds: float
) -> StoreSpec:
    """Return the spec with the width of every hidden layer, the store's own or a measured one."""
    layers = [s.name for s in spec.streams if not s.stream_kind.classes and s.stream_kind.axes]
    if not layers:
        return spec
    if is_store(place) and shard_names(place):
        was = read_spec(place)
        widths = {s.name: s.width for s in was.streams}
    else:
        output = next(_sampled_outputs(driver, manifest, batch_seconds))
        widths = {name: int(output.rows[name].shape[1]) for name in layers}
    return replace(
        spec,
        streams=tuple(
            replace(s, width=widths.get(s.name, s.width)) if s.name in layers and not s.width else s
            for s in spec.streams
        ),
    )


def activation_of(driver: TeacherDriver, output: TeacherOutput) -> str:
    """Find the name of the function before the joiner's head on one utterance; raises ``TeacherError``."""
    enc, dec = driver.sides(output)
    inputs, _, _ = driver.joined(enc[:CHECKED_FRAMES], dec)
    added = (enc[:CHECKED_FRAMES, None] + dec[None]).flatten(0, 1).float()
    if inputs.shape == added.shape:
        for name, function in ACTIVATIONS.items():
            if bool(torch.isclose(function(added), inputs.float(), atol=1e-5, rtol=1e-5).all()):
                return name
    raise TeacherError(
        f"the input of the joiner's head is not {' or '.join(ACTIVATIONS)} of enc + dec",
        where=output.loaded.utt.id,
        why="A joiner that multiplies, gates or normalises cannot be computed from its two stored sides.",
        do=f"Store the lattice as {FOR_LOGITS}.",
    )


def require_lattice_factors(driver: TeacherDriver, outputs: Sequence[TeacherOutput]) -> str:
    """Check that both sides and the stored head give the model's own lattice.

    Returns a finding for the self-check; raises ``TeacherError`` where they do not.
    """
    head, worst = driver.heads["rnnt"], 0.0
    for item in outputs[:CHECKED_UTTERANCES]:
        enc, dec = driver.sides(item)
        inputs, logits, joined = driver.joined(enc[:CHECKED_FRAMES], dec)
        own = [("the joiner's head", logits)]
        if isinstance(joined, torch.Tensor) and joined.numel() == logits.numel():
            own.append(("join()", joined.reshape(logits.shape)))
        for name, value in own:
            missed = gap(head, inputs, value)
            worst = max(worst, missed)
            if not missed <= SAME:
                raise TeacherError(
                    f"weight and bias of the joiner's head miss the output of {name} by {missed:.3g}",
                    where=item.loaded.utt.id,
                    why="The head is more than one Linear: a separate blank (HAT), dropout, or a scale.",
                    do=f"Store the lattice as {FOR_LOGITS}.",
                )
    return f"the joiner's two sides and its head give its own log-probabilities, within {worst:.1e}"


def _ignore(utt: Utterance, error: LogitStoreError) -> None:
    """Ignore an utterance that cannot be loaded: the dump itself names it."""


def require_factors(driver: TeacherDriver, outputs: Sequence[TeacherOutput], stream: str) -> str:
    """Check that the stored head gives the model's own logits.

    Returns a finding for the self-check; raises ``TeacherError`` where it does not.
    """
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
                why="The layer is more than weight and bias (active dropout, a scale, quantised weights), so "
                "its output cannot be computed from its stored input.",
                do=f"Store {FOR_LOGITS}.",
            )
    return f"weight and bias of the {stream} head give its own log-probabilities, within {worst:.1e}"
