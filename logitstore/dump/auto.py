"""``auto`` instead of an encoding: planned by whoever makes the store, taken as declared by all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..corpus.manifest import Manifest
from ..errors import IdentityError
from ..schema.checksums import open_json
from ..schema.spec import StoreSpec
from ..storage.places import Place
from ..store.identity import PLANNING, is_declared
from ..teachers.protocol import Teacher
from .plan.contenders import Wish
from .plan.options import PlanOptions
from .plan.run import plan


def wishes(streams: Mapping[str, str]) -> dict[str, Wish]:
    """The streams whose encoding is to be chosen; raises ``UsageError`` for a wish that says nothing."""
    found = {name: Wish.parse(encoding) for name, encoding in streams.items()}
    return {name: wish for name, wish in found.items() if wish is not None}


@contextmanager
def decided(
    place: Place,
    teacher: Teacher,
    manifest: Manifest,
    streams: Mapping[str, str],
    options: PlanOptions,
    *,
    writer: str,
    say: Callable[[str], None],
) -> Iterator[dict[str, str]]:
    """Every stream with a real encoding: the store's own where there is one, else the plan's.

    The lock of that name is held until the body ends: begin the store there, and jobs that come later find
    what it declares.

    Args:
        place: of the store.
        teacher: to plan with.
        manifest: of the dump.
        streams: encoding, or wish, by stream.
        options: of the plan; its streams are those wished for.
        writer: name of this job's writer.
        say: told what was taken, and why.
    """
    with place.lock(PLANNING, wait=True):
        wished = options.streams
        if is_declared(place, writer):
            store = StoreSpec.from_json(open_json(place.read("logitstore.json"), "logitstore.json"))
            chosen = {s.name: _written(s.encoding, s.form) for s in store.streams}
            for name in wished:
                if name not in chosen:
                    raise IdentityError(
                        f"this store has no {name} stream; it has {', '.join(chosen)}",
                        where=str(place),
                        do="Write to another store.",
                    )
                say(f"{name}: {chosen[name]} is what the store has.")
        else:
            folder = place.stage(PLANNING)
            try:
                found = plan(teacher, manifest, folder, options)
            finally:
                place.remove(f"partial/{PLANNING}")
            chosen = {name: m.encoding for name, m in found.choice.streams.items()}
            for name in wished:
                say(f"{name}: {found.choice.why[name]}")
        yield {name: chosen[name] if name in wished else encoding for name, encoding in streams.items()}


def _written(encoding: str, form: str) -> str:
    """As a user writes it."""
    return encoding if form in ("", "full") else f"{encoding}/{form}"
