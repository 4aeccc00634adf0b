"""HTML text: elements with content and attributes that are always escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from typing import TypeAlias

_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories that change how the text around them is shown
_HARMLESS = "\t\n\u200c\u200d"  # joiners are part of words in Persian and in Indian scripts
_VOID = frozenset({"br", "img", "input", "meta"})


class Html(str):
    """Text that is HTML already. All other text is escaped before a page contains it."""

    __slots__ = ()


Content: TypeAlias = "str | int | Iterable[Content] | None"


def visible(text: str) -> str:
    r"""Return text with control, bidirectional and surrogate characters as escapes such as ``\u202e``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        ascii(c)[1:-1] if c not in _HARMLESS and unicodedata.category(c) in _UNSAFE else c for c in text
    )


def escape(text: str) -> Html:
    """Return text as HTML that shows exactly this text; HTML stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(visible(text)))


def join(*contents: Content) -> Html:
    """Return contents one after the other; None is left out."""
    parts: list[str] = []
    for content in contents:
        if isinstance(content, str):
            parts.append(escape(content))
        elif isinstance(content, int):
            parts.append(str(content))
        elif content is not None:
            parts.append(join(*content))
    return Html("".join(parts))


def tag(name: str, /, *contents: Content, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: name of the element.
        contents: text, elements, or iterables of both.
        attributes: values of attributes; ``class_`` stands for ``class`` and ``aria_label`` for
            ``aria-label``. True gives an attribute without a value; None and False leave it out.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(visible(str(value)))}"')
    opening = f"<{name}{''.join(written)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*contents)}</{name}>")


def foreign(text: str, cut: int = 0) -> Html:
    """Return text of a store (an id, a token, a transcript) as an element with a direction of its own.

    Args:
        text: any text.
        cut: number of characters that are shown; 0 for all.
    """
    shown = text if not cut or len(text) <= cut else f"{text[: cut - 1]}…"
    return tag("bdi", shown)


def table(head: Iterable[Content], rows: Iterable[Iterable[Content]], **attributes: object) -> Html:
    """Return a table; its columns have the titles of ``head``."""
    titles = tag("thead", tag("tr", [tag("th", title, scope="col") for title in head]))
    lines = [tag("tr", [tag("td", cell) for cell in row]) for row in rows]
    return tag("table", titles, tag("tbody", lines), **attributes)
