"""Registry of components by name: built-in modules, entry points of installed packages, and ``register()``.

A built-in component is a module of its kind's package and has the name of the module. A component of another
package is an entry point of the group ``logitstore.KIND``, or an object given to :func:`register`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any

from .errors import UnknownName, UsageError


@dataclass(frozen=True)
class ComponentKind:
    """A kind of component.

    Attributes:
        package: the package that holds the built-in components.
        attributes: names of the attributes that every component has.
        shared: names of public modules of the package that are not components.
    """

    package: str
    attributes: tuple[str, ...]
    shared: tuple[str, ...] = ("base",)


_TEACHERS = ("protocol", "joiners", "tap", "layers", "weight_products")
COMPONENT_KINDS: Mapping[str, ComponentKind] = {
    "encodings": ComponentKind("logitstore.encodings", ("parse",), ("base", "rows", "linear_head")),
    "storage": ComponentKind("logitstore.storage.backends", ("parse",)),
    "places": ComponentKind("logitstore.storage.places", ("at",)),
    "teachers": ComponentKind("logitstore.teachers", ("load",), _TEACHERS),
    "joiners": ComponentKind("logitstore.teachers", ("JOINER",), (*_TEACHERS, "script", "text")),
    "token_formats": ComponentKind("logitstore.tokens.formats", ("recognises", "parse")),
    "report_sections": ComponentKind("logitstore.report.sections", ("ORDER", "draw"), ()),
    "manifest_formats": ComponentKind("logitstore.corpus.formats", ("recognises", "files")),
}
_registered: dict[tuple[str, str], Any] = {}


def register(kind: str, name: str, component: Any) -> None:
    """Add a component to this process under a name.

    Args:
        kind: one of :data:`COMPONENT_KINDS`, e.g. ``encodings``.
        name: the name that users write; no component of the kind may have it yet.
        component: a module or object with the attributes of its kind, e.g. ``parse`` for an encoding.

    Raises:
        UsageError: the name is taken, or the component lacks an attribute of its kind.
        UnknownName: there is no such kind.
    """
    if name in names(kind):
        raise UsageError(f"{kind} already has a component {name!r}", do="Register it under another name.")
    _registered[kind, name] = _checked(kind, name, component, "register()")


def names(kind: str) -> list[str]:
    """Return the names of all components of a kind, sorted."""
    registered = (name for other, name in _registered if other == kind)
    return sorted({*_built_in(_kind(kind)), *_installed(kind), *registered})


def load(kind: str, name: str) -> Any:
    """Return the component ``name`` of a kind; a built-in one wins over an entry point of the same name.

    Raises:
        UnknownName: no component has that name; the message lists the known names.
        UsageError: the component needs a Python package that is not installed, or lacks an attribute.
    """
    found = _kind(kind)
    if name in _built_in(found):
        with needs(name):
            return import_module(f"{found.package}.{name}")
    if (kind, name) in _registered:
        return _registered[kind, name]
    if (point := _installed(kind).get(name)) is not None:
        with needs(name, do=f"The entry point is {point.value!r} of the package {_package(point)}."):
            return _checked(kind, name, point.load(), f"the package {_package(point)}")
    raise UnknownName(f"there is no {name!r} among the registered {kind}", do=suggest(name, names(kind)))


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that lists the known names, after a question for the one that is spelt alike."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."


@contextmanager
def needs(name: str, do: str = "") -> Iterator[None]:
    """Turn a failed import inside the block into a ``UsageError`` that names the package.

    Args:
        name: the component, and the extra of logitstore that installs its package.
        do: the remedy, where it is not to install that extra.
    """
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("logitstore"):
            raise
        raise UsageError(
            f"{name!r} needs the Python package {e.name!r}, which is not installed",
            do=do or f"pip install 'logitstore[{name}]'",
        ) from e
    except (ImportError, OSError) as e:  # an incompatible version, or a binary whose libraries are missing
        raise UsageError(f"{name!r} cannot be imported: {e}", do=do) from e


def _kind(name: str) -> ComponentKind:
    if name not in COMPONENT_KINDS:
        raise UnknownName(f"there is no kind of component {name!r}", do=suggest(name, COMPONENT_KINDS))
    return COMPONENT_KINDS[name]


@cache
def _built_in(kind: ComponentKind) -> frozenset[str]:
    modules = iter_modules(import_module(kind.package).__path__)
    return frozenset(m.name for m in modules if m.name not in kind.shared and not m.name.startswith("_"))


@cache
def _installed(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"logitstore.{kind}")}


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "of unknown name"


def _checked(kind: str, name: str, component: Any, where: str) -> Any:
    if missing := [a for a in _kind(kind).attributes if not hasattr(component, a)]:
        raise UsageError(
            f"{name!r} has no {', '.join(missing)}, which every component of {kind} must have",
            where=where,
            do=f"Run the conformance suite: logitstore.testing.{_SUITES[kind]}." if kind in _SUITES else "",
        )
    return component


_SUITES = {"encodings": "encoding", "storage": "storage", "places": "places"}
