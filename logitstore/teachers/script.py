"""``script:FILE.py:NAME``, or ``FILE.py:NAME`` alone: a teacher made by a factory in the user's own file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import TeacherError, UsageError
from .protocol import Teacher, check_protocol


def load(place: str) -> Teacher:
    """Run ``NAME()`` of ``FILE.py``; its folder becomes importable, as for any script.

    Raises ``UsageError`` for a wrong place and ``TeacherError`` where the factory fails or its result does
    not keep the protocol.
    """
    file, found, name = place.rpartition(":")
    path = Path(file).resolve()
    if not found or not file or not name.isidentifier():
        raise UsageError(
            f"{place!r} is not FILE.py:NAME", do="Say which function of which file: teacher.py:load."
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
    """The module of a user's file, its folder importable; raises ``TeacherError`` where importing fails."""
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
