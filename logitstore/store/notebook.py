"""A store as HTML for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..pictures.html import Html, foreign, table, tag

if TYPE_CHECKING:
    from .reader import Store


def store_html(store: Store) -> Html:
    """Return a store: its teacher, its number of utterances and its streams. No record is read."""
    teacher = store.spec.teacher
    head = [
        tag("b", foreign(str(store.place), 200)),
        f": {len(store)} utterances by ",
        foreign(teacher.name, 80),
    ]
    rows = [
        [foreign(s.name), f"{s.size}", foreign(s.encoding or "–", 60), foreign(s.form or "–", 60)]
        for s in store.spec.streams
    ]
    return tag("div", tag("p", head), table(["stream", "numbers a row", "encoding", "lattice"], rows))
