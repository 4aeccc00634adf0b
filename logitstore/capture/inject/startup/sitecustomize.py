"""Start-up hook of every Python process below ``logitstore capture`` and ``logitstore probe``.

A process that never imports torch is not slowed down. The next ``sitecustomize`` on the path still runs.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # an import of typing would slow down every process
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))  # the logitstore package of the parent process
JOB_VARIABLE = "LOGITSTORE_JOB"


class _TorchImportHook:
    """Import hook that finds no modules itself, and starts the recorder once torch has been imported."""

    _searching = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch" or self._searching:
            return None
        self._searching = True
        try:
            spec: Any = importlib.util.find_spec(
                name
            )  # programs may ask for the spec without importing torch
        finally:
            self._searching = False
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
    """Load the logitstore of the parent process by its path; the program's own sys.path stays as it is."""
    if "logitstore" not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(
            "logitstore", os.path.join(ROOT, "__init__.py"), submodule_search_locations=[ROOT]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules["logitstore"] = package
        spec.loader.exec_module(package)
    importlib.import_module("logitstore.capture.inject.start").begin(os.environ[JOB_VARIABLE])


def _chain() -> None:
    """Run the sitecustomize that this one hides."""
    rest = [p for p in sys.path if os.path.abspath(p or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get(JOB_VARIABLE):
    sys.meta_path.insert(0, _TorchImportHook())
_chain()
