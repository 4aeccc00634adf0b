"""Fixtures of the framework tests: folders of small models. The frameworks themselves are imported when one is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def nemo_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a SentencePiece tokenizer as NeMo reads it."""
    from tests.frameworks.models_nemo import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def speechbrain_ctc(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Inference folder of a SpeechBrain CTC model, and the objects of its yaml."""
    from tests.frameworks.models_speechbrain import build_ctc

    return tmp_path, build_ctc(tmp_path)


@pytest.fixture
def wenet_clone(monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder of the clone of WeNet that WENET names."""
    from tests.frameworks.models_wenet import import_clone

    return import_clone(monkeypatch)
