"""Self-contained HTML pages: style, script and pictures in one file, which asks no host for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files

from .. import __version__
from ..pictures.html import Content, Html, escape, tag
from .base import Section


@cache
def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    """Return the hash of an inline element, as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(
    title: str,
    heading: Content,
    lead: Content,
    sections: Sequence[Section],
    links: Iterable[tuple[str, str, Content]] = (),
) -> str:
    """Return a whole page.

    The page's policy lets no script run but its own, which it names by its hash, and loads nothing.

    Args:
        title: title of the window.
        heading: heading of the page.
        lead: sentence below the heading.
        sections: sections in order.
        links: (name of a section, anchor, text) of further entries of the list of contents.
    """
    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    )
    below: dict[str, list[Html]] = {}
    for section, anchor, text in links:
        below.setdefault(section, []).append(tag("li", tag("a", text, href=f"#{anchor}")))
    contents = [
        tag(
            "li",
            tag("a", s.title, href=f"#{s.name}"),
            tag("ol", below[s.name]) if s.name in below else None,
        )
        for s in sections
    ]
    nav = tag(
        "nav", tag("p", "logitstore report", class_="brand"), tag("ol", contents), aria_label="Contents"
    )
    bodies = [
        tag(
            "section",
            tag("h2", s.title),
            tag("p", s.lead, class_="lead") if s.lead else None,
            s.body,
            id=s.name,
        )
        for s in sections
    ]
    foot = tag(
        "footer", f"Made by logitstore {__version__}. The page holds all its data and asks no host for any."
    )
    main = tag("main", tag("h1", heading), tag("p", lead, class_="lead"), bodies, foot)
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", escape(title)),
        tag("style", Html(style)),
    ]
    body = [tag("div", nav, main, class_="page"), tag("script", Html(script))]
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"
