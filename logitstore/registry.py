"""One file adds a component: a directory of modules is the registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from .errors import UnknownName, UsageError


def names(package: str) -> list[str]:
    """Names of the components in a package: its modules, less ``base`` and private ones."""
    path = import_module(package).__path__
    return sorted(m.name for m in iter_modules(path) if m.name != "base" and not m.name.startswith("_"))


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names, nearest first where one is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."


def load(package: str, name: str) -> ModuleType:
    """The module of component ``name``; raises ``UnknownName`` listing the known ones.

    A component whose library is not installed raises ``UsageError`` naming the extra to install.
    """
    known = names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        raise UnknownName(f"there is no {name!r} among {kind}", do=suggest(name, known))
    with needs(name):
        return import_module(f"{package}.{name}")


@contextmanager
def needs(name: str, do: str = "") -> Iterator[None]:
    """A block whose imports may be missing: raises ``UsageError`` saying which package, and what to do.

    Args:
        name: the component; the extra of that name is what to install,
        do: unless this says something else.
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
    except (ImportError, OSError) as e:  # a version that does not fit; a binary without its libraries
        raise UsageError(f"what {name!r} needs does not import: {e}", do=do) from e
