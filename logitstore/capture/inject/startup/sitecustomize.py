"""Runs at the start of every Python process below ``logitstore capture`` and ``logitstore probe``.

It costs a process that never imports torch nothing. The next ``sitecustomize`` on the path still runs.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would cost every process its import
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))  # the logitstore package of the process that started it all
JOB = "LOGITSTORE_JOB"


class _WaitForTorch:
    """A finder that finds nothing itself, but is told when torch has been imported."""

    _asking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch" or self._asking:
            return None
        self._asking = True
        try:
            spec: Any = importlib.util.find_spec(name)  # programs ask too, and do not import it
        finally:
            self._asking = False
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return spec
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _begin()

        spec.loader.exec_module = exec_module
        return spec


def _begin() -> None:
    """Load that very logitstore, by its place: nothing is added to the program's own path."""
    if "logitstore" not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(
            "logitstore", os.path.join(ROOT, "__init__.py"), submodule_search_locations=[ROOT]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules["logitstore"] = package
        spec.loader.exec_module(package)
    importlib.import_module("logitstore.capture.inject.inside").begin(os.environ[JOB])


def _chain() -> None:
    """Run the sitecustomize that this one stands in front of."""
    rest = [p for p in sys.path if os.path.abspath(p or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get(JOB):
    sys.meta_path.insert(0, _WaitForTorch())
_chain()
