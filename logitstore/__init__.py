"""Offline teacher logits for speech recognition: dump once, distil any number of students.

The names in ``__all__`` are the public interface. Each is loaded on first use, so that ``import logitstore``
loads neither torch nor zarr.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CaptureOptions",
    "Clip",
    "CutClips",
    "DumpOptions",
    "Durations",
    "EpochPlan",
    "FrameClock",
    "Head",
    "LogitStoreError",
    "PlanBatchSampler",
    "PlanOptions",
    "ReportOptions",
    "Store",
    "StoreWriter",
    "StreamBatch",
    "Tap",
    "Target",
    "TargetBatch",
    "TargetDataset",
    "TeacherSpec",
    "TokenTable",
    "VocabMap",
    "__version__",
    "capture_logits",
    "collate_targets",
    "compact_store",
    "convert_store",
    "diff_stores",
    "dump_logits",
    "errors",
    "inspect_store",
    "load_teacher",
    "losses",
    "open_store",
    "plan_encodings",
    "probe_program",
    "read_manifest",
    "read_table",
    "register",
    "repair_store",
    "report_comparison",
    "report_store",
    "report_student",
    "testing",
    "verify_store",
    "with_targets",
]

_MODULE_OF = {
    # write
    "StoreWriter": "logitstore.store.writer",
    "Tap": "logitstore.teachers.tap",
    "TeacherSpec": "logitstore.schema.spec",
    "Head": "logitstore.schema.spec",
    "TokenTable": "logitstore.tokens.table",
    "read_table": "logitstore.tokens.formats",
    # read
    "open_store": "logitstore.store.reader",
    "Store": "logitstore.store.reader",
    "Target": "logitstore.targets.target",
    "TargetDataset": "logitstore.store.dataset",
    "collate_targets": "logitstore.targets.batch",
    "TargetBatch": "logitstore.targets.batch",
    "StreamBatch": "logitstore.targets.stream_batch",
    # student
    "VocabMap": "logitstore.targets.vocab_map",
    "Clip": "logitstore.targets.clip",
    "FrameClock": "logitstore.schema.clock",
    "CutClips": "logitstore.store.lhotse_cuts",
    # loading
    "Durations": "logitstore.loading.durations",
    "EpochPlan": "logitstore.loading.plan",
    "PlanBatchSampler": "logitstore.loading.sampler",
    "with_targets": "logitstore.loading.joined",
    # jobs
    "dump_logits": "logitstore.dump.job",
    "DumpOptions": "logitstore.dump.options",
    "capture_logits": "logitstore.capture.run",
    "CaptureOptions": "logitstore.capture.job",
    "probe_program": "logitstore.capture.probe.run",
    "plan_encodings": "logitstore.dump.plan.run",
    "PlanOptions": "logitstore.dump.plan.options",
    "load_teacher": "logitstore.teachers",
    "read_manifest": "logitstore.corpus.manifest",
    # care
    "verify_store": "logitstore.store.verify",
    "repair_store": "logitstore.store.rewrite",
    "compact_store": "logitstore.store.rewrite",
    "convert_store": "logitstore.store.rewrite",
    "diff_stores": "logitstore.store.diff",
    "report_store": "logitstore.report.run",
    "report_comparison": "logitstore.report.run",
    "report_student": "logitstore.report.run",
    "ReportOptions": "logitstore.report.base",
    "inspect_store": "logitstore.store.inspect",
    # extension
    "register": "logitstore.registry",
    # errors
    "LogitStoreError": "logitstore.errors",
}
_PUBLIC_MODULES = ("errors", "losses", "testing")

if TYPE_CHECKING:
    from . import errors, losses, testing
    from .capture.job import CaptureOptions
    from .capture.probe.run import probe_program
    from .capture.run import capture_logits
    from .corpus.manifest import read_manifest
    from .dump.job import dump_logits
    from .dump.options import DumpOptions
    from .dump.plan.options import PlanOptions
    from .dump.plan.run import plan_encodings
    from .errors import LogitStoreError
    from .loading.durations import Durations
    from .loading.joined import with_targets
    from .loading.plan import EpochPlan
    from .loading.sampler import PlanBatchSampler
    from .registry import register
    from .report.base import ReportOptions
    from .report.run import report_comparison, report_store, report_student
    from .schema.clock import FrameClock
    from .schema.spec import Head, TeacherSpec
    from .store.dataset import TargetDataset
    from .store.diff import diff_stores
    from .store.inspect import inspect_store
    from .store.lhotse_cuts import CutClips
    from .store.reader import Store, open_store
    from .store.rewrite import compact_store, convert_store, repair_store
    from .store.verify import verify_store
    from .store.writer import StoreWriter
    from .targets.batch import TargetBatch, collate_targets
    from .targets.clip import Clip
    from .targets.stream_batch import StreamBatch
    from .targets.target import Target
    from .targets.vocab_map import VocabMap
    from .teachers import load_teacher
    from .teachers.tap import Tap
    from .tokens.formats import read_table
    from .tokens.table import TokenTable


def __getattr__(name: str) -> Any:
    """Import the module of a public name, or a public module, on first use."""
    if name in _PUBLIC_MODULES:
        return import_module(f"logitstore.{name}")
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
        globals()[name] = value  # the next use finds it without this function
        return value
    raise AttributeError(f"module 'logitstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names and the attributes of the module."""
    return sorted({*globals(), *__all__})
