"""Offline teacher logits for speech recognition: dump once, distil any number of students.

The names below load on first use, so that ``import logitstore`` loads neither torch nor zarr.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Clip": "logitstore.clip",
    "FrameClock": "logitstore.frames",
    "LogitStoreError": "logitstore.errors",
    "Store": "logitstore.reader",
    "StoreWriter": "logitstore.writer",
    "TargetBatch": "logitstore.batch",
    "TargetDataset": "logitstore.dataset",
    "Tap": "logitstore.tap",
    "TokenTable": "logitstore.vocab",
    "VocabMap": "logitstore.vocabmap",
    "collate_targets": "logitstore.batch",
    "open_store": "logitstore.reader",
    "read_table": "logitstore.vocabs",
}

__all__ = [
    "Clip",
    "FrameClock",
    "LogitStoreError",
    "Store",
    "StoreWriter",
    "Tap",
    "TargetBatch",
    "TargetDataset",
    "TokenTable",
    "VocabMap",
    "__version__",
    "collate_targets",
    "open_store",
    "read_table",
]

if TYPE_CHECKING:
    from .batch import TargetBatch, collate_targets
    from .clip import Clip
    from .dataset import TargetDataset
    from .errors import LogitStoreError
    from .frames import FrameClock
    from .reader import Store, open_store
    from .tap import Tap
    from .vocab import TokenTable
    from .vocabmap import VocabMap
    from .vocabs import read_table
    from .writer import StoreWriter


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'logitstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
