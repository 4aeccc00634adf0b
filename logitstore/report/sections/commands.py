"""The section of commands: how the store and the page are made."""

from __future__ import annotations

import shlex

from ...pictures.html import Content, foreign, tag
from ...schema.spec import StoreSpec
from ..base import Report, Section

ORDER = 90


def draw(report: Report) -> Section:
    """Return the dump's options as the store records them, and the command of the page."""
    body: list[Content] = [
        tag("h3", "The store"),
        tag("pre", tag("code", foreign(dump_command(report.store.spec)))),
        tag(
            "p",
            "Written from the store's description, which holds no paths: put the teacher, the manifest and the "
            "store in place of the capitals.",
            class_="quiet",
        ),
    ]
    if report.options.command:
        body += [tag("h3", "This page"), tag("pre", tag("code", foreign(shlex.join(report.options.command))))]
    return Section("Commands", body, "commands")


def dump_command(spec: StoreSpec) -> str:
    """Return the dump command that gives a store's streams and storage backend."""
    parts = ["logitstore dump --teacher TEACHER --manifest MANIFEST --out STORE"]
    for s in spec.streams:
        if s.kind == "hidden":
            head = spec.teacher.head(s.name)
            parts.append(f"--hidden {shlex.quote(f'{s.name}={head.module}' if head else s.name)}")
        elif s.encoding:
            form = "" if s.form in ("", "full") else f"/{s.form}"
            parts.append(f"--stream {shlex.quote(f'{s.name}={s.encoding}{form}')}")
    parts.append(f"--storage {shlex.quote(str(spec.storage['name']))}")
    return " \\\n  ".join(parts)
