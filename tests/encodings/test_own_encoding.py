"""An encoding of a user's own package, with its own rows, works without a change in another file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from logitstore import VocabMap, collate_targets, open_store, registry
from logitstore.dump.job import dump_logits
from logitstore.dump.options import DumpOptions
from logitstore.dump.plan.options import AutoEncoding, PlanOptions
from logitstore.dump.plan.run import plan_encodings
from logitstore.encodings import Encoding, Rows, Tempered, parse_encoding
from logitstore.encodings.rows import every_class
from logitstore.errors import UsageError
from logitstore.losses import ctc_kd, rnnt_kd
from logitstore.schema.spec import Column
from logitstore.store.verify import verify_store
from logitstore.targets.clip import Clip
from logitstore.testing import encoding as suite
from logitstore.tokens.table import TokenTable
from tests.support import demo


@dataclass(frozen=True)
class RawRows(Rows):
    """Logits as they are."""

    raw: NDArray[Any]

    @property
    def classes(self) -> int:
        return self.raw.shape[1]

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, index: NDArray[np.int64]) -> "RawRows":
        return RawRows(self.raw[index])

    def at(self, temperature: float = 1.0) -> Tempered:
        return every_class(self.raw.astype(np.float32), temperature)


@dataclass(frozen=True)
class RawEncoding(Encoding):
    """(N, V) float32 logits less the row's largest."""

    def __str__(self) -> str:
        return "raw"

    def columns(self, classes: int) -> tuple[Column, ...]:
        return (Column("raw", "float32", (classes,), "logits"),)

    def encode(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"raw": logits - logits.amax(-1, keepdim=True)}

    def decode(self, arrays: Mapping[str, NDArray[Any]], classes: int) -> RawRows:
        return RawRows(arrays["raw"])


class RawModule:
    """The module of the encoding, as an entry point would load it."""

    PLANNED = ("raw",)

    @staticmethod
    def parse(setting: str | None) -> RawEncoding:
        return RawEncoding()


@pytest.fixture(scope="module", autouse=True)
def registered():
    registry.register("encodings", "raw", RawModule)
    yield
    del registry._registered["encodings", "raw"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("own") / "s"
    dump_logits(
        demo.teacher(), demo.manifest(3), made, DumpOptions(streams={"ctc": "raw", "rnnt": "raw/banded:3"})
    )
    return made


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda c: c.__name__)
def test_it_passes_the_suite(check):
    check(RawEncoding(), 40, suite.Bounds(logp=2e-3, tail=0.0))


def test_it_is_planned(tmp_path):
    options = PlanOptions({"ctc": AutoEncoding()}, storages=("zarr",), sample=2)
    plan = plan_encodings(demo.teacher(), demo.manifest(2), options, folder=tmp_path)
    tried = {m.encoding: m for m in plan.measured}
    assert tried["raw"].bytes_per_frame > tried["dense"].bytes_per_frame


def test_it_is_dumped_verified_and_read(place):
    assert not verify_store(place).findings
    store = open_store(place)
    assert isinstance(store["demo-00"]["ctc"], RawRows)
    np.testing.assert_allclose(np.exp(store["demo-00"].log_probs("ctc")).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "linear-logit", "nearest", "max-nonblank", "stack:2"])
def test_it_is_resampled_mapped_and_learnt_from(place, method):
    plain = open_store(place)
    names = [t for i, t in enumerate(plain.tokens.tokens) if i == plain.tokens.blank or i % 7]
    student = TokenTable(tuple(names), names.index(plain.tokens.tokens[plain.tokens.blank]))
    vocab = VocabMap.by_token(plain.tokens, student)
    for store, table in ((plain, plain.tokens), (plain, student)):
        ids = list(store)
        frames = [-(-store[i].T // 2) for i in ids]
        targets = [store[i] for i in ids]
        if table is student:
            targets = [
                type(t)(t.id, t.T, t.labels[:0], {"ctc": t["ctc"]}, {"ctc": t.shapes["ctc"]}, blank=t.blank)
                for t in targets
            ]
        batch = collate_targets(
            targets,
            frames=frames,
            method=method,
            streams=["ctc"],
            vocab=vocab if table is student else None,
        )
        stream = batch["ctc"]
        loss = ctc_kd(torch.zeros(*stream.mask.shape, len(table)), stream)
        assert float(loss) > 0
        torch.testing.assert_close(
            stream.dense()[stream.mask].exp().sum(-1), torch.ones(int(stream.mask.sum())), atol=1e-4, rtol=0
        )


def test_its_lattices_and_clips_are_read(place):
    store = open_store(place)
    batch = store.batch(["demo-00", "demo-01"], frames=[40, 20])["rnnt"]
    assert float(rnnt_kd(torch.zeros(*batch.mask.shape, batch.classes), batch)) > 0
    clip = Clip("demo-00").crop(0, 1) + Clip("demo-01").pad(after="0.2", blank=True)
    assert bool(store.batch([clip], streams=["ctc"])["ctc"].mask.all())


def test_a_class_that_is_no_encoding_is_refused():
    class Wrong:
        parse = staticmethod(lambda setting: object())

    registry.register("encodings", "wrong", Wrong)
    try:
        with pytest.raises(UsageError, match=r"Derive it from logitstore\.encodings\.Encoding"):
            parse_encoding("wrong")
    finally:
        del registry._registered["encodings", "wrong"]
