"""Encodings of ``auto`` streams: chosen by the job that makes the store, taken as declared by all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..corpus.manifest import Manifest
from ..errors import IdentityError
from ..storage.places import Place
from ..storage.spec_file import read_spec
from ..store.identity import PLANNING, is_declared
from ..teachers.protocol import Teacher
from .plan.options import AutoEncoding, PlanOptions
from .plan.run import plan_encodings


def auto_streams(streams: Mapping[str, str]) -> dict[str, AutoEncoding]:
    """Return the streams whose encoding is to be chosen; raises ``UsageError`` for a malformed ``auto``."""
    found = {name: AutoEncoding.parse(encoding) for name, encoding in streams.items()}
    return {name: auto for name, auto in found.items() if auto is not None}


@contextmanager
def chosen_encodings(
    place: Place,
    teacher: Teacher,
    manifest: Manifest,
    streams: Mapping[str, str],
    options: PlanOptions,
    *,
    writer: str,
    report: Callable[[str], None],
) -> Iterator[dict[str, str]]:
    """Give every stream an encoding: the store's own where the store exists, else the plan's.

    The plan's lock is held until the block ends. A caller that makes the store inside the block makes every
    later job find the chosen encodings.

    Args:
        place: place of the store.
        teacher: teacher to plan with.
        manifest: utterances of the dump.
        streams: encoding, or ``auto…``, by stream.
        options: options of the plan; its streams are the ``auto`` ones.
        writer: name of this job's writer.
        report: called with a sentence for each stream chosen.

    Raises ``IdentityError`` where the existing store lacks a stream.
    """
    with place.lock(PLANNING, wait=True):
        if is_declared(place, writer):
            chosen = {s.name: _as_written(s.encoding, s.form) for s in read_spec(place).streams}
            for name in options.streams:
                if name not in chosen:
                    raise IdentityError(
                        f"this store has no {name} stream; it has {', '.join(chosen)}",
                        where=str(place),
                        why="A store's streams are fixed when it is made.",
                        do="Write to another store.",
                    )
                report(f"{name}: {chosen[name]} is what the store has.")
        else:
            folder = place.stage(PLANNING)
            try:
                plan = plan_encodings(teacher, manifest, options, folder=folder)
            finally:
                place.remove(f"partial/{PLANNING}")
            chosen = {name: m.encoding for name, m in plan.choice.streams.items()}
            for name in options.streams:
                report(f"{name}: {plan.choice.why[name]}")
        yield {name: chosen[name] if name in options.streams else e for name, e in streams.items()}


def _as_written(encoding: str, form: str) -> str:
    """Return an encoding and its lattice form as a user writes them."""
    return encoding if form in ("", "full") else f"{encoding}/{form}"
