"""Offline teacher logits for speech recognition: dump once, distil any number of students.

The names below load on first use, so that ``import logitstore`` loads neither torch nor zarr.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "read_manifest": "logitstore.corpus.manifest",
    "load_teacher": "logitstore.teachers",
    "plan_encodings": "logitstore.dump.plan.run",
    "dump_logits": "logitstore.dump.job",
    "PlanOptions": "logitstore.dump.plan.options",
    "DumpOptions": "logitstore.dump.options",
    "Clip": "logitstore.targets.clip",
    "FrameClock": "logitstore.schema.clock",
    "LogitStoreError": "logitstore.errors",
    "Store": "logitstore.store.reader",
    "StoreWriter": "logitstore.store.writer",
    "TargetBatch": "logitstore.targets.batch",
    "TargetDataset": "logitstore.store.dataset",
    "Tap": "logitstore.teachers.tap",
    "TokenTable": "logitstore.tokens.table",
    "VocabMap": "logitstore.targets.vocab_map",
    "collate_targets": "logitstore.targets.batch",
    "open_store": "logitstore.store.reader",
    "read_table": "logitstore.tokens.formats",
}

__all__ = [
    "Clip",
    "DumpOptions",
    "FrameClock",
    "LogitStoreError",
    "PlanOptions",
    "Store",
    "StoreWriter",
    "Tap",
    "TargetBatch",
    "TargetDataset",
    "TokenTable",
    "VocabMap",
    "__version__",
    "collate_targets",
    "dump_logits",
    "load_teacher",
    "open_store",
    "plan_encodings",
    "read_manifest",
    "read_table",
]

if TYPE_CHECKING:
    from .corpus.manifest import read_manifest
    from .dump.job import dump_logits
    from .dump.options import DumpOptions
    from .dump.plan.options import PlanOptions
    from .dump.plan.run import plan_encodings
    from .errors import LogitStoreError
    from .schema.clock import FrameClock
    from .store.dataset import TargetDataset
    from .store.reader import Store, open_store
    from .store.writer import StoreWriter
    from .targets.batch import TargetBatch, collate_targets
    from .targets.clip import Clip
    from .targets.vocab_map import VocabMap
    from .teachers import load_teacher
    from .teachers.tap import Tap
    from .tokens.formats import read_table
    from .tokens.table import TokenTable


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'logitstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
