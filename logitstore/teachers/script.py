"""``script:FILE.py:NAME``, or ``FILE.py:NAME`` alone: a teacher made by a function in the user's file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import TeacherError, UsageError
from .protocol import Teacher, check_protocol


def load(place: str) -> Teacher:
    """Call ``NAME()`` of ``FILE.py``; its folder becomes importable, as for any script.

    Raises ``UsageError`` for a wrong path or name, and ``TeacherError`` where the function fails or its
    result lacks a method of the protocol.
    """
    file, found, name = place.rpartition(":")
    path = Path(file).resolve()
    if not found or not file or not name.isidentifier():
        raise UsageError(
            f"{place!r} is not FILE.py:NAME", do="Name the file and its function: teacher.py:load."
        )
    if not path.is_file():
        raise UsageError(f"{file} does not exist", where="--teacher")
    factory = getattr(run_file(path), name, None)
    if not callable(factory):
        known = [n for n in vars(run_file(path)) if not n.startswith("_")]
        raise UsageError(
            f"{file} has no function {name!r}", where="--teacher", do=registry.suggest(name, known)
        )
    try:
        teacher = factory()
    except Exception as e:
        raise TeacherError(f"{name}() failed with {type(e).__name__}: {e}", where=str(path)) from e
    return check_protocol(teacher, str(path))


def run_file(path: Path) -> Any:
    """Import a user's file as a module and make its folder importable; raises ``TeacherError``."""
    name = f"logitstore_teacher_{path.stem}"
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        del sys.modules[name]
        raise TeacherError(f"importing it failed with {type(e).__name__}: {e}", where=str(path)) from e
    return module
